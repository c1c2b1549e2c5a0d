import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from evaluation.cell_map import add_components, draw_map, plain_names


def cells(rng, n_cells, n_genes=120):
    counts = csr_matrix((1 + rng.poisson(2, (n_cells, n_genes))).astype(np.float32))
    return ad.AnnData(counts, obs=pd.DataFrame(index=[f"cell_{i}" for i in range(n_cells)]))


@pytest.mark.filterwarnings("ignore::Warning:umap")
@pytest.mark.filterwarnings("ignore::Warning:scanpy")
@pytest.mark.parametrize("n_cells", [2, 3, 5, 7, 15, 16])
def test_any_number_of_cells_and_any_names_are_drawn(rng, n_cells):
    adata = cells(rng, n_cells)
    add_components(adata)
    adata.obs["label"] = [rf"$\frac{{$ {i} {'x' * 60}" for i in range(n_cells)]
    adata.obs["doublet_score"] = np.linspace(0, 1, n_cells)
    adata.obs["batch"] = np.nan
    open_before = plt.get_fignums()
    figure = draw_map(adata, ["label", "absent", "batch", "doublet_score"])
    assert plt.get_fignums() == open_before  # or a notebook shows it twice
    figure.canvas.draw()
    titles = [axis.get_title() for axis in figure.axes]
    assert [title for title in titles if title] == ["label", "doublet_score"]
    assert len(figure.axes[0].collections[0].get_offsets()) == n_cells
    assert len(set(legend_of(figure.axes[0]))) == n_cells


def legend_of(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize(("n_cells", "n_genes"), [(1, 50), (20, 1)])
def test_cells_that_have_no_component_are_said(rng, n_cells, n_genes):
    with pytest.raises(ValueError, match="no component"):
        add_components(cells(rng, n_cells, n_genes))


def test_the_most_variable_genes_are_used_where_there_are_more(rng):
    adata = cells(rng, 40)
    add_components(adata, n_top_genes=30, n_components=10)
    assert adata.var["highly_variable"].sum() == 30
    assert adata.obsm["X_pca"].shape == (40, 10)


def test_names_that_are_cut_alike_stay_apart_and_missing_ones_are_named():
    long = "x" * 60
    names = pd.Series([f"{long}1", f"{long}2", None, "$b$", f"{long}1"])
    shown = list(plain_names(names))
    assert shown[0] == shown[4] != shown[1]
    assert shown[2:4] == ["(none)", r"\$b\$"]


def test_beyond_a_hundred_the_rarest_are_others():
    names = pd.Series([*map(str, range(150)), *map(str, range(30))])
    shown = plain_names(names)
    assert len(shown.categories) == 101
    assert (shown == "(other)").sum() == 50
    assert list(shown[:30]) == [*map(str, range(30))]
