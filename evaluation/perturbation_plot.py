"""The figure of an in-silico perturbation: shifts beside their random null, and class changes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.plot_text import plain

LABELS = {
    "gene_shift": "shift of the remaining genes\n(1 - cosine)",
    "class_shift": "shift of class probabilities",
    "goal_shift": "shift towards the goal\n(cosine)",
}


def draw(
    table: pd.DataFrame, classes: pd.DataFrame, null: pd.DataFrame, *, fdr: float = 0.05
) -> Figure:
    """Draw each statistic, with the matched random perturbations in gray, then the classes.

    Parameters
    ----------
    table, classes, null
        Of a ``Perturbation``.
    fdr
        Dots below this false discovery rate are filled.
    """
    statistics = [name for name in LABELS if name in table]
    n_panels = len(statistics) + bool(classes.shape[1])
    height = 1.8 + 0.3 * max(len(table), 4)
    figure = Figure(figsize=(3.2 * n_panels, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, n_panels, sharey=True))
    for axis, statistic in zip(axes, statistics, strict=False):
        _draw_shifts(axis, table, null[statistic], statistic, fdr)
    axes[0].set_yticks(range(len(table)), [plain(name) for name in table.index])
    if classes.shape[1]:
        _draw_classes(axes[-1], classes)
    axes[0].set_ylim(len(table) - 0.5, -0.5)
    return figure


def _draw_shifts(
    axis: Axes, table: pd.DataFrame, null: pd.Series, statistic: str, fdr: float
) -> None:
    for y, name in enumerate(table.index):
        random = null.loc[[name]]
        axis.plot(random, np.full(len(random), y), "|", color="0.7")
        face = "C3" if table[f"{statistic}_fdr"][name] < fdr else "white"
        axis.plot(table[statistic][name], y, "o", color="C3", markerfacecolor=face)
    axis.set_xlabel(LABELS[statistic])
    axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)


def _draw_classes(axis: Axes, classes: pd.DataFrame) -> None:
    changes = classes.to_numpy()
    largest = max(float(np.abs(changes).max()), 1e-9)
    image = axis.imshow(changes, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    names = [plain(name) for name in classes.columns]
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_title("change of probability")
    axis.figure.colorbar(image, ax=axis)
