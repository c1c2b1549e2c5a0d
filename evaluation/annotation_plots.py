"""Figures of notebook 04: the predicted types of the new cells, and the confidence.

A query may hold one cell or a million, and its types may have any name. A figure that has too
little to show says so instead.
"""

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.plot_text import plain

if TYPE_CHECKING:
    from evaluation.annotate import Annotation

SURE, UNSURE, OTHER = "#4c72b0", "#dd8452", "#c8c8c8"
FEWEST_ON_MAP = 10  # different cells, below which neighbors say nothing
MOST_ON_MAP = 20_000
FEWEST_OF_TYPE = 5  # cells, below which a type has no mean to trust
MOST_TYPES = 20  # told apart by color, or compared by their genes


def type_counts(cells: pd.DataFrame) -> Figure:
    """Draw the cells of each predicted type, the uncertain ones apart.

    Parameters
    ----------
    cells
        Columns ``predicted_cell_type`` and ``uncertain``, one row a cell.
    """
    table = pd.crosstab(cells["predicted_cell_type"], cells["uncertain"])
    table = table.reindex(columns=[False, True], fill_value=0)
    table = table.loc[table.sum(axis=1).sort_values().index]
    figure = Figure(figsize=(7, 0.32 * len(table) + 1.2), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(table))
    axis.barh(places, table[False], color=SURE, label="sure")
    axis.barh(places, table[True], left=table[False], color=UNSURE, label="uncertain")
    for y, total in enumerate(table.sum(axis=1)):
        axis.annotate(f"{total:,}", (total, y), (3, 0), textcoords="offset points", va="center")
    axis.set_yticks(places, _labels(table.index))
    axis.set(xlabel="cells", ylim=(-0.6, len(table) - 0.4))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(x=0.1)
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    sns.despine(figure)
    return figure


def confidence_histogram(cells: pd.DataFrame, threshold: float) -> Figure:
    """Draw the distribution of the confidence, with the threshold of ``uncertain`` dashed."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    axis.hist(cells["confidence"], bins=np.linspace(0, 1, 51).tolist(), color=SURE)
    axis.axvline(threshold, color="crimson", linestyle="--", linewidth=1)
    axis.set(xlabel="confidence", ylabel="cells", yscale="symlog", xlim=(0, 1))
    sns.despine(figure)
    return figure


def cell_map(annotation: "Annotation") -> Figure:
    """Draw the cells' UMAP, by predicted type and by confidence; a sample of a great many.

    Parameters
    ----------
    annotation
        The cells lie where their embedding puts them, or, of a baseline, their probabilities.
    """
    space = annotation.embedding
    if space is None:
        space = annotation.probabilities
    rows = np.random.default_rng(0).permutation(len(space))[:MOST_ON_MAP]
    if (n_different := len(np.unique(space[rows], axis=0))) < FEWEST_ON_MAP:
        return _said(f"cells that differ from one another: {n_different}, too few for a map")
    cells = annotation.cells.iloc[rows]
    places = ad.AnnData(obs=pd.DataFrame(index=range(len(rows))).rename(str))
    places.obsm["space"] = np.asarray(space[rows], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scanpy's own calls
        sc.pp.neighbors(places, n_neighbors=min(15, len(rows) - 1), use_rep="space")
        # The usual start, spectral, needs more cells than it has components.
        start = "spectral" if n_different > 50 else "random"
        sc.tl.umap(places, init_pos=start)
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    x, y = places.obsm["X_umap"].T
    _scatter_types(left, x, y, cells["predicted_cell_type"])
    size = _dot_size(len(rows))
    drawn = right.scatter(x, y, s=size, c=cells["confidence"], vmin=0, vmax=1, linewidths=0)
    figure.colorbar(drawn, ax=right, label="confidence")
    for axis, title in ((left, "predicted type"), (right, "confidence")):
        axis.set(title=title, xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    return figure


def marker_genes(adata: ad.AnnData, counts_location: str) -> Figure:
    """Draw the genes that set each predicted type apart from the others of this file.

    Parameters
    ----------
    adata
        The annotated cells.
    counts_location
        Where their raw counts are: ``X``, ``raw`` or ``layers/NAME``.
    """
    key = "predicted_cell_type"
    types = adata.obs[key].value_counts()
    types = types[types >= FEWEST_OF_TYPE].index[:MOST_TYPES]
    if len(types) < 2:
        return _said(f"fewer than two types with {FEWEST_OF_TYPE} cells: nothing to compare")
    kept = _counts_of(adata, counts_location)[adata.obs[key].isin(types).to_numpy()].copy()
    kept.obs[key] = kept.obs[key].cat.remove_unused_categories()
    kept.obs[key] = kept.obs[key].cat.rename_categories(_labels(kept.obs[key].cat.categories))
    kept.var_names = _labels(kept.var_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scanpy's own calls
        sc.pp.normalize_total(kept, target_sum=1e4)
        sc.pp.log1p(kept)
        sc.tl.rank_genes_groups(kept, key, method="t-test")
        dots = sc.pl.rank_genes_groups_dotplot(
            kept, n_genes=3, standard_scale="var", dendrogram=False, return_fig=True
        )
        dots.make_figure()
    plt.close(dots.fig)  # it is returned, and not to be shown twice
    return dots.fig


def runner_up(annotation: "Annotation") -> pd.DataFrame:
    """Return the second most likely type of every cell, and its probability."""
    order = np.argsort(annotation.probabilities, axis=1)
    if order.shape[1] == 1:
        nobody = {"runner_up": "", "its_probability": 0.0}
        return pd.DataFrame(nobody, index=annotation.cells.index)
    rows, second = np.arange(len(order)), order[:, -2]
    return pd.DataFrame(
        {
            "runner_up": np.array(annotation.class_names)[second],
            "its_probability": annotation.probabilities[rows, second],
        },
        index=annotation.cells.index,
    )


def _scatter_types(axis: Axes, x: np.ndarray, y: np.ndarray, types: pd.Series) -> None:
    """Draw the commonest types in colors of their own, the others in grey."""
    n_cells = types.value_counts()
    shown = n_cells[n_cells > 0].index[:MOST_TYPES]
    size = _dot_size(len(types))
    others = ~types.isin(shown).to_numpy()
    if others.any():
        n_others = types[others].nunique()
        axis.scatter(
            x[others], y[others], s=size, color=OTHER, linewidths=0, label=f"{n_others} others"
        )
    colors = sns.husl_palette(len(shown))
    for name, label, color in zip(shown, _labels(shown), colors, strict=True):
        cells = (types == name).to_numpy()
        # matplotlib leaves labels that begin with an underscore out of the legend
        label = f" {label}" if label.startswith("_") else label
        axis.scatter(x[cells], y[cells], s=size, color=color, linewidths=0, label=label)
    axis.legend(
        frameon=False,
        fontsize=7,
        markerscale=(20 / size) ** 0.5,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )


def _dot_size(n_cells: int) -> float:
    return float(np.clip(20_000 / n_cells, 1, 30))


def _counts_of(adata: ad.AnnData, counts_location: str) -> ad.AnnData:
    if counts_location == "raw":
        counts, genes = adata.raw.X, adata.raw.var_names
    elif counts_location == "X":
        counts, genes = adata.X, adata.var_names
    else:
        counts, genes = adata.layers[counts_location.removeprefix("layers/")], adata.var_names
    obs = adata.obs[["predicted_cell_type"]].reset_index(drop=True).rename(str)
    return ad.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=genes))


def _labels(names: pd.Index) -> list[str]:
    """Return labels of a figure, no two alike: cut short, different names may look the same."""
    labels: list[str] = []
    n_of: dict[str, int] = {}
    for name in names:
        label = plain(name) or "(no name)"
        n_of[label] = n_of.get(label, 0) + 1
        labels.append(label if n_of[label] == 1 else f"{label} ({n_of[label]})")
    return labels


def _said(text: str) -> Figure:
    figure = Figure(figsize=(6, 1))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure
