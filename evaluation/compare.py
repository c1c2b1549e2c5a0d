"""Finished runs, put beside each other: who is better on the same test cells, and is it chance.

Runs that differ in their seed only are one *model*; its scores are means over seeds. Models are
compared on the same test cells only. What a sentence compares, the best network and the best
baseline, is chosen on val; test is for the comparison itself. Every model's probabilities are
scored twice: as they are, and at the temperature of its own val cells that each run has stored.
Where runs are without test, all are compared on val too, by themselves: "test" below is then val.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import CELL_SCORES, METRICS, SCALED
from evaluation.bootstrap import Metric, interval, resampled_scores
from evaluation.classification import macro_f1, per_class
from evaluation.group_runs import ReadRun, find_runs, group_by_judged_cells, group_by_model
from evaluation.model import Model
from evaluation.outcome import MARGIN, RARE, UNSEEN, Outcome, outcome
from evaluation.pool_folds import pool_folds

# Chosen by the first, ties by the second (lower is better).
CHOSEN_BY = ("macro_f1", "log_loss")
DIFFERENCES = ("accuracy", "macro_f1_common", "macro_f1", "log_loss_scaled")
LOWER_IS_BETTER = ("log_loss", "log_loss_scaled", "ece", "ece_scaled", "brier")
# Means over types, resampled within types; all others but ECE are means over cells. ECE has no
# interval: a resample's is larger than that of the cells it was drawn from.
OVER_TYPES = ("balanced_accuracy", "macro_f1", "macro_f1_common")
MEANS = (*CELL_SCORES, "log_loss_scaled")
COST = ("seconds", "peak_memory_mb", "n_parameters")


@dataclass(frozen=True)
class Comparison:
    """Models and the test cells they were all scored on.

    Attributes
    ----------
    dataset
        Name of the encoded data (the shortest, where several tokenizers encoded the same cells);
        of a comparison on val it says so.
    split
        Whose cells: ``test``, or ``val`` where runs are without test.
    models
        Best on val first.
    labels, donors, class_names
        Of the test cells, in the order of their names.
    n_resamples, seed
        Of the bootstrap.
    margin
        Largest difference that counts as none.
    left_out
        A sentence for every run that is not in it and would have been expected to be.
    folds
        The fold in which each test cell was held out; None where cells were held out once.
    """

    dataset: str
    split: str
    models: list[Model]
    labels: np.ndarray
    donors: np.ndarray
    class_names: list[str]
    n_resamples: int
    seed: int
    margin: float
    left_out: list[str]
    folds: np.ndarray | None = None

    @property
    def n_donors(self) -> int:
        """Donors among the test cells."""
        return len(np.unique(self.donors))

    @property
    def donor_note(self) -> str:
        """Why intervals over donors are missing, or how far to trust them."""
        if self.n_donors < 2:
            cells = f"the {self.split} cells"
            return f"no intervals over donors: {cells} are of one donor, or none is known"
        few = "; with so few they are rough" if self.n_donors < 6 else ""
        return f"intervals over donors are over {self.n_donors}{few}"

    @cached_property
    def n_cells(self) -> np.ndarray:
        """Test cells of every class, ``(n_classes,)``."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    @cached_property
    def common(self) -> np.ndarray:
        """Classes with enough test cells for their score to say something."""
        return np.flatnonzero(self.n_cells >= RARE)

    @property
    def n_rare(self) -> int:
        """Classes that have test cells, but too few."""
        return int((self.n_cells > 0).sum()) - len(self.common)

    @property
    def best_network(self) -> Model | None:
        """The best transformer on val, but for those with shuffled histories."""
        own = (model for model in self.models if not model.is_shuffled)
        return next((model for model in own if model.is_transformer), None)

    @property
    def best_without_attention(self) -> Model | None:
        """The best network without attention on val."""
        return next((model for model in self.models if model.is_without_attention), None)

    @property
    def ours(self) -> Model | None:
        """What is judged as ours: the best committee on val that has a transformer, or a network.

        Committees go first because the best of many networks on few val cells is chance.
        """
        own = [model for model in self.models if model.has_network and not model.is_shuffled]
        committees = [model for model in self._committees if model.has_attention]
        return next(iter(committees or own), None)

    @property
    def best_committee_without_attention(self) -> Model | None:
        """The best committee on val that has a network in it, and no transformer."""
        found = (model for model in self._committees if model.has_network)
        return next((model for model in found if not model.has_attention), None)

    @property
    def best_committee_without_networks(self) -> Model | None:
        """The best committee on val that has no network in it: the control of what those add."""
        return next((model for model in self._committees if not model.has_network), None)

    @property
    def _committees(self) -> list[Model]:
        return [model for model in self.models if model.has_members]

    @property
    def best_baseline(self) -> Model | None:
        """The best baseline on val."""
        return next((model for model in self.models if model.role == "baseline"), None)

    @property
    def best_comparator(self) -> Model | None:
        """The best comparator on val that did not see the cells it predicts."""
        alone = (model for model in self.models if not model.is_transductive)
        return next((model for model in alone if model.role == "comparator"), None)

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """Name -> score of the probabilities as they are."""
        return METRICS | {"macro_f1_common": partial(macro_f1, classes=self.common)}

    def of_seeds(self, model: Model, name: str) -> list[float]:
        """Return a score of every run of a model."""
        probabilities = model.scaled if name.endswith("_scaled") else model.test
        metric = self.metrics[name.removesuffix("_scaled")]
        return [metric(self.labels, p) for p in probabilities]

    @cached_property
    def _over_cells(self) -> dict[str, np.ndarray]:
        return self._resampled()

    @cached_property
    def _over_donors(self) -> dict[str, np.ndarray]:
        if self.n_donors < 2:
            unknown = np.full((1, len(self.models)), np.nan)
            return dict.fromkeys(self._over_cells, unknown)
        return self._resampled(donors=self.donors)

    def _resampled(self, donors: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Score -> its values on the resamples, ``(n_resamples, n_models)``."""
        one_hot, added = [], []
        for model in self.models:
            one_hot.append([np.eye(len(self.class_names))[p.argmax(axis=1)] for p in model.test])
            pairs = zip(model.test, model.scaled, strict=True)
            added.append([self._added(probabilities, scaled) for probabilities, scaled in pairs])
        means = {name: partial(_mean, column=k) for k, name in enumerate(MEANS)}
        over_types = {name: self.metrics[name] for name in OVER_TYPES}
        types = self.labels if donors is None else None
        found: dict[str, np.ndarray] = {}
        for models, metrics, within in (
            (added, means, None),
            (one_hot, {"weighted_f1": METRICS["weighted_f1"]}, None),
            (one_hot, over_types, types),
        ):
            values = resampled_scores(
                self.labels, models, metrics, types=within, donors=donors,
                n_resamples=self.n_resamples, seed=self.seed,
            )  # fmt: skip
            found |= {name: values[:, :, k] for k, name in enumerate(metrics)}
        return found

    def _added(self, probabilities: np.ndarray, scaled: np.ndarray) -> np.ndarray:
        """Return what each cell adds to the scores that are means over cells, ``(n, k)``."""
        columns = [f(self.labels, probabilities) for f in CELL_SCORES.values()]
        return np.column_stack([*columns, CELL_SCORES["log_loss"](self.labels, scaled)])

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a model: test scores with 95 % intervals, val macro-F1, cost.

        A score's columns are its mean over seeds, ``_sd`` over seeds, ``_low`` and ``_high`` over
        cells, ``_low_donors`` and ``_high_donors``. ``macro_f1_common`` is over the types with
        enough test cells, ``_scaled`` scores are of probabilities scaled on val.
        """
        rows = []
        for m, model in enumerate(self.models):
            row: dict[str, object] = {
                "dataset": self.dataset,
                "model": model.name,
                "kind": model.runs[0].config.model.kind,
                "role": model.role,
                "transductive": model.is_transductive,
                "history": model.history,
                "seeds": " ".join(map(str, model.seeds)),
                "epochs": model.epochs,
                "val_macro_f1": model.val["macro_f1"],
                "temperature": np.mean(model.temperatures),
            }
            for name in [*self.metrics, *(f"{name}_scaled" for name in SCALED)]:
                of_seeds = self.of_seeds(model, name)
                row[name] = np.mean(of_seeds)
                row[f"{name}_sd"] = np.std(of_seeds, ddof=1) if len(of_seeds) > 1 else np.nan
                for suffix, resampled in (("", self._over_cells), ("_donors", self._over_donors)):
                    if not name.startswith("ece"):
                        low, high = interval(resampled[name][:, m])
                        row[f"{name}_low{suffix}"], row[f"{name}_high{suffix}"] = low, high
            rows.append(row | {key: model.cost(key) for key in COST})
        return pd.DataFrame(rows)

    def difference(self, model: Model, reference: Model, metric: str) -> dict:
        """Score of a model minus that of another one, on the same cells, with 95 % intervals.

        With it goes what it allows to be said, ``outcome``, and why no more, ``reason``.
        """
        names = [m.name for m in self.models]
        a, b = names.index(model.name), names.index(reference.name)
        found: dict = {"model": model.name, "against": reference.name, "metric": metric}
        found["difference"] = self.scores[metric][a] - self.scores[metric][b]
        for suffix, resampled in (("", self._over_cells), ("_donors", self._over_donors)):
            low, high = interval(resampled[metric][:, a] - resampled[metric][:, b])
            found[f"low{suffix}"], found[f"high{suffix}"] = low, high
        said = self._outcome(metric, found["low"], found["high"])
        if metric == "macro_f1" and self.n_rare and said.word != "cannot tell":
            if self.difference(model, reference, "macro_f1_common")["outcome"] != said.word:
                why = f"it is made by types with fewer than {RARE} test cells"
                said = Outcome("cannot tell", why)
        return found | {"outcome": said.word, "reason": said.reason}

    def _outcome(self, metric: str, low: float, high: float) -> Outcome:
        sizes = self.n_cells[self.n_cells >= (RARE if metric == "macro_f1_common" else 1)]
        resolution = UNSEEN / len(self.labels)
        if metric in OVER_TYPES and len(sizes):
            resolution = UNSEEN / (len(sizes) * sizes.min())
        return outcome(
            low,
            high,
            margin=self.margin,
            n_cells=len(self.labels),
            resolution=resolution,
            lower_is_better=metric in LOWER_IS_BETTER,
        )

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
        return pd.DataFrame(rows, columns=[*columns, "high_donors", "outcome", "reason"])

    def per_class(self, model: Model) -> pd.DataFrame:
        """Precision, recall, F1 of each class, means over seeds, and its number of test cells."""
        tables = [per_class(self.labels, p.argmax(axis=1), self.class_names) for p in model.test]
        return pd.concat(tables).groupby(level=0, sort=False).mean().astype({"n_cells": int})


def compare_runs(
    folder: str | Path, *, n_resamples: int = 1000, seed: int = 0, margin: float = MARGIN
) -> list[Comparison]:
    """Open all runs of a folder and compare those of the same cells.

    Parameters
    ----------
    folder
        The folder of runs; what is not a run (figures, notebooks) is passed over, and a run that
        cannot be read is named in ``left_out``.
    n_resamples, seed
        Of the bootstrap.
    margin
        Largest difference that counts as none.

    Returns
    -------
    One comparison for every set of cells and split, by name.

    Raises
    ------
    ComparisonError
        If there is no run, or if runs of one dataset saw other cells or another split.
    """
    found, left_out = find_runs(folder)
    runs, incomplete = pool_folds(found)
    comparisons = []
    for dataset, split, same_cells in group_by_judged_cells(runs):
        by_model, once = group_by_model(same_cells)
        models = [_model(name, seeds) for name, seeds in by_model.items()]
        by, ties_by = CHOSEN_BY
        models.sort(key=lambda model: (-model.val[by], model.val[ties_by]))
        first = same_cells[0]
        comparison = Comparison(
            dataset,
            split,
            models,
            labels=first.test.labels,
            donors=first.test.batches,
            class_names=first.class_names,
            n_resamples=n_resamples,
            seed=seed,
            margin=margin,
            left_out=[*left_out, *incomplete, *once],
            folds=first.folds,
        )
        comparisons.append(comparison)
    return comparisons


def _model(name: str, seeds: list[ReadRun]) -> Model:
    val = {
        "macro_f1": [METRICS["macro_f1"](r.val.labels, r.val.probabilities) for r in seeds],
        "log_loss": [METRICS["log_loss"](r.val.labels, r.val.arrays["scaled"]) for r in seeds],
    }
    return Model(
        name,
        runs=[run for read in seeds for run in read.runs],
        test=[read.test.probabilities for read in seeds],
        scaled=[read.test.arrays["scaled"] for read in seeds],
        temperatures=[temperature for read in seeds for temperature in read.temperatures],
        val={key: float(np.mean(values)) for key, values in val.items()},
    )


def _mean(_: np.ndarray, added: np.ndarray, *, weights: np.ndarray, column: int) -> float:
    return float(np.average(added[:, column], weights=weights))
