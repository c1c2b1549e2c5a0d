"""RESULTS.md and the table beside it: written from the runs alone, edited by nobody."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from evaluation.compare import Comparison, Model

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "top3_accuracy": "top-3",
    "log_loss": "log-loss",
    "ece": "ECE",
}
WITH_INTERVAL = ("accuracy", "macro_f1")
COST = {"seconds": "seconds", "peak_memory_mb": "peak MB", "n_parameters": "parameters"}


def write_results(comparisons: list[Comparison], output: str | Path, command: str) -> list[Path]:
    """Write the tables, verdicts and their provenance, and the scores as CSV.

    Parameters
    ----------
    comparisons
        Of ``compare_runs``.
    output
        The Markdown file; the CSV gets its name with ``.csv``.
    command
        What made it, to be printed at its top.

    Returns
    -------
    The two files.
    """
    output = Path(output)
    if output.suffix == ".csv":
        raise ValueError(f"{output}: is the name of the table beside it; end it in .md")
    lines = ["# Results", "", f"Written by `{command}`; not edited by hand.", ""]
    lines += [f"- {sentence}" for sentence in verdicts(comparisons)]
    for comparison in comparisons:
        lines += ["", *_section(comparison)]
    table = output.with_suffix(".csv")
    scores = pd.concat([comparison.scores for comparison in comparisons])
    output.parent.mkdir(parents=True, exist_ok=True)
    _write_aside(output, "\n".join(lines) + "\n")
    _write_aside(table, scores.to_csv(index=False, quoting=csv.QUOTE_MINIMAL))
    return [output, table]


def verdicts(comparisons: list[Comparison]) -> list[str]:
    """Return one sentence a dataset on the transformer, and one on history where runs can tell."""
    found = []
    for comparison in comparisons:
        found += [comparison.verdict(), comparison.history_verdict()]
    return [sentence for sentence in found if sentence]


def summary(comparison: Comparison) -> pd.DataFrame:
    """Return the scores for people: one row a model, best on val first, intervals in brackets."""
    scores = comparison.scores
    table = pd.DataFrame({"model": scores["model"], "seeds": scores["seeds"]})
    table["val macro-F1"] = scores["val_macro_f1"].map("{:.3f}".format)
    for key, title in COLUMNS.items():
        table[title] = [
            f"{row[key]:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"
            if key in WITH_INTERVAL
            else f"{row[key]:.3f}"
            for _, row in scores.iterrows()
        ]
    for key, title in COST.items():
        digits = 1 if key == "seconds" else 0
        table[title] = ["" if pd.isna(v) else f"{v:,.{digits}f}" for v in scores[key]]
    return table.set_index("model")


def difference_summary(comparison: Comparison) -> pd.DataFrame:
    """Return the paired differences for people: one row a model and score."""
    found = comparison.differences
    over_donors = [
        "" if pd.isna(low) else f"[{low:+.3f}, {high:+.3f}]"
        for low, high in zip(found["low_donors"], found["high_donors"], strict=True)
    ]
    return pd.DataFrame(
        {
            "model": found["model"],
            "against": found["against"],
            "score": found["metric"],
            "difference": found["difference"].map("{:+.3f}".format),
            "over cells": [
                f"[{low:+.3f}, {high:+.3f}]"
                for low, high in zip(found["low"], found["high"], strict=True)
            ],
            "over donors": over_donors,
            "outcome": found["outcome"],
        }
    ).set_index("model")


def _section(comparison: Comparison) -> list[str]:
    first = comparison.models[0].runs[0]
    n_cells = first.meta["n_cells"]
    files = ", ".join(file["path"] for file in first.meta["source"]["files"])
    lines = [
        f"## {comparison.dataset}",
        "",
        f"{files}: {n_cells['train']:,} train, {n_cells['val']:,} val and {n_cells['test']:,} "
        f"test cells of {len(comparison.class_names)} types. Cells "
        f"`{first.metrics['data_sha256'][:12]}`, split `{first.metrics['split_sha256'][:12]}`.",
        "",
        "Test scores, means over seeds; best on val first. In brackets, 95 % intervals over test "
        f"cells ({comparison.n_resamples:,} bootstrap resamples).",
        "",
        *_markdown(summary(comparison)),
    ]
    if len(comparison.differences):
        lines += [
            "",
            f"Differences to the best baseline on val, on the same cells, with 95 % paired "
            f"intervals ({comparison.donor_note}).",
            "",
            *_markdown(difference_summary(comparison)),
        ]
    for model in (comparison.best_network, comparison.best_baseline):
        if model is not None:
            table = comparison.per_class(model)
            table = table[table["n_cells"] + table["n_predicted"] > 0]
            lines += ["", f"Each cell type by {model.name}:", "", *_markdown(_rounded(table))]
    lines += ["", "The runs:", "", *_markdown(_provenance(comparison.models))]
    return lines


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    table = table.sort_values("n_cells", ascending=False)
    shown = {name: table[name].map("{:.3f}".format) for name in ("precision", "recall", "f1")}
    return pd.DataFrame({**shown, "test cells": table["n_cells"]})


def _provenance(models: Iterable[Model]) -> pd.DataFrame:
    rows = []
    for model in models:
        for run in model.runs:
            versions = run.metrics.get("versions", {})
            rows.append(
                {
                    "run": run.name,
                    "data": run.meta["name"],
                    "seed": run.config.seed,
                    "device": run.metrics.get("device", ""),
                    "commit": str(run.metrics.get("git_commit") or "")[:12],
                    "versions": ", ".join(f"{name} {v}" for name, v in versions.items()),
                    "command": f"`python 02_train_model.py --config {run.path}/config.yaml`",
                }
            )
    return pd.DataFrame(rows).set_index("run")


def _markdown(table: pd.DataFrame) -> list[str]:
    """Write a table, its index first, in Markdown."""
    table = table.reset_index()
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows]


def _write_aside(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
