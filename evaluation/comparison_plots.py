"""Figures of notebook 03: scores with their intervals, errors by class, calibration, cost.

A figure that would have nothing to show is None.
"""

from collections.abc import Iterable, Iterator
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from evaluation.calibration import reliability
from evaluation.classification import confusion
from evaluation.compare import LOWER_IS_BETTER, Comparison
from evaluation.model import Model
from evaluation.outcome import RARE
from evaluation.plot_text import plain
from evaluation.run_plots import FEWEST, MANY, NAME, draw_confusion

COLORS = {"network": "#c44e52", "baseline": "#4c72b0", "comparator": "#55a868"}
COMMITTEE = "#8172b3"
TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1, all types",
    "macro_f1_common": f"macro-F1, types of {RARE}+ cells",
    "log_loss_scaled": "log-loss, scaled on val",
}
SHOWN = ("accuracy", "macro_f1_common", "macro_f1")


def scores(comparison: Comparison) -> Figure:
    """Mean over seeds of each model, 95 % interval over test cells, one dot for each seed.

    The majority baseline would squeeze all others into a corner; it is in the table only.
    """
    table = _without_controls(comparison, comparison.scores).iloc[::-1].reset_index(drop=True)
    metrics = [metric for metric in SHOWN if table[metric].notna().all()]
    figure = _figure(3.6 * len(metrics) + 2, 0.42 * len(table) + 1.1)
    axes = _row(figure, len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for y, (_, row) in enumerate(table.iterrows()):
            model = _model(comparison, row["model"])
            color = COLORS.get(model.role, COMMITTEE)
            axis.hlines(y, row[f"{metric}_low"], row[f"{metric}_high"], color, linewidth=2)
            of_seeds = comparison.of_seeds(model, metric)
            axis.scatter(of_seeds, [y] * len(of_seeds), s=14, color="white", edgecolor=color)
            axis.scatter(row[metric], y, s=42, color=color, zorder=3)
            axis.annotate(
                f"{row[metric]:.3f}", (row[metric], y), (0, 6), ha="center", fontsize=8,
                textcoords="offset points",
            )  # fmt: skip
        axis.set_xlabel(f"{TITLES[metric]}, on {comparison.split}")
        axis.set_yticks(range(len(table)), _short(table["model"]))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_ylim(-0.6, len(table) - 0.3)
        axis.grid(axis="x", color="#e5e5e5")
        axis.set_axisbelow(True)
    return _finished(figure)


def differences(comparison: Comparison) -> Figure | None:
    """Difference of each model to the best baseline, 95 % paired intervals; 0 is that baseline.

    Between the dotted lines two models are level. A pale bar is the interval over donors. The
    majority baseline is in the table only.
    """
    table = _without_controls(comparison, comparison.differences)
    table = table.dropna(subset=["difference"])
    if not len(table):
        return None
    metrics = list(table["metric"].unique())
    names = list(table["model"].unique())[::-1]
    figure = _figure(2.9 * len(metrics) + 2, 0.42 * len(names) + 1.2)
    axes = _row(figure, len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        rows = table[table["metric"] == metric].set_index("model")
        for y, name in enumerate(names):
            row, color = rows.loc[name], COLORS.get(_model(comparison, name).role, COMMITTEE)
            if comparison.n_donors > 1:
                axis.hlines(y, row["low_donors"], row["high_donors"], color, alpha=0.3, lw=6)
            axis.hlines(y, row["low"], row["high"], color, linewidth=2)
            axis.scatter(row["difference"], y, s=42, color=color, zorder=3)
        axis.axvline(0, color="#333333", linewidth=1)
        for edge in (-comparison.margin, comparison.margin):
            axis.axvline(edge, color="#999999", linewidth=1, linestyle=":")
        better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
        axis.set_xlabel(f"{TITLES[metric]}, difference\n({better})")
        axis.set_yticks(range(len(names)), _short(names))
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.grid(axis="x", color="#e5e5e5")
        axis.set_axisbelow(True)
    return _finished(figure)


def class_f1(comparison: Comparison) -> Figure:
    """F1 of each class (commonest first, with its test cells) by each model, means over seeds."""
    tables = {model.name: comparison.per_class(model) for model in comparison.models}
    n_cells = next(iter(tables.values()))["n_cells"].sort_values(ascending=False)
    n_cells = n_cells[n_cells > 0]
    f1 = pd.DataFrame({name: table["f1"] for name, table in tables.items()}).loc[n_cells.index]
    names = [f"{plain(name, max_length=NAME)}  ({n:,})" for name, n in n_cells.items()]
    few = len(f1) <= 30
    figure = _figure(0.75 * f1.shape[1] + 4.6, 0.3 * len(f1) + 2.4)
    axis = figure.subplots()
    sns.heatmap(
        f1, ax=axis, cmap="viridis", vmin=0, vmax=1, annot=few, fmt=".2f",
        annot_kws={"fontsize": 8}, cbar=not few, linewidths=0.5 if few else 0,
        xticklabels=False, yticklabels=False,
    )  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.set_xticks(np.arange(f1.shape[1]) + 0.5, _short(f1.columns), rotation=35, ha="right")
    axis.set_yticks(np.arange(len(f1)) + 0.5, names, rotation=0, fontsize=9 if few else 7)
    return figure


def confusions(comparison: Comparison) -> Figure:
    """Confusion of the best network and of the best baseline: share of each true class."""
    models = [m for m in (comparison.best_network, comparison.best_baseline) if m is not None]
    n = len(comparison.class_names)
    side = (0.3 if n <= MANY else 0.17) * n + 0.6
    longest = max(map(len, _short(comparison.class_names)))
    room = 0.0095 * (9 if n <= MANY else 6) * longest + 0.8  # inches, for the longest name
    figure = _figure(side * len(models) + room + 1.2, side + room)
    axes = _row(figure, len(models))
    for axis, model in zip(axes, models, strict=True):
        of_seeds = [confusion(comparison.labels, p.argmax(axis=1), n) for p in model.test]
        draw_confusion(axis, np.mean(of_seeds, axis=0), comparison.class_names)
        axis.set_title(plain(model.name))
    axes[0].set_ylabel("true")
    image = axes[0].images[0]
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.6)
    return figure


def calibration(comparison: Comparison) -> Figure:
    """Accuracy against confidence, in 15 bins; on the diagonal, confidence can be believed.

    Probabilities are as the models gave them. Bins of few cells are left out.
    """
    models = [m for m in comparison.models if not _is_control(m)]
    figure = _figure(7.4, 4.2)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
    axis.set_axisbelow(True)
    ece = comparison.scores.set_index("model")["ece"].to_dict()
    least = 0.9
    for model, look in zip(models, _looks(), strict=False):
        labels = np.tile(comparison.labels, len(model.test))
        bins = reliability(labels, np.concatenate(model.test))
        bins = bins[bins["n_cells"] >= FEWEST * len(model.test)]
        least = min([least, *bins["confidence"], *bins["accuracy"]])
        too_few = "" if len(bins) else "; too few cells to draw"
        label = f"{plain(model.name, max_length=NAME)} (ECE {ece[model.name]:.3f}{too_few})"
        axis.plot(bins["confidence"], bins["accuracy"], markersize=4, label=label, **look)
    limits = (max(least - 0.05, 0), 1.02)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=limits, ylim=limits)
    if models:
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return _finished(figure)


def curves(comparison: Comparison) -> Figure | None:
    """Loss and val macro-F1 of every seed of every network, over its updates; None without any."""
    networks = [model for model in comparison.models if model.role == "network"]
    if not networks:
        return None
    panels = {
        "train/loss": "training loss",
        "val/log_loss": "val log-loss",
        "val/macro_f1": "val macro-F1",
        "optim/lr": "learning rate",
    }
    figure = _figure(9, 5.4)
    axes = figure.subplots(2, 2, sharex=True)
    for model, look in zip(networks, _looks(), strict=False):
        for number, run in enumerate(model.runs):
            lines = pd.DataFrame(run.curves)
            for axis, key in zip(axes.flat, panels, strict=True):
                if key in lines:
                    points = lines.dropna(subset=[key])
                    label = plain(model.name, max_length=NAME) if number == 0 else None
                    one = look["marker"] if len(points) == 1 else ""  # a line of one point is none
                    style = look | {"marker": one}
                    axis.plot(points["step"], points[key], alpha=0.8, label=label, **style)
    for axis, title in zip(axes.flat, panels.values(), strict=True):
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(color="#eeeeee")
    for axis in axes[1]:
        axis.set_xlabel("update")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if len(networks) > 1 and handles:
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right upper")
    return _finished(figure)


def cost(comparison: Comparison) -> Figure | None:
    """Seconds to fit, peak memory and parameters of each model (log scale), best on val on top."""
    panels = {
        "seconds": "seconds to fit",
        "peak_memory_mb": "peak memory (MB)",
        "n_parameters": "parameters of the network",
    }
    table = comparison.scores.iloc[::-1].reset_index(drop=True)
    colors = [COLORS.get(_model(comparison, name).role, COMMITTEE) for name in table["model"]]
    panels = {key: title for key, title in panels.items() if table[key].notna().any()}
    if not panels:
        return None
    figure = _figure(2.9 * len(panels) + 1.5, 0.36 * len(table) + 1.1)
    for axis, (key, title) in zip(_row(figure, len(panels)), panels.items(), strict=True):
        known = table[key].dropna()
        least = known.clip(lower=0.01).min() / 3  # where the bars of a log scale begin
        wide = known.clip(lower=least) - least
        axis.barh(known.index, wide, left=least, color=[colors[i] for i in known.index])
        for y, value in known.items():
            text = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
            axis.annotate(
                text, (max(value, least), y), (3, 0), textcoords="offset points", va="center",
                fontsize=8,
            )  # fmt: skip
        axis.set(xscale="log", xlabel=title, xlim=(least, max(known.max(), least) * 8))
        axis.xaxis.set_major_locator(NullLocator())  # the numbers stand at the bars
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_yticks(range(len(table)), _short(table["model"]))
    return _finished(figure)


def _model(comparison: Comparison, name: str) -> Model:
    return next(model for model in comparison.models if model.name == name)


def _looks() -> Iterator[dict]:
    """Yield what tells lines apart: ten colors, then the same with other strokes."""
    colors = sns.color_palette("colorblind", 10)
    strokes = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
    for linestyle, marker in cycle(strokes):
        for color in colors:
            yield {"color": color, "linestyle": linestyle, "marker": marker}


def _short(names: Iterable[str]) -> list[str]:
    return [plain(name, max_length=NAME) for name in names]


def _is_control(model: Model) -> bool:
    """Tell whether a model looks at no gene."""
    return getattr(model.runs[0].config.model, "is_control", False)


def _without_controls(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    controls = [model.name for model in comparison.models if _is_control(model)]
    others = table[~table["model"].isin(controls)]
    return others if len(others) else table


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _row(figure: Figure, n_panels: int) -> list[Axes]:
    return list(figure.subplots(1, n_panels, sharey=True, squeeze=False)[0])


def _finished(figure: Figure) -> Figure:
    sns.despine(figure)
    return figure
