"""RESULTS.md and the table beside it: written from the runs alone, edited by nobody."""

import csv
import shlex
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from dataset.provenance import short_commit
from dataset.store.atomic import atomic_file
from evaluation.compare import Comparison
from evaluation.controls import with_controls
from evaluation.fold_scores import about_folds, fold_summary
from evaluation.languages import language_summary, language_verdicts
from evaluation.markdown import code, escape, table
from evaluation.model import Model
from evaluation.outcome import RARE
from evaluation.over_sets import about_over_sets, ours_verdicts, over_sets_summary, tested
from evaluation.verdicts import verdicts

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "macro_f1": "macro-F1",
    "macro_f1_common": f"macro-F1, types of {RARE}+ cells",
    "weighted_f1": "weighted F1",
    "top3_accuracy": "top-3",
    "log_loss": "log-loss",
    "log_loss_scaled": "log-loss, scaled on val",
    "ece": "ECE",
    "ece_scaled": "ECE, scaled on val",
    "above_controls": "above controls",
}
URL = ":/?#@!$&'()*+,;=%"  # characters of an address that mean something in it
WITH_INTERVAL = ("accuracy", "macro_f1", "macro_f1_common")
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
    lines = ["# Results", "", f"Written by {code(command)}; not edited by hand.", ""]
    if len(tested(comparisons)) > 1:
        lines += _over_sets(comparisons)
    sentences = [*verdicts(comparisons), *language_verdicts(comparisons)]
    lines += [f"- {escape(sentence)}" for sentence in sentences]
    if missing := left_out(comparisons):
        lines += ["", "Left out, and in no table:", ""]
        lines += [f"- {escape(sentence)}" for sentence in missing]
    for comparison in comparisons:
        lines += ["", *_section(comparison)]
    scores = pd.concat([with_controls(comparison) for comparison in comparisons])
    csv_file = output.with_suffix(".csv")
    _write_together(
        {
            output: "\n".join(lines) + "\n",
            csv_file: scores.to_csv(index=False, quoting=csv.QUOTE_MINIMAL),
        }
    )
    return [output, csv_file]


def left_out(comparisons: list[Comparison]) -> list[str]:
    """Return a sentence for every run that is in no table and would have been expected there."""
    return list(dict.fromkeys(why for comparison in comparisons for why in comparison.left_out))


def summary(comparison: Comparison) -> pd.DataFrame:
    """Return the scores for people: one row a model, best on val first, intervals in brackets."""
    scores = with_controls(comparison)
    shown = pd.DataFrame({"model": scores["model"], "seeds": scores["seeds"].fillna("")})
    shown["role"] = scores["role"].fillna("")  # the controls have none
    if any(model.is_transductive for model in comparison.models):
        shown["transductive"] = scores["transductive"].map({True: "yes"}).fillna("")
    shown["epochs"] = ["" if pd.isna(n) else f"{n:.0f}" for n in scores["epochs"]]
    shown["val macro-F1"] = scores["val_macro_f1"].map(_number)
    for key, title in COLUMNS.items():
        shown[title] = [
            _number(row[key]) + (_interval(row, key) if key in WITH_INTERVAL else "")
            for _, row in scores.iterrows()
        ]
    for key, title in COST.items():
        digits = 1 if key == "seconds" else 0
        shown[title] = ["" if pd.isna(v) else f"{v:,.{digits}f}" for v in scores[key]]
    return shown.set_index("model")


def difference_summary(comparison: Comparison) -> pd.DataFrame:
    """Return the paired differences for people: one row a model and score."""
    found = comparison.differences
    return pd.DataFrame(
        {
            "model": found["model"],
            "against": found["against"],
            "score": found["metric"].map(COLUMNS),
            "difference": [_number(value, "+") for value in found["difference"]],
            "over cells": _intervals(found["low"], found["high"]),
            "over donors": _intervals(found["low_donors"], found["high_donors"]),
            "outcome": found["outcome"],
        }
    ).set_index("model")


def _over_sets(comparisons: list[Comparison]) -> list[str]:
    return [
        *["## All sets", "", escape(about_over_sets(comparisons)), ""],
        *[*table(over_sets_summary(comparisons)), ""],
        *[f"- {escape(sentence)}" for sentence in ours_verdicts(comparisons)],
        *["", "Is it a transformer that is needed:", ""],
    ]


def _section(comparison: Comparison) -> list[str]:
    first, split = comparison.models[0].runs[0], comparison.split
    n_cells = first.meta["n_cells"]
    files = ", ".join(str(file["path"]) for file in first.meta["source"]["files"])
    by_fold = fold_summary(comparison)
    hashes = f"Cells `{first.metrics['data_sha256'][:12]}`"
    if by_fold is None:
        cells = (
            f"{n_cells['train']:,} train, {n_cells['val']:,} val and {n_cells['test']:,} test "
            f"cells of {len(comparison.class_names)} types. {hashes}, split "
            f"`{first.metrics['split_sha256'][:12]}`."
        )
    else:
        cells = f"{about_folds(comparison)} {hashes}."
    lines = [
        f"## {escape(comparison.dataset)}",
        "",
        f"{escape(files)}: {cells}",
        "",
        f"{_whose(comparison)}, means over seeds; best on val first. In brackets, 95 % intervals "
        f"over {split} cells ({comparison.n_resamples:,} bootstrap resamples). Macro-F1 is over "
        f"the types that have {split} cells, and its interval holds for their numbers as they "
        "are: cells are drawn within each type. Of types with fewer than "
        f"{RARE} {split} cells no interval knows the "
        'chance; the column beside it leaves them out. "Scaled on val": at the temperature that '
        "the model's own val cells ask for, which changes no name. The last rows are no models: "
        "the true labels, labels drawn by their shares of the train cells, and the commonest one. "
        '"Above controls": where between the lowest of these rows, 0, and the true labels, 1, a '
        "model's accuracy, macro-F1 and weighted F1 lie, on average, as Open Problems scales "
        f"scores.{_transductive(comparison)}",
        "",
        *table(summary(comparison)),
    ]
    if by_fold is not None:
        lines += ["", "Fold by fold, means over seeds:", "", *table(by_fold)]
    if len(comparison.differences):
        lines += [
            "",
            "Differences to the best baseline on val, on the same cells, with 95 % paired "
            f"intervals ({comparison.donor_note}). Better or worse: the interval over cells "
            f"leaves out 0. Level: it lies within {comparison.margin:g}. Otherwise nobody can "
            f"tell; nor from types with fewer than {RARE} {split} cells alone.",
            "",
            *table(difference_summary(comparison)),
        ]
    if len(languages := language_summary(comparison)):
        lines += [
            "",
            "Networks that went through the train cells equally often, pretraining included, best "
            "on val first; the difference has a 95 % paired interval over cells:",
            "",
            *table(languages),
        ]
    for model in (comparison.best_network, comparison.best_baseline):
        if model is not None:
            types = comparison.per_class(model)
            types = types[types["n_cells"] + types["n_predicted"] > 0]
            lines += [
                "",
                f"Each cell type by {escape(model.name)}:",
                "",
                *table(_rounded(types, split)),
            ]
    runs = table(_provenance(comparison.models), code_columns=("command",))
    lines += ["", "The runs:", "", *runs]
    addresses = {r.name: r.metrics.get("wandb_url") for m in comparison.models for r in m.runs}
    pages = [
        f"- {escape(name)}: <{quote(url, safe=URL)}>" for name, url in addresses.items() if url
    ]
    return [*lines, *(["", "Their dashboards:", "", *pages] if pages else [])]


def _whose(comparison: Comparison) -> str:
    if comparison.split == "test":
        return "Test scores"
    return (
        "Runs without test (test: false), and beside them all others, on val: epochs, settings "
        "and temperatures are chosen on these cells, so that their scores flatter. Val scores"
    )


def _transductive(comparison: Comparison) -> str:
    if not any(model.is_transductive for model in comparison.models):
        return ""
    return (
        " A transductive model was fitted on these cells too, without their labels: no verdict "
        "takes it for the best comparator."
    )


def _number(value: float, sign: str = "") -> str:
    return "" if pd.isna(value) else f"{value:{sign}.3f}"


def _interval(row: pd.Series, key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return "" if pd.isna(low) else f" [{low:.3f}, {high:.3f}]"


def _intervals(lows: Iterable[float], highs: Iterable[float]) -> list[str]:
    return [
        "" if pd.isna(low) else f"[{low:+.3f}, {high:+.3f}]"
        for low, high in zip(lows, highs, strict=True)
    ]


def _rounded(types: pd.DataFrame, split: str) -> pd.DataFrame:
    types = types.sort_values("n_cells", ascending=False)
    shown = {name: types[name].map("{:.3f}".format) for name in ("precision", "recall", "f1")}
    return pd.DataFrame({**shown, f"{split} cells": types["n_cells"]})


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
                    "commit": short_commit(run.metrics.get("git_commit")),
                    "versions": ", ".join(f"{name} {v}" for name, v in versions.items()),
                    "command": shlex.join(
                        ["python", "02_train_model.py", "--config", f"{run.path}/config.yaml"]
                    ),
                }
            )
    return pd.DataFrame(rows).set_index("run")


def _write_together(texts: dict[Path, str]) -> None:
    """Write files that belong together: a full disk leaves all of them as they were."""
    path = next(iter(texts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            for path, text in texts.items():
                files.enter_context(atomic_file(path)).write_text(text, encoding="utf-8")
    except OSError as error:
        why = error.strerror or str(error)
        raise OSError(error.errno, f"{path}: could not be written ({why})") from None
