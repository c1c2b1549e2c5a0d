"""The figures and tables of 04, of any number of cells and of types called anything."""

import io
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dataset.vocabulary import GeneMatch
from evaluation import annotation_plots as plots
from evaluation.annotate import Annotation, annotate

ODD = [r"$\frac{$", "_hidden", "a$b", "two\nlines", "<b>bold</b>", ""]
LONG = [f"{'x' * 60} {i}" for i in range(60)]


def found(n_cells, names, *, alike=False, has_embedding=True):
    """Make up the annotation of some cells."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(len(names), 0.1), n_cells)
    if alike:
        probabilities[:] = 1 / len(names)
    named, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    embedding = rng.normal(size=(n_cells, 8)).astype(np.float32) + named[:, None]
    if alike:
        embedding[:] = 1
    cells = pd.DataFrame(
        {
            "predicted_cell_type": pd.Categorical.from_codes(named, categories=names),
            "confidence": confidence,
            "uncertain": confidence < 0.5,
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    match = GeneMatch(np.zeros(1, dtype=np.int64), 1.0, [])
    return Annotation(
        cells=cells,
        probabilities=probabilities,
        embedding=embedding if has_embedding else None,
        class_names=list(names),
        match=match,
        temperature=1.0,
        threshold=0.5,
        counts_location="X",
        messages=[],
        output=Path("annotated.h5ad"),
    )


def with_genes(annotation, n_genes=30):
    """Return the cells of an annotation with counts, gene ``i`` high in type ``i``."""
    named = annotation.cells["predicted_cell_type"].cat.codes.to_numpy()
    rate = np.ones((len(named), n_genes))
    rate[np.arange(len(named)), named % n_genes] = 50
    adata = ad.AnnData(
        np.random.default_rng(1).poisson(rate).astype(np.float32), obs=annotation.cells
    )
    adata.var_names = [f"G${i}^" for i in range(n_genes)]
    return adata


def drawn(figure):
    """Draw the figure, as a notebook does, and return the texts in it."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]


@pytest.mark.parametrize(
    ("n_cells", "names", "alike"),
    [
        (1, ["a", "b"], False),
        (5, ["a", "b"], False),
        (5, ["a"], False),
        (40, ["a"], False),
        (40, ["a", "b"], True),
        (11, ["a", "b"], False),
        (120, ODD, False),
        (400, LONG, False),
    ],
    ids=["1", "5", "5 of 1 type", "1 type", "alike", "11", "odd names", "60 long names"],
)
def test_every_figure_copes(n_cells, names, alike):
    cells = found(n_cells, names, alike=alike)
    shown = cells.cells["predicted_cell_type"].nunique()

    axis = plots.type_counts(cells.cells).axes[0]
    drawn(axis.figure)
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == len(set(labels)) == shown
    assert sum(bar.get_width() for bars in axis.containers for bar in bars) == n_cells

    drawn(plots.confidence_histogram(cells.cells, 0.5))
    said = " ".join(drawn(plots.cell_map(cells)))
    assert ("too few for a map" in said) == (n_cells < 10 or alike)
    assert ("predicted type" in said) == (n_cells >= 10 and not alike)
    said = " ".join(drawn(plots.marker_genes(with_genes(cells), "X")))
    assert ("nothing to compare" in said) == (n_cells < 12 or shown == 1)
    assert len(plots.runner_up(cells)) == n_cells


def test_type_counts_keep_the_uncertain_apart():
    cells = pd.DataFrame(
        {
            "predicted_cell_type": pd.Categorical(list("aab"), categories=list("abc")),
            "uncertain": [False, True, False],
        }
    )
    sure, uncertain = plots.type_counts(cells).axes[0].containers[:2]
    assert [bar.get_width() for bar in sure] == [1, 1]
    assert [bar.get_width() for bar in uncertain] == [0, 1]


def test_confidence_histogram_counts_every_cell():
    cells = found(7, ["a", "b"]).cells
    axis = plots.confidence_histogram(cells, 0.5).axes[0]
    assert sum(patch.get_height() for patch in axis.patches) == 7
    assert axis.lines[0].get_xdata()[0] == 0.5


def test_names_are_shown_as_they_are():
    cells = found(200, ODD)
    expected = {r"\$\frac{\$", "_hidden", r"a\$b", "two lines", "<b>bold</b>", "(no name)"}
    axis = plots.type_counts(cells.cells).axes[0]
    assert {label.get_text() for label in axis.get_yticklabels()} == expected
    legend = plots.cell_map(cells).axes[0].get_legend()
    assert {text.get_text().strip() for text in legend.get_texts()} == expected
    texts = drawn(plots.marker_genes(with_genes(cells), "X"))
    assert expected <= set(texts)
    assert r"G\$0^" in texts


@pytest.mark.parametrize("has_embedding", [True, False])
def test_the_map_shows_every_cell_in_the_color_of_its_type(has_embedding):
    cells = found(60, ["a", "b", "c"], has_embedding=has_embedding)
    types, confidence = plots.cell_map(cells).axes[:2]
    dots = {
        text.get_text(): group
        for text, group in zip(types.get_legend().get_texts(), types.collections, strict=True)
    }
    assert {name: len(group.get_offsets()) for name, group in dots.items()} == dict(
        cells.cells["predicted_cell_type"].value_counts()
    )
    assert len({to_hex(group.get_facecolor()[0]) for group in dots.values()}) == 3
    (all_dots,) = confidence.collections
    np.testing.assert_array_equal(all_dots.get_array(), cells.cells["confidence"].iloc[
        np.random.default_rng(0).permutation(60)
    ])  # fmt: skip
    by_confidence = dict(
        zip(all_dots.get_array(), map(tuple, all_dots.get_offsets()), strict=True)
    )
    for name, group in dots.items():
        own = cells.cells["confidence"][cells.cells["predicted_cell_type"] == name]
        assert {by_confidence[c] for c in own} == set(map(tuple, group.get_offsets()))


def test_beyond_twenty_types_the_rarest_are_grey():
    cells = found(400, LONG)
    types = plots.cell_map(cells).axes[0]
    texts = [text.get_text() for text in types.get_legend().get_texts()]
    n_cells = cells.cells["predicted_cell_type"].value_counts()
    assert len(texts) == len(set(texts)) == 21
    assert texts[0] == f"{(n_cells > 0).sum() - 20} others"
    assert len(types.collections[0].get_offsets()) == n_cells.iloc[20:].sum()


@pytest.mark.parametrize("place", ["X", "raw", "layers/counts"])
def test_marker_genes_are_those_of_the_counts(place):
    cells = found(100, ["a", "b", "c", "d"])
    adata = with_genes(cells)
    adata.var_names = [f"GENE{i}" for i in range(adata.n_vars)]
    if place != "X":  # other values stand in X
        if place == "raw":
            adata.raw = adata.copy()
        else:
            adata.layers["counts"] = adata.X.copy()
        adata.X = np.random.default_rng(0).random(adata.shape).astype(np.float32)
    before = adata.copy()
    figure = plots.marker_genes(adata, place)
    (axis,) = (axis for axis in figure.axes if len(axis.get_xticklabels()) == 12)
    genes = [label.get_text() for label in axis.get_xticklabels()]
    assert genes[::3] == ["GENE0", "GENE1", "GENE2", "GENE3"]  # the first of each type's three
    np.testing.assert_array_equal(adata.X, before.X)
    assert adata.obs.equals(before.obs)


def test_types_of_too_few_cells_have_no_marker_genes():
    cells = found(100, ["a", "b", "c"])
    rare = cells.cells["predicted_cell_type"] == "c"
    keep = ~rare | (rare.cumsum() < plots.FEWEST_OF_TYPE)
    adata = with_genes(cells)[keep.to_numpy()].copy()
    assert (adata.obs["predicted_cell_type"] == "c").sum() == plots.FEWEST_OF_TYPE - 1
    texts = drawn(plots.marker_genes(adata, "X"))
    assert {"a", "b"} <= set(texts)
    assert "c" not in texts


def test_runner_up_is_the_second_best(network_run, synthetic_h5ad, tmp_path):
    annotation = annotate(network_run, synthetic_h5ad, tmp_path / "annotated.h5ad")
    second = plots.runner_up(annotation)
    ordered = np.sort(annotation.probabilities, axis=1)
    np.testing.assert_array_equal(second["its_probability"], ordered[:, -2])
    columns = [annotation.class_names.index(name) for name in second["runner_up"]]
    rows = np.arange(len(columns))
    np.testing.assert_array_equal(annotation.probabilities[rows, columns], ordered[:, -2])
    assert (second["runner_up"] != annotation.cells["predicted_cell_type"].astype(str)).all()
