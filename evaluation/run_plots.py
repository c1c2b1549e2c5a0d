"""Figures of one run's cells, for its dashboard: confusion, F1 by class, calibration.

They take arrays and know of no run, so that training draws them too.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.calibration import ece, reliability
from evaluation.classification import confusion, per_class
from evaluation.plot_text import plain

FEWEST = 15  # cells in a bin of the calibration figure: fewer say nothing
NAME = 32  # characters of a name that are shown
MANY = 30  # classes, whose names are written smaller


def figures(
    labels: np.ndarray, probabilities: np.ndarray, class_names: list[str]
) -> dict[str, Figure]:
    """Return the figures by name.

    Parameters
    ----------
    labels
        True classes of the cells, ``(n,)``.
    probabilities
        Predicted, ``(n, c)``.
    class_names
        Of the ``c`` classes.
    """
    predicted = probabilities.argmax(axis=1)
    return {
        "confusion_matrix": _confusion(labels, predicted, class_names),
        "f1_by_class": _f1_by_class(labels, predicted, class_names),
        "calibration": _calibration(labels, probabilities),
    }


def draw_confusion(axis: Axes, counts: np.ndarray, class_names: list[str]) -> None:
    """Draw the share of each true class (rows) by predicted class; of few classes the counts too.

    Parameters
    ----------
    axis
        To draw on; its image is ``axis.images[0]``.
    counts
        Cells, ``(c, c)``; means over seeds are no whole numbers.
    class_names
        Of the ``c`` classes.
    """
    n = len(class_names)
    n_true = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, n_true, out=np.full(counts.shape, np.nan), where=n_true > 0)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [plain(name, max_length=NAME) for name in class_names]
    size = 9 if n <= MANY else 6
    axis.set_xticks(range(n), names, rotation=90, fontsize=size)
    axis.set_yticks(range(n), names, fontsize=size)
    axis.set_xlabel("predicted")
    if n > 20:
        return
    for i, j in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[i, j] > 0.6 else "#222222"
        text = f"{counts[i, j]:.1f}".removesuffix(".0")  # a mean over seeds
        axis.text(j, i, text, ha="center", va="center", fontsize=7, color=color)


def _confusion(labels: np.ndarray, predicted: np.ndarray, class_names: list[str]) -> Figure:
    n = len(class_names)
    side = (0.3 if n <= MANY else 0.17) * n + 3.5
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    draw_confusion(axis, confusion(labels, predicted, n), class_names)
    axis.set_ylabel("true")
    figure.colorbar(axis.images[0], ax=axis, label="share of the true class", shrink=0.6)
    return figure


def _f1_by_class(labels: np.ndarray, predicted: np.ndarray, class_names: list[str]) -> Figure:
    """Commonest class on top, with its cells; classes that the cells do not have are left out."""
    table = per_class(labels, predicted, class_names).sort_values("n_cells")
    table = table[table["n_cells"] > 0]
    figure = Figure(figsize=(7, 0.25 * len(table) + 1.2), layout="constrained")
    axis = figure.subplots()
    rows = range(len(table))
    axis.barh(rows, table["f1"], color="#4c72b0")
    pairs = zip(table.index, table["n_cells"], strict=True)
    axis.set_yticks(rows, [f"{plain(name, max_length=NAME)}  ({n:,})" for name, n in pairs])
    axis.set(xlabel="F1 (in brackets: cells of the type)", xlim=(0, 1))
    for y, f1 in zip(rows, table["f1"], strict=True):
        axis.annotate(f"{f1:.2f}", (min(f1, 0.93), y), (3, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    return figure


def _calibration(labels: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Accuracy against confidence; on the diagonal, confidence can be believed."""
    bins = reliability(labels, probabilities)
    bins = bins[bins["n_cells"] >= FEWEST]
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
    axis.plot(bins["confidence"], bins["accuracy"], marker="o", color="#4c72b0")
    title = f"ECE {ece(labels, probabilities):.3f}; bins of {FEWEST} cells or more"
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), title=title)
    return figure
