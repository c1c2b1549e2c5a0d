"""Finished runs, put beside each other: who is better on the same test cells, and is it chance.

Runs that differ in their seed only are one *model*; its scores are means over seeds. Models are
compared on the same test cells only. What a sentence compares, the best network and the best
baseline, is chosen on val; test is for the comparison itself.
"""

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from evaluation import METRICS
from evaluation.bootstrap import interval, resampled_scores
from evaluation.classification import per_class
from evaluation.run_folder import RunFolder

# Chosen by the first, ties by the second (lower is better).
CHOSEN_BY = ("macro_f1", "log_loss")
DIFFERENCES = ("accuracy", "macro_f1", "log_loss")
LOWER_IS_BETTER = ("log_loss", "ece", "brier")
# With fewer test cells a type's score says little, and macro-F1 weighs it like any other.
RARE = 10
# What two runs of one model may differ in.
NOT_THE_MODEL = {"name", "seed", "tracking", "runs_dir", "device"}


class ComparisonError(ValueError):
    """Runs cannot stand in one table, or there are none."""


@dataclass(frozen=True)
class Model:
    """Runs that differ in their seed only.

    Attributes
    ----------
    name
        What their names have in common.
    runs
        In the order of their seeds.
    test
        Probabilities of every run, ``(n_cells, n_classes)``, cells in the order of the comparison.
    """

    name: str
    runs: list[RunFolder]
    test: list[np.ndarray]

    @property
    def is_baseline(self) -> bool:
        """Whether it is one of scikit-learn's, and not a network."""
        return hasattr(self.runs[0].config.model, "fit")

    @property
    def history(self) -> Literal["none", "previous", "shuffled"]:
        """Whether a cell's tokens tell of the time point before, or of another cell's."""
        previous = self.runs[0].meta["tokenizer"].get("previous")
        if self.is_baseline or previous is None:
            return "none"
        return "shuffled" if previous["shuffle"] else "previous"

    def val_score(self, metric: str) -> float:
        """Mean over seeds of a score on the val cells."""
        return float(np.mean([run.metrics["val"][metric] for run in self.runs]))

    def cost(self, key: str) -> float:
        """Mean over seeds of ``seconds``, ``peak_memory_mb`` or ``n_parameters``."""
        values = [run.metrics.get(key) for run in self.runs]
        return float(np.mean([np.nan if value is None else value for value in values]))


@dataclass(frozen=True)
class Comparison:
    """Models and the test cells they were all scored on.

    Attributes
    ----------
    dataset
        Name of the encoded data (the shortest, where several tokenisers encoded the same cells).
    models
        Best on val first.
    labels, donors, class_names
        Of the test cells, in the order of their names.
    n_resamples, seed
        Of the bootstrap.
    """

    dataset: str
    models: list[Model]
    labels: np.ndarray
    donors: np.ndarray
    class_names: list[str]
    n_resamples: int
    seed: int

    @property
    def n_donors(self) -> int:
        """Donors among the test cells."""
        return len(np.unique(self.donors))

    @property
    def donor_note(self) -> str:
        """Why intervals over donors are missing, or how far to trust them."""
        if self.n_donors < 2:
            return "no intervals over donors: the test cells are of one donor, or none is known"
        few = "; with so few they are rough" if self.n_donors < 6 else ""
        return f"intervals over donors are over {self.n_donors}{few}"

    @property
    def best_network(self) -> Model | None:
        """The best network on val."""
        return next((model for model in self.models if not model.is_baseline), None)

    @property
    def best_baseline(self) -> Model | None:
        """The best baseline on val."""
        return next((model for model in self.models if model.is_baseline), None)

    @cached_property
    def _over_cells(self) -> np.ndarray:
        return resampled_scores(
            self.labels,
            [model.test for model in self.models],
            METRICS,
            n_resamples=self.n_resamples,
            seed=self.seed,
        )

    @cached_property
    def _over_donors(self) -> np.ndarray:
        if self.n_donors < 2:
            return np.full((1, len(self.models), len(METRICS)), np.nan)
        return resampled_scores(
            self.labels,
            [model.test for model in self.models],
            METRICS,
            n_resamples=self.n_resamples,
            seed=self.seed,
            donors=self.donors,
        )

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a model: test scores with 95 % intervals, val macro-F1, cost.

        A score's columns are its mean over seeds, ``_sd`` over seeds, ``_low`` and ``_high`` over
        cells, ``_low_donors`` and ``_high_donors``.
        """
        low, high = interval(self._over_cells)
        low_donors, high_donors = interval(self._over_donors)
        rows = []
        for m, model in enumerate(self.models):
            row: dict[str, object] = {
                "dataset": self.dataset,
                "model": model.name,
                "kind": model.runs[0].config.model.kind,
                "history": model.history,
                "seeds": " ".join(str(run.config.seed) for run in model.runs),
                "val_macro_f1": model.val_score("macro_f1"),
            }
            for k, (name, metric) in enumerate(METRICS.items()):
                of_seeds = [metric(self.labels, probabilities) for probabilities in model.test]
                row[name] = np.mean(of_seeds)
                row[f"{name}_sd"] = np.std(of_seeds, ddof=1) if len(of_seeds) > 1 else np.nan
                row[f"{name}_low"], row[f"{name}_high"] = low[m, k], high[m, k]
                row[f"{name}_low_donors"] = low_donors[m, k]
                row[f"{name}_high_donors"] = high_donors[m, k]
            row |= {key: model.cost(key) for key in ("seconds", "peak_memory_mb", "n_parameters")}
            rows.append(row)
        return pd.DataFrame(rows)

    def difference(self, model: Model, reference: Model, metric: str) -> dict:
        """Score of a model minus that of another one, on the same cells, with 95 % intervals."""
        names = [m.name for m in self.models]
        a, b = names.index(model.name), names.index(reference.name)
        k = list(METRICS).index(metric)
        value = self.scores[metric][a] - self.scores[metric][b]
        low, high = interval(self._over_cells[:, a, k] - self._over_cells[:, b, k])
        low_donors, high_donors = interval(self._over_donors[:, a, k] - self._over_donors[:, b, k])
        outcome = "tie"
        if low > 0 or high < 0:
            outcome = "better" if (low > 0) != (metric in LOWER_IS_BETTER) else "worse"
        return {
            "model": model.name,
            "against": reference.name,
            "metric": metric,
            "difference": value,
            "low": low,
            "high": high,
            "low_donors": low_donors,
            "high_donors": high_donors,
            "outcome": outcome,
        }

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Every model against the best baseline on val; empty without a baseline."""
        reference = self.best_baseline
        rows = [
            self.difference(model, reference, metric)
            for metric in DIFFERENCES
            for model in self.models
            if reference is not None and model is not reference
        ]
        columns = ["model", "against", "metric", "difference", "low", "high", "low_donors"]
        return pd.DataFrame(rows, columns=[*columns, "high_donors", "outcome"])

    def per_class(self, model: Model) -> pd.DataFrame:
        """Precision, recall, F1 of each class, means over seeds, and its number of test cells."""
        tables = [per_class(self.labels, p.argmax(axis=1), self.class_names) for p in model.test]
        return pd.concat(tables).groupby(level=0, sort=False).mean().astype({"n_cells": int})

    def verdict(self) -> str:
        """Say in a sentence or two whether this data needs a transformer."""
        network, baseline = self.best_network, self.best_baseline
        if network is None or baseline is None:
            missing = "transformer" if network is None else "baseline"
            return (
                f"{self.dataset}: cannot say whether this data needs a transformer: no {missing} "
                "was run on it."
            )
        found = self.difference(network, baseline, "macro_f1")
        answer = {
            "better": "yes, this data needs a transformer",
            "tie": "no, this data does not need a transformer",
            "worse": "no, this data does not need a transformer",
        }[found["outcome"]]
        by_name = self.scores.set_index("model")["macro_f1"]
        n = len(network.runs)
        n_cells = np.bincount(self.labels, minlength=len(self.class_names))
        n_rare = int(((n_cells > 0) & (n_cells < RARE)).sum())
        caution = f"; {n_rare} types have fewer than {RARE} test cells" if n_rare else ""
        accuracy = self.difference(network, baseline, "accuracy")
        return (
            f"{self.dataset}: {answer}: on {len(self.labels):,} test cells {network.name} "
            f"({'one seed' if n == 1 else f'mean of {n} seeds'}) has a macro-F1 of "
            f"{by_name[network.name]:.3f} and the best baseline, {baseline.name}, "
            f"{by_name[baseline.name]:.3f}: {_difference_text(found, self.n_donors)}{caution}. In "
            f"accuracy: {_difference_text(accuracy, self.n_donors)}."
        )

    def history_verdict(self) -> str:
        """Say whether the previous time point helps; empty where no run could tell.

        Compared are networks of one config, with their own history and with another cell's.
        """
        of_config: dict[str, dict[str, Model]] = defaultdict(dict)
        for model in self.models:
            if not model.is_baseline:
                key = _config_key(model.runs[0], but=NOT_THE_MODEL | {"data"})
                of_config[key].setdefault(model.history, model)
        for kinds in of_config.values():  # best on val first
            if {"previous", "shuffled"} <= kinds.keys():
                own = kinds["previous"]
                control = self.difference(own, kinds["shuffled"], "macro_f1")
                helps = {"better": "helps", "tie": "does not help", "worse": "harms"}
                text = (
                    f"{self.dataset}: history {helps[control['outcome']]}: {own.name} against "
                    f"the same with histories shuffled between cells, "
                    f"{_difference_text(control, self.n_donors)}"
                )
                if "none" in kinds:
                    without = self.difference(own, kinds["none"], "macro_f1")
                    text += (
                        f"; against the same without, {_difference_text(without, self.n_donors)}"
                    )
                return text + "."
        return ""


def compare_runs(
    folder: str | Path, *, n_resamples: int = 1000, seed: int = 0
) -> list[Comparison]:
    """Open all runs of a folder and compare those of the same cells.

    Parameters
    ----------
    folder
        The folder of runs; what is not a run (figures, notebooks) and what is not finished is
        passed over.
    n_resamples, seed
        Of the bootstrap.

    Returns
    -------
    One comparison for every set of cells and split, by name.

    Raises
    ------
    ComparisonError
        If there is no run, or if runs of one dataset saw other cells or another split.
    RunFolderError
        If a run is damaged.
    """
    runs = find_runs(folder)
    return [
        _comparison(dataset, same_cells, n_resamples, seed)
        for dataset, same_cells in group_by_cells(runs).items()
    ]


def find_runs(folder: str | Path) -> list[RunFolder]:
    """Open every run of a folder.

    Raises
    ------
    ComparisonError, RunFolderError
        If there is none, or one is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ComparisonError(f"{folder}: no such folder; train with 02_train_model.py first")
    candidates = [path for path in sorted(folder.iterdir()) if (path / "config.yaml").exists()]
    runs = [RunFolder(path) for path in candidates if not path.name.startswith(".")]
    if not runs:
        raise ComparisonError(f"{folder}: holds no run; train with 02_train_model.py first")
    return runs


def group_by_cells(runs: list[RunFolder]) -> dict[str, list[RunFolder]]:
    """Put runs of the same cells and split together, under the name of their data.

    Different tokenisers of the same cells stand together.

    Raises
    ------
    ComparisonError
        If data of one name hold other cells or another split than when another run was trained.
    """
    groups: dict[tuple[str, str], list[RunFolder]] = defaultdict(list)
    cells_of_name: dict[str, tuple[str, str]] = {}
    for run in runs:
        name = run.meta["name"]
        cells = (run.metrics["data_sha256"], run.metrics["split_sha256"])
        if cells_of_name.setdefault(name, cells) != cells:
            other = groups[cells_of_name[name]][0]
            what = "cells" if cells[0] != cells_of_name[name][0] else "split of the cells"
            raise ComparisonError(
                f"{other.path} and {run.path} were both trained on {name!r} but on another "
                f"{what}: their scores cannot be compared. Train one of them again, or move it to "
                "another folder"
            )
        groups[cells].append(run)
    by_name = {min((r.meta["name"] for r in group), key=len): group for group in groups.values()}
    return dict(sorted(by_name.items()))


def _comparison(dataset: str, runs: list[RunFolder], n_resamples: int, seed: int) -> Comparison:
    first = runs[0].predictions("test")
    order = np.argsort(first.cell_names)
    groups: dict[str, list[RunFolder]] = defaultdict(list)
    test: dict[str, np.ndarray] = {}
    for run in runs:
        cells = run.predictions("test")
        own_order = np.argsort(cells.cell_names)
        if (
            run.class_names != runs[0].class_names
            or not np.array_equal(cells.cell_names[own_order], first.cell_names[order])
            or not np.array_equal(cells.labels[own_order], first.labels[order])
        ):
            raise ComparisonError(
                f"{run.path} has other test cells or classes than {runs[0].path}, though their "
                "hashes agree: one of them was edited. Delete it and train again"
            )
        test[run.name] = cells.probabilities[own_order]
        groups[_config_key(run, but=NOT_THE_MODEL)].append(run)
    names = _names([[run.name for run in group] for group in groups.values()])
    models = [
        Model(
            name,
            sorted(group, key=lambda run: run.config.seed),
            test=[test[run.name] for run in group],
        )
        for name, group in zip(names, groups.values(), strict=True)
    ]
    by, ties_by = CHOSEN_BY
    models.sort(key=lambda model: (-model.val_score(by), model.val_score(ties_by)))
    return Comparison(
        dataset,
        models,
        labels=first.labels[order],
        donors=first.batches[order],
        class_names=runs[0].class_names,
        n_resamples=n_resamples,
        seed=seed,
    )


def _config_key(run: RunFolder, but: set[str]) -> str:
    return run.config.model_dump_json(exclude=but)


def _names(groups: list[list[str]]) -> list[str]:
    """Name each group by what its runs' names share, without what all groups' names end in."""
    names = [os.path.commonprefix(group) for group in groups]
    names = [re.sub(r"[-_.]+((seed|s)\d*)?$", "", name) or name for name in names]
    shared = os.path.commonprefix([name[::-1] for name in names])[::-1]
    ending = shared[shared.find("_") :] if "_" in shared else ""
    if len(names) > 1 and ending:  # such as the dataset's name
        names = [name.removesuffix(ending) or name for name in names]
    if len(set(names)) < len(names):
        return [group[0] for group in groups]
    return names


def _difference_text(found: dict, n_donors: int) -> str:
    text = f"{found['difference']:+.3f} (95 % interval {found['low']:+.3f} to {found['high']:+.3f}"
    if n_donors > 1:
        text += (
            f" over cells, {found['low_donors']:+.3f} to {found['high_donors']:+.3f} over donors"
        )
    outcome = {"tie": "a tie (no difference beyond chance)", "better": "better", "worse": "worse"}[
        found["outcome"]
    ]
    return f"{text}), {outcome}"
