"""Linear support vector machine on log expression, its scores made probabilities."""

import logging
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evaluation.calibration import fit_temperature
from models.baselines.base import LabeledCells
from models.baselines.best_on_val import warn_at_edge
from models.baselines.linear import LinearClassifier
from models.baselines.linear_cells import LinearCells
from models.baselines.linear_fit import fit_linear, squared_hinge
from models.baselines.linear_tuning import LinearConfig, Setting

logger = logging.getLogger(__name__)


class LinearSVMConfig(LinearConfig):
    """One class against the rest, squared hinge; chosen on val by macro-F1, ties by log-loss."""

    kind: Literal["linear_svm"] = "linear_svm"
    c_grid: list[float] = Field(
        default=[0.1, 0.3, 1, 3, 10],
        min_length=1,
        description="inverse penalties to try, in scikit-learn's C for cells of mean norm 1",
    )

    def fit(
        self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int
    ) -> LinearClassifier:
        """Fit one model per setting on train; keep the one that is best on val.

        A support vector machine has scores, not probabilities: they are the softmax of its
        scores divided by one temperature, fitted on val. The order of the classes, and so the
        prediction, is the machine's own.
        """

        def at_its_temperature(scores: LinearClassifier) -> LinearClassifier:
            probabilities = scores.predict_proba(val.counts, val.library_size)
            temperature = fit_temperature(val.labels, probabilities)
            return LinearClassifier(scores.weights / temperature, scores.intercept / temperature)

        grid = product(self.gene_scaling, self.class_weights, self.c_grid)
        settings = [Setting(scaling, weights, c=c) for scaling, weights, c in grid]
        chosen, fitted = self.tune(train, val, n_classes, seed, settings, at_its_temperature)
        logger.info("linear SVM: val cells chose %s", chosen)
        assert chosen.c is not None
        warn_at_edge("c_grid", chosen.c, self.c_grid)
        return fitted

    def fit_setting(
        self,
        setting: Setting,
        cells: LinearCells,
        labels: NDArray[np.int64],
        cell_weights: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return weights and intercepts of the classes present, whose labels are 0, 1, ..."""
        assert setting.c is not None
        return fit_linear(
            cells,
            labels,
            cell_weights,
            squared_hinge,
            c=setting.c,
            penalize_intercept=True,
            max_iter=self.max_iter,
        )
