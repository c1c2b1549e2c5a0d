"""Figures of notebook 04: what the new cells were called, and how surely."""

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from evaluation.annotate import Annotation

SURE, UNSURE = "#4c72b0", "#dd8452"


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
    axis.barh(table.index.astype(str), table[False], color=SURE, label="sure")
    axis.barh(
        table.index.astype(str), table[True], left=table[False], color=UNSURE, label="uncertain"
    )
    for place, total in enumerate(table.sum(axis=1)):
        axis.annotate(
            f"{total:,}", (total, place), (3, 0), textcoords="offset points", va="center"
        )
    axis.set(xlabel="cells")
    axis.margins(x=0.1)
    axis.legend(frameon=False, loc="lower right")
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


def without_rare_types(adata: ad.AnnData, key: str, *, fewest: int) -> ad.AnnData:
    """Copy the cells of types with at least ``fewest`` cells: a rarer one has no mean to trust."""
    n_cells = adata.obs[key].value_counts()
    kept = adata[adata.obs[key].isin(n_cells.index[n_cells >= fewest])].copy()
    kept.obs[key] = kept.obs[key].cat.remove_unused_categories()
    return kept


def runner_up(annotation: "Annotation") -> pd.DataFrame:
    """Name the second most likely type of every cell, and its probability."""
    order = np.argsort(annotation.probabilities, axis=1)
    second = order[:, -2] if order.shape[1] > 1 else order[:, -1]
    rows = np.arange(len(order))
    return pd.DataFrame(
        {
            "runner_up": np.array(annotation.class_names)[second],
            "its_probability": annotation.probabilities[rows, second],
        },
        index=annotation.cells.index,
    )
