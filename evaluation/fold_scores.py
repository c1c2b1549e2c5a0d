"""Fold by fold: what the scores over all folds together are made of."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from evaluation import METRICS
from evaluation.compare import Comparison
from evaluation.plot_text import plain

SHOWN = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "log_loss_scaled": "log-loss, scaled on val",
}


def fold_scores(comparison: Comparison) -> pd.DataFrame | None:
    """Return one row a fold and model: its cells and types, and its scores, means over seeds.

    None where cells were held out once.
    """
    if comparison.folds is None:
        return None
    rows = []
    for fold in comparison.models[0].folds:
        cells = comparison.folds == fold
        labels = comparison.labels[cells]
        for model in comparison.models:
            row: dict[str, object] = {"fold": fold, "model": model.name, "n_cells": len(labels)}
            row["n_types"] = len(np.unique(labels))
            for name in SHOWN:
                metric = METRICS[name.removesuffix("_scaled")]
                of_seeds = model.scaled if name.endswith("_scaled") else model.test
                row[name] = float(np.mean([metric(labels, p[cells]) for p in of_seeds]))
            rows.append(row)
    return pd.DataFrame(rows)


def fold_summary(comparison: Comparison) -> pd.DataFrame | None:
    """Return the same for people."""
    scores = fold_scores(comparison)
    if scores is None:
        return None
    for name, title in SHOWN.items():
        scores[title] = scores.pop(name).map("{:.3f}".format)
    return scores.rename(
        columns={"n_cells": f"{comparison.split} cells", "n_types": "types"}
    ).set_index("fold")


def draw_folds(comparison: Comparison) -> Figure | None:
    """Draw the scores of every fold, a color a model; None where cells were held out once."""
    scores = fold_scores(comparison)
    if scores is None:
        return None
    figure = Figure(figsize=(3.4 * len(SHOWN) + 2, 3.4), layout="constrained")
    axes = figure.subplots(1, len(SHOWN), squeeze=False)[0]
    colors = sns.color_palette("colorblind", len(comparison.models))
    for axis, (name, title) in zip(axes, SHOWN.items(), strict=True):
        for number, (model, color) in enumerate(zip(comparison.models, colors, strict=True)):
            own = scores[scores["model"] == model.name]
            label = plain(model.name, max_length=32)
            beside = 0.5 * ((number + 0.5) / len(comparison.models) - 0.5)
            axis.scatter(np.arange(len(own)) + beside, own[name], color=color, label=label)
            folds = [plain(fold, max_length=16) for fold in own["fold"]]
            axis.set_xticks(range(len(own)), folds, rotation=35, ha="right")
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(color="#eeeeee")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8,
                  loc="outside right upper")  # fmt: skip
    sns.despine(figure)
    return figure


def about_folds(comparison: Comparison) -> str:
    """Say what was held out in turn, and how many of the cells were predicted."""
    first = comparison.models[0].runs[0]
    n_cells, n_tested = first.meta["source"]["n_cells"], len(comparison.labels)
    n_folds, n_types = len(comparison.models[0].folds), int((comparison.n_cells > 0).sum())
    return (
        f"{n_cells:,} cells in {n_folds} folds, each of them test once and val once: {n_tested:,} "
        f"{comparison.split} cells of {n_types} types, every one predicted by models that "
        "were trained, tuned and scaled without its fold. The other cells do not pass quality "
        "control, have no type, or are of one that the train cells of their fold lack."
    )
