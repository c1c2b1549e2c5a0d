"""How both linear classifiers are tuned: every setting on a few thousand cells at most, on val."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.baselines.base import BaselineConfig, LabeledCells
from models.baselines.best_on_val import best_on_val
from models.baselines.features import EXACT_CELLS, log_normalize, standardize
from models.baselines.linear import LinearClassifier
from models.baselines.linear_cells import LinearCells, RotatedCells, SparseCells
from models.baselines.linear_fit import balanced

logger = logging.getLogger(__name__)

ClassWeights = Literal["none", "balanced"]
GeneScaling = Literal["standardized", "log_expression"]


@dataclass(frozen=True)
class Setting:
    """One point of a grid: a penalty, or the iterations after which a fit without one stops."""

    gene_scaling: GeneScaling
    class_weights: ClassWeights
    c: float | None = None
    n_iterations: int | None = None


class LinearConfig(BaselineConfig):
    """What the configs of both linear classifiers have in common."""

    class_weights: list[ClassWeights] = Field(
        default=["none", "balanced"],
        min_length=1,
        description="to try: every cell, or every class, weighs the same",
    )
    gene_scaling: list[GeneScaling] = Field(
        default=["standardized", "log_expression"],
        min_length=1,
        description="to try: every gene with a standard deviation of 1, or as it is",
    )
    max_iter: int = Field(default=5000, ge=1, description="L-BFGS iterations for each of them")
    tuning_cells: int = Field(
        default=EXACT_CELLS,
        ge=2,
        description="with more training cells than this, the choice among settings is made with "
        "this many, drawn at random; the chosen one is fitted on all",
    )

    def fit_setting(
        self,
        setting: Setting,
        cells: LinearCells,
        labels: NDArray[np.int64],
        cell_weights: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return weights and intercepts of the classes present, whose labels are 0, 1, ..."""
        raise NotImplementedError

    def tune(
        self,
        train: LabeledCells,
        val: LabeledCells,
        n_classes: int,
        seed: int,
        settings: Sequence[Setting],
        finish: Callable[[LinearClassifier], LinearClassifier] = lambda classifier: classifier,
    ) -> tuple[Setting, LinearClassifier]:
        """Fit every setting on train, choose one on val, return it with its model of all cells.

        Parameters
        ----------
        train, val, n_classes
            As of ``fit``.
        seed
            Draws cells where there are more than ``tuning_cells``.
        settings
            The points of the grid.
        finish
            What is done to each fitted classifier before val cells judge it.
        """
        rng = np.random.default_rng(seed)
        labels, n_cells = train.labels, len(train.labels)
        expression = log_normalize(train.counts, train.library_size)
        rows = np.arange(n_cells)
        if n_cells > self.tuning_cells:
            rows = np.sort(rng.choice(n_cells, self.tuning_cells, replace=False))
        forms: dict[GeneScaling, LinearCells] = {}
        gene_weights = {
            "standardized": standardize(expression),
            "log_expression": np.ones(expression.shape[1]),
        }

        def fitted_on_rows(setting: Setting) -> LinearClassifier:
            if setting.gene_scaling not in forms:
                weights = gene_weights[setting.gene_scaling]
                forms[setting.gene_scaling] = RotatedCells.fit(expression[rows], weights, rng)
            cells = forms[setting.gene_scaling]
            return finish(self._classifier(setting, cells, labels[rows], n_classes))

        setting = best_on_val(settings, fitted_on_rows, val)
        if n_cells <= self.tuning_cells:
            return setting, fitted_on_rows(setting)
        logger.info("settings chosen on %d cells, fitted on all %d", len(rows), n_cells)
        forms.clear()
        cells = SparseCells.fit(expression, gene_weights[setting.gene_scaling], rng)
        return setting, finish(self._classifier(setting, cells, labels, n_classes))

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> LinearClassifier:
        """Rebuild the classifier that ``to_arrays`` wrote down."""
        return LinearClassifier.from_arrays(arrays)

    def _classifier(
        self, setting: Setting, cells: LinearCells, labels: np.ndarray, n_classes: int
    ) -> LinearClassifier:
        """Fit the classes that have cells, and add the others."""
        present, own = np.unique(labels, return_inverse=True)
        cell_weights = balanced(own) if setting.class_weights == "balanced" else np.ones(len(own))
        weights, intercept = self.fit_setting(setting, cells, own, cell_weights)
        weights, center = cells.to_genes(weights)
        return LinearClassifier.with_all_classes(weights, intercept - center, present, n_classes)
