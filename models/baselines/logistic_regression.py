"""Multinomial logistic regression on standardised log expression: the baseline to beat."""

from typing import Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from configs.base import Config
from evaluation.classification import log_loss, macro_f1
from models.baselines.features import PrincipalAxes, ValCells, log_normalize, standardize
from models.baselines.linear import LinearClassifier


class LogisticRegressionConfig(Config):
    """L2 penalty, tuned on val by macro-F1, ties by log-loss."""

    kind: Literal["logistic_regression"] = "logistic_regression"
    c_grid: list[float] = Field(
        default=[1e-3, 1e-2, 1e-1, 1.0, 10.0],
        min_length=1,
        description="inverse penalties to try, in scikit-learn's C",
    )
    max_iter: int = Field(default=2000, ge=1, description="L-BFGS iterations for each of them")
    max_cells: int = Field(
        default=2000,
        ge=2,
        description="exact up to this many training cells; with more, the weights are sought in "
        "the span of this many, drawn at random",
    )

    def fit(
        self,
        expression: csr_matrix,
        library_size: np.ndarray,
        labels: np.ndarray,
        n_classes: int,
        val: ValCells,
        seed: int,
    ) -> LinearClassifier:
        """Fit one model per penalty on train; keep the one that is best on val.

        Parameters
        ----------
        expression
            Raw counts of the training cells, ``(n_cells, n_genes)``.
        library_size
            Counts of each over all genes, ``(n_cells,)``.
        labels
            Class ids, ``(n_cells,)``.
        n_classes
            Number of classes, with or without training cells.
        val
            Counts, library sizes and labels of the val cells.
        seed
            Only draws cells where there are more than ``max_cells``.
        """
        train = log_normalize(expression, library_size)
        axes = PrincipalAxes.fit(
            train,
            standardize(train),
            n_axes=self.max_cells,
            max_cells=self.max_cells,
            rng=np.random.default_rng(seed),
        )
        coordinates = axes.coordinates(train).astype(np.float64)
        val_counts, val_library_size, val_labels = val
        candidates = []
        # From the strongest penalty on, each fit starts where the one before ended.
        model = LogisticRegression(max_iter=self.max_iter, tol=1e-3, warm_start=True)
        for c in sorted(self.c_grid):
            model.set_params(C=c).fit(coordinates, labels)
            fitted = LinearClassifier.from_axes(
                axes, model.coef_, model.intercept_, model.classes_, n_classes
            )
            probabilities = fitted.predict_proba(val_counts, val_library_size)
            score = macro_f1(val_labels, probabilities), -log_loss(val_labels, probabilities)
            candidates.append((score, fitted))
        return max(candidates, key=lambda candidate: candidate[0])[1]

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> LinearClassifier:
        """Rebuild the fitted model that ``to_arrays`` wrote down."""
        return LinearClassifier.from_arrays(arrays)
