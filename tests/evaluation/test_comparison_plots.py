"""Every figure of 03 can be drawn, of few cells and of many types, whatever they are called."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from evaluation import comparison_plots as plots
from evaluation import embedding_plots
from evaluation.compare import compare_runs
from evaluation.embedding import embedded_cells, separation

FIGURES = ("scores", "differences", "class_f1", "confusions", "calibration", "cost", "curves")
LONG = [f"type {i:02d} $\\frac{{$ of a very long name that goes on and on_{i}" for i in range(60)]


def compared(folder, **settings):
    (comparison,) = compare_runs(folder.parent, n_resamples=20, **settings)
    return comparison


def drawn(comparison, folder):
    """Draw every figure and save it, as a notebook does; return their names and texts."""
    found = {}
    for name in FIGURES:
        figure = getattr(plots, name)(comparison)
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=40)
            assert_nothing_is_cut(figure)
            found[name] = figure
    return found


def assert_nothing_is_cut(figure):
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    slack = 0.05  # inches
    assert box.x0 > -slack
    assert box.y0 > -slack
    assert box.x1 < width + slack
    assert box.y1 < height + slack


def texts(figure):
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


@pytest.fixture
def three_runs(write_run):
    """Return a function: settings of the runs -> their folder."""

    def make(**settings):
        write_run("linear", **settings)
        write_run("knn", kind="knn", **settings)
        return write_run("network", kind="rank_transformer", **settings)

    return make


def test_every_figure_can_be_drawn(three_runs, tmp_path):
    found = drawn(compared(three_runs()), tmp_path)
    assert set(found) == set(FIGURES)
    for name in ("scores", "class_f1", "calibration", "cost"):
        assert any("network" in text for text in texts(found[name])), name


def test_five_cells(three_runs, tmp_path):
    labels = {split: [0, 1, 2, 0, 1] for split in ("val", "test")}
    found = drawn(compared(three_runs(labels=labels)), tmp_path)
    assert any("too few cells to draw" in text for text in texts(found["calibration"]))


def test_one_class_in_test(three_runs, tmp_path):
    labels = {"val": [0, 1, 2] * 10, "test": [1] * 40}
    assert set(drawn(compared(three_runs(labels=labels)), tmp_path)) == set(FIGURES)


def test_one_class_at_all(three_runs, tmp_path):
    labels = {split: [0] * 40 for split in ("val", "test")}
    found = drawn(compared(three_runs(labels=labels, class_names=["only"])), tmp_path)
    assert set(found) == set(FIGURES)


@pytest.mark.parametrize("n_cells", [120, 1200])
def test_sixty_classes_with_names_of_sixty_characters(three_runs, tmp_path, n_cells):
    labels = {split: np.arange(n_cells) % 60 for split in ("val", "test")}
    comparison = compared(three_runs(labels=labels, class_names=LONG, skill=4.0))
    found = drawn(comparison, tmp_path)
    assert set(found) == set(FIGURES)
    shown = set(texts(found["class_f1"]))
    assert sum("\\$" in text for text in shown) == 60
    assert max(map(len, shown)) < 50


def test_answers_that_are_all_alike(three_runs, tmp_path):
    labels = {split: np.arange(90) % 3 for split in ("val", "test")}
    alike = {split: np.tile([0.5, 0.3, 0.2], (90, 1)) for split in labels}
    comparison = compared(three_runs(labels=labels, probabilities=alike))
    assert set(drawn(comparison, tmp_path)) == set(FIGURES)
    assert comparison.differences["outcome"].isin(["level", "cannot tell"]).all()


@pytest.mark.parametrize("kind", ["majority", "knn", "rank_transformer"])
def test_one_run_alone(write_run, tmp_path, kind):
    found = drawn(compared(write_run("alone", kind=kind)), tmp_path)
    expected = (
        set(FIGURES) - {"differences"} - ({"curves"} if kind != "rank_transformer" else set())
    )
    assert set(found) == expected


def test_majority_is_the_only_baseline(write_run, tmp_path):
    write_run("majority", kind="majority")
    found = drawn(compared(write_run("net", kind="rank_transformer")), tmp_path)
    assert set(found) == set(FIGURES)


def test_names_of_runs_are_shown_as_they_are(write_run, tmp_path):
    write_run("linear")
    folder = write_run("knn", kind="knn")
    folder = folder.rename(folder.with_name(r"a $\frac{$ and _$x^$ of <b>mine " + "z" * 60))
    found = drawn(compared(folder), tmp_path)
    assert any(r"\$\frac{\$" in text for text in texts(found["scores"]))


def test_many_models_can_be_told_apart(write_run, tmp_path):
    for i in range(14):
        folder = write_run(f"net_{i}x", kind="rank_transformer", d_model=8 * (i + 1), n_heads=1)
    comparison = compared(folder)
    assert len(comparison.models) == 14
    found = drawn(comparison, tmp_path)
    lines = [line for line in found["calibration"].axes[0].lines if "ECE" in line.get_label()]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(lines) == len(looks) == 14


@pytest.mark.parametrize("missing", [{"seconds": 0.0}, {"peak_memory_mb": 0.0}])
def test_costs_of_nothing_can_be_drawn(write_run, tmp_path, missing):
    folder = write_run("linear", costs=missing)
    assert "cost" in drawn(compared(folder), tmp_path)


def test_dots_are_seeds_and_the_line_is_the_interval(write_run):
    for seed in range(3):
        folder = write_run(f"net_s{seed}", kind="rank_transformer", seed=seed, skill=1.0)
    comparison = compared(folder)
    axis = plots.scores(comparison).axes[0]
    of_seeds, mean = (points.get_offsets()[:, 0] for points in axis.collections[1:])
    assert sorted(of_seeds) == sorted(comparison.of_seeds(comparison.models[0], "accuracy"))
    assert len(set(of_seeds)) == 3
    assert mean == [pytest.approx(np.mean(of_seeds))]


def test_margin_is_drawn_between_the_models(write_run):
    write_run("linear")
    comparison = compared(write_run("knn", kind="knn"), margin=0.07)
    axis = plots.differences(comparison).axes[0]
    edges = {line.get_xdata()[0] for line in axis.lines}
    assert {-0.07, 0, 0.07} <= edges


@pytest.fixture
def cells_of_run(write_run):
    """Return a function: settings of a network's run -> its embedded test cells."""

    def make(**settings):
        comparison = compared(write_run("net", kind="rank_transformer", **settings))
        return embedded_cells(comparison.best_network.runs[0])

    return make


def test_umap_of_five_cells_is_none(cells_of_run):
    cells = cells_of_run(labels={"val": [0, 1, 2], "test": [0, 1, 2, 0, 1]})
    assert embedding_plots.umap(cells) is None
    assert separation(cells).notna().all()


@pytest.mark.parametrize("n_cells", [10, 120])
def test_umap_of_types_of_any_name(cells_of_run, tmp_path, n_cells):
    labels = {"val": [0, 1, 2], "test": np.arange(n_cells) % 60}
    cells = cells_of_run(labels=labels, class_names=LONG)
    figure = embedding_plots.umap(cells)
    figure.savefig(tmp_path / "umap.png", dpi=40)
    assert_nothing_is_cut(figure)
    titles = [axis.get_title() for axis in figure.axes[:4]]
    assert titles == ["cell type", "predicted", "donor", "confidence"]
    assert any("\\$" in text for text in texts(figure))
    assert not any("<" in text for text in texts(figure))


def test_a_type_has_one_color_whoever_names_it(cells_of_run):
    labels = {"val": [0, 1, 2], "test": np.repeat([0, 1, 2], [20, 20, 20])}
    never_0 = np.eye(3)[np.repeat([1, 1, 2], [20, 20, 20])] * 0.91 + 0.03
    cells = cells_of_run(labels=labels, probabilities={"val": np.eye(3), "test": never_0})
    types, predicted = embedding_plots.umap(cells).axes[:2]
    colors = [
        {points.get_label(): tuple(points.get_facecolor()[0]) for points in axis.collections}
        for axis in (types, predicted)
    ]
    assert set(colors[0]) == {"alpha", "beta", "gamma"}
    assert set(colors[1]) == {"beta", "gamma"}
    assert all(colors[0][name] == color for name, color in colors[1].items())
