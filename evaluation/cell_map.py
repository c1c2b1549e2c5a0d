"""Cells on a plane: the field's usual view, for the eye only."""

from collections.abc import Sequence

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.figure import Figure

from evaluation.plot_text import plain

FEWEST_CELLS_FOR_UMAP = 16  # a neighborhood of 15
MAX_COLORS = 100  # a legend of more is no legend
OTHER = "(other)"


def add_components(adata: ad.AnnData, *, n_top_genes: int = 2000, n_components: int = 50) -> None:
    """Add ``obsm["X_pca"]``: log1p of counts per 10,000, the most variable genes, PCA.

    Parameters
    ----------
    adata
        Raw counts, every cell with one; they are normalized in place.
    n_top_genes, n_components
        Most that are taken; few cells have fewer.
    """
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    variable = np.ones(adata.n_vars, dtype=bool)
    if adata.n_vars > n_top_genes:
        sc.pp.highly_variable_genes(adata, n_top_genes=n_top_genes)
        variable = adata.var["highly_variable"].to_numpy()
    n_components = min(n_components, adata.n_obs - 1, int(variable.sum()) - 1)
    if n_components < 1:
        raise ValueError(f"{adata.n_obs} cells x {adata.n_vars} genes have no component")
    adata.var["highly_variable"] = variable
    sc.pp.pca(adata, n_comps=n_components)


def draw_map(adata: ad.AnnData, keys: Sequence[str]) -> Figure:
    """Draw the cells once for each key: by UMAP, or by two components where cells are few.

    Parameters
    ----------
    adata
        With ``obsm["X_pca"]``.
    keys
        Columns of obs to color by; those that are not there, or empty, are left out.
    """
    basis = "X_umap"
    if adata.n_obs >= FEWEST_CELLS_FOR_UMAP:
        sc.pp.neighbors(adata)
        sc.tl.umap(adata)
    else:
        basis = "first two components"
        components = adata.obsm["X_pca"]
        second = components[:, 1:2] if components.shape[1] > 1 else 0 * components[:, :1]
        adata.obsm[basis] = np.hstack([components[:, :1], second])
    known = [key for key in keys if key in adata.obs and adata.obs[key].notna().any()]
    shown = adata.copy()
    for key in known:
        if not pd.api.types.is_numeric_dtype(shown.obs[key]):
            shown.obs[key] = plain_names(shown.obs[key])
    figure = sc.pl.embedding(
        shown, basis, color=known, ncols=2, wspace=0.7, frameon=False, return_fig=True
    )
    plt.close(figure)  # it is returned, and not to be shown twice
    return figure


def plain_names(names: pd.Series) -> "pd.Categorical[str]":
    """Return names as figures show them, different ones still different.

    Parameters
    ----------
    names
        One a cell; beyond 100 different ones the rarer are shown as ``(other)``.
    """
    texts = names.astype(object).where(names.notna(), "(none)").astype(str)
    common = texts.value_counts(sort=True).index[:MAX_COLORS]
    shown_as: dict[str, str] = {}
    for name in sorted(common):
        short = text = plain(name, max_length=24)
        number = 1
        while text in shown_as.values():
            number += 1
            text = f"{short} {number}"
        shown_as[name] = text
    mapped = texts.map(shown_as).fillna(OTHER)
    order = [*shown_as.values(), *([OTHER] if (mapped == OTHER).any() else [])]
    return pd.Categorical(mapped, categories=list(dict.fromkeys(order)))
