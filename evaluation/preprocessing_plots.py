"""Figures of notebook 01: what the cells look like before they become tokens."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dataset.config import QualityControlConfig
from evaluation.cell_map import OTHER, plain_names
from evaluation.plot_text import plain

MEASURES = {
    "n_genes": "detected genes",
    "total_counts": "counts (library size)",
    "pct_counts_mt": "% mitochondrial counts",
    "doublet_score": "doublet score",
}
SPLIT_COLORS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}


def quality_violins(
    metrics: pd.DataFrame, config: QualityControlConfig, batches: pd.Series | None = None
) -> Figure:
    """Violin of every measure that is known, by batch, with the config's thresholds dashed.

    Parameters
    ----------
    metrics
        One row a cell, of ``measure_cells``; columns that are all NaN are left out.
    config
        The thresholds.
    batches
        Batch of each cell, in the order of ``metrics``, one violin each; at most the 12 largest
        are drawn.
    """
    known = [m for m in MEASURES if m in metrics and metrics[m].notna().any()]
    thresholds = {
        "n_genes": (config.min_genes, config.max_genes),
        "total_counts": (config.min_counts if config.min_counts > 1 else None,),
        "pct_counts_mt": (config.max_percent_mitochondrial,),
        "doublet_score": (config.max_doublet_score,),
    }
    name = "cells" if batches is None else plain(batches.name)
    of_cell, order = np.full(len(metrics), "all", dtype=object), ["all"]
    if batches is not None:
        of_cell = np.asarray(plain_names(batches), dtype=object)
        named = pd.Series(of_cell[of_cell != OTHER])  # the rarer ones are not one batch
        order = sorted(named.value_counts().index[:12])
    figure = Figure(figsize=(4 * len(known), 3.4), layout="constrained")
    axes = figure.subplots(1, len(known))
    for axis, measure in zip(np.atleast_1d(axes), known, strict=True):
        frame = pd.DataFrame({"batch": of_cell, measure: metrics[measure].astype(float)})
        shown = frame[frame["batch"].isin(order)].dropna()
        look = {"x": "batch", "y": measure, "order": order, "ax": axis}
        sns.violinplot(shown, cut=0, inner=None, color="#a6bddb", **look)
        few = shown.sample(min(len(shown), 3000), random_state=0)
        sns.stripplot(few, size=1 if len(shown) > 500 else 3, color="#333333", **look)
        for value in thresholds[measure]:
            if value is not None:
                axis.axhline(value, color="crimson", linestyle="--", linewidth=1)
        axis.set(xlabel="" if batches is None else name, ylabel=MEASURES[measure])
        axis.tick_params(axis="x", rotation=45 if len(order) > 4 else 0)
    sns.despine(figure)
    return figure


def quality_scatter(metrics: pd.DataFrame, config: QualityControlConfig) -> Figure:
    """Draw detected genes against library size on log scales, colored by what else is known."""
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axis = figure.subplots()
    shown = metrics[metrics["total_counts"] > 0]
    color = next(
        (m for m in ("pct_counts_mt", "doublet_score") if m in shown and shown[m].notna().any()),
        None,
    )
    look = {"c": shown[color], "cmap": "viridis"} if color else {"color": "#4c72b0"}
    points = axis.scatter(shown["total_counts"], shown["n_genes"], s=4, rasterized=True, **look)
    if color:
        figure.colorbar(points, label=MEASURES[color])
    axis.axhline(max(config.min_genes, 1), color="crimson", linestyle="--", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel=MEASURES["total_counts"], ylabel="detected genes")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        side.set_minor_locator(NullLocator())
    sns.despine(figure)
    return figure


def class_counts(cells: pd.DataFrame) -> Figure:
    """Cells of each type in train, val and test (log scale), rarest type last.

    Parameters
    ----------
    cells
        Columns ``label`` and ``split``, one row a cell.
    """
    table = pd.crosstab(cells["label"], cells["split"]).reindex(columns=list(SPLIT_COLORS))
    table = table.fillna(0).loc[cells["label"].value_counts().index[::-1]]
    figure = Figure(figsize=(7, 0.32 * len(table) + 1.2), layout="constrained")
    axis = figure.subplots()
    table.index = [plain(name) for name in table.index]
    table.plot.barh(ax=axis, color=list(SPLIT_COLORS.values()), width=0.8)
    axis.set(xscale="symlog", xlabel="cells", ylabel="", xlim=(0, None))
    axis.legend(title="", frameon=False, loc="lower right")
    sns.despine(figure)
    return figure


def token_lengths(lengths: dict[str, np.ndarray], n_tokens: int) -> Figure:
    """Tokens in a cell, for each split; what lies at the right edge was cut there.

    Parameters
    ----------
    lengths
        Split name to tokens of each cell, ``(n_cells,)``.
    n_tokens
        Length of a row, where longer cells are cut.
    """
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(0, n_tokens, 41).tolist()
    for split, values in lengths.items():
        share = np.full(len(values), 1 / max(len(values), 1))  # of an empty split there is none
        axis.hist(
            values, bins, weights=share, histtype="step", linewidth=2,
            color=SPLIT_COLORS[split], label=split,
        )  # fmt: skip
    axis.axvline(n_tokens, color="crimson", linestyle="--", linewidth=1)
    axis.set(xlabel="tokens in a cell", ylabel="share of the cells")
    axis.legend(frameon=False)
    sns.despine(figure)
    return figure
