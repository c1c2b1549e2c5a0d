"""The figures of 01 show what they are given, and cope with what is not known."""

import numpy as np
import pandas as pd
import pytest

from dataset.config import QualityControlConfig
from evaluation import preprocessing_plots as plots


@pytest.fixture
def metrics(rng):
    n = 200
    return pd.DataFrame(
        {
            "n_genes": rng.integers(100, 3000, n),
            "total_counts": rng.integers(500, 9000, n).astype(float),
            "pct_counts_mt": np.full(n, np.nan),  # a file without mitochondrial genes
            "doublet_score": rng.random(n),
        },
        index=[f"cell_{i}" for i in range(n)],
    )


def test_a_violin_for_each_known_measure_and_batch(metrics):
    donors = pd.Series(np.repeat(["a", "b"], 100), metrics.index, name="donor")
    config = QualityControlConfig(min_genes=200, max_genes=2500)
    figure = plots.quality_violins(metrics, config, donors)
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["detected genes", "counts (library size)", "doublet score"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", "b"]
    dashed = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert dashed == [200, 2500]


def test_scatter_leaves_out_cells_without_counts(metrics):
    metrics.loc["cell_0", "total_counts"] = 0
    figure = plots.quality_scatter(metrics, QualityControlConfig())
    assert len(figure.axes[0].collections[0].get_offsets()) == len(metrics) - 1


def test_class_counts_are_counted():
    cells = pd.DataFrame({"label": list("aaab"), "split": ["train", "train", "val", "train"]})
    figure = plots.class_counts(cells)
    widths = {c.get_label(): [bar.get_width() for bar in c] for c in figure.axes[0].containers}
    assert widths == {"train": [1, 2], "val": [0, 1], "test": [0, 0]}


def test_token_lengths_draws_every_split():
    lengths = {"train": np.arange(50), "val": np.arange(20), "test": np.arange(10)}
    legend = plots.token_lengths(lengths, 64).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["train", "val", "test"]


def metrics_of(n_cells, value=3.0):
    return pd.DataFrame(
        {
            "n_genes": np.full(n_cells, value),
            "total_counts": np.full(n_cells, value),
            "pct_counts_mt": np.full(n_cells, 0.0),
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )


ODD_NAMES = [rf"$\frac{{$ {i} {'x' * 60}" for i in range(60)]


@pytest.mark.parametrize("n_cells", [1, 2, 5])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_few_cells_all_alike_are_drawn(n_cells, value):
    metrics = metrics_of(n_cells, value)
    names = pd.Series((ODD_NAMES[:3] + [None, None])[:n_cells], name="$donor", dtype=object)
    config = QualityControlConfig(max_percent_mitochondrial=20)
    for batches in (None, names):
        plots.quality_violins(metrics, config, batches).canvas.draw()
    plots.quality_scatter(metrics, config).canvas.draw()


def test_batches_are_those_of_the_cells_in_order_whatever_their_index(metrics):
    batches = pd.Series(["a"] * 50 + [None] * 150, name="donor")
    axis = plots.quality_violins(metrics, QualityControlConfig(), batches).axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["(none)", "a"]
    drawn = [len(points.get_offsets()) for points in axis.collections if len(points.get_offsets())]
    assert drawn[-2:] == [150, 50]


def test_of_many_batches_the_twelve_largest_are_drawn():
    sizes = [1] * 150 + [3] * 12
    batches = pd.Series(np.repeat([f"b{i}" for i in range(162)], sizes), name="donor")
    figure = plots.quality_violins(metrics_of(len(batches)), QualityControlConfig(), batches)
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == sorted(f"b{i}" for i in range(150, 162))


def test_sixty_classes_of_long_names_are_drawn_and_told_apart():
    split = ["train", "train", "val"] * 20
    figure = plots.class_counts(pd.DataFrame({"label": ODD_NAMES, "split": split}))
    figure.canvas.draw()
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(ticks) == 60
    assert all(tick.startswith(r"\$\frac{\$ ") and len(tick) < 60 for tick in ticks)
    assert len(set(ticks)) == 60


@pytest.mark.parametrize("n_train", [0, 1, 5])
def test_token_lengths_of_few_cells_and_empty_splits(n_train):
    lengths = {"train": np.full(n_train, 7), "val": np.zeros(0, int), "test": np.array([64])}
    figure = plots.token_lengths(lengths, 64)
    figure.canvas.draw()
    heights = [patch.get_xy()[:, 1].max() for patch in figure.axes[0].patches]
    assert heights == [1.0 if n_train else 0.0, 0.0, 1.0]
