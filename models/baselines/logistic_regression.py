"""Multinomial logistic regression on log expression: the baseline to beat."""

import logging
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from models.baselines.base import LabeledCells
from models.baselines.best_on_val import warn_at_edge
from models.baselines.linear import LinearClassifier
from models.baselines.linear_cells import LinearCells
from models.baselines.linear_fit import cross_entropy, early_stopped, fit_linear
from models.baselines.linear_tuning import LinearConfig, Setting

logger = logging.getLogger(__name__)


class LogisticRegressionConfig(LinearConfig):
    """L2 penalty and converged, or none and stopped early; chosen on val."""

    kind: Literal["logistic_regression"] = "logistic_regression"
    c_grid: list[float] = Field(
        default=[0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000],
        description="inverse penalties to try, in scikit-learn's C for cells of mean norm 1; each "
        "fit has converged",
    )
    early_stopped: list[int] = Field(
        default=[5, 10, 15, 20, 30, 50],
        description="numbers of L-BFGS iterations to try without a penalty: stopping early is "
        "what keeps those weights small",
    )

    @model_validator(mode="after")
    def _has_a_candidate(self) -> "LogisticRegressionConfig":
        if not self.c_grid and not self.early_stopped:
            raise ValueError("c_grid and early_stopped are both empty: nothing to fit")
        return self

    def fit(
        self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int
    ) -> LinearClassifier:
        """Fit one model per setting on train; keep the one that is best on val."""
        forms = list(product(self.gene_scaling, self.class_weights))
        settings = [Setting(*form, c=c) for form in forms for c in self.c_grid]
        settings += [Setting(*form, n_iterations=n) for form in forms for n in self.early_stopped]
        chosen, fitted = self.tune(train, val, n_classes, seed, settings)
        logger.info("logistic regression: val cells chose %s", chosen)
        if chosen.c is not None:
            warn_at_edge("c_grid", chosen.c, self.c_grid)
        if chosen.n_iterations is not None:
            warn_at_edge("early_stopped", chosen.n_iterations, self.early_stopped, lowest=1)
        return fitted

    def fit_setting(
        self,
        setting: Setting,
        cells: LinearCells,
        labels: NDArray[np.int64],
        cell_weights: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return weights and intercepts of the classes present, whose labels are 0, 1, ..."""
        if setting.c is None:
            assert setting.n_iterations is not None
            return early_stopped(
                cells, labels, cell_weights, cross_entropy, n_iterations=setting.n_iterations
            )
        return fit_linear(
            cells,
            labels,
            cell_weights,
            cross_entropy,
            c=setting.c,
            penalize_intercept=False,
            max_iter=self.max_iter,
        )
