"""Linear support vector machine on standardised log expression, its scores made probabilities."""

from typing import Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.svm import LinearSVC

from configs.base import Config
from evaluation.calibration import fit_temperature
from evaluation.classification import log_loss, macro_f1
from models.baselines.features import PrincipalAxes, ValCells, log_normalize, standardize
from models.baselines.linear import LinearClassifier


class LinearSVMConfig(Config):
    """One class against the rest, squared hinge; tuned on val by macro-F1, ties by log-loss."""

    kind: Literal["linear_svm"] = "linear_svm"
    c_grid: list[float] = Field(
        default=[0.1, 1.0, 10.0, 100.0],
        min_length=1,
        description="inverse penalties to try, in scikit-learn's C for cells of mean norm 1",
    )
    max_iter: int = Field(default=10_000, ge=1, description="iterations for each of them")
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

        A support vector machine has scores, not probabilities: they are the softmax of its
        scores divided by one temperature, fitted on val. The order of the classes, and so the
        prediction, is the machine's own.

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
            Orders the coordinates descended on, and draws cells where there are more than
            ``max_cells``.
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
        # liblinear needs minutes instead of a second when cells lie 100 away from the origin.
        norm = np.sqrt(np.mean(np.sum(coordinates**2, axis=1)))
        coordinates /= norm
        val_counts, val_library_size, val_labels = val
        candidates = []
        for c in self.c_grid:
            model = LinearSVC(C=c, dual=True, tol=1e-3, max_iter=self.max_iter, random_state=seed)
            model.fit(coordinates, labels)
            scores = LinearClassifier.from_axes(
                axes, model.coef_ / norm, model.intercept_, model.classes_, n_classes
            )
            temperature = fit_temperature(
                val_labels, scores.predict_proba(val_counts, val_library_size)
            )
            fitted = LinearClassifier(scores.weights / temperature, scores.intercept / temperature)
            probabilities = fitted.predict_proba(val_counts, val_library_size)
            score = macro_f1(val_labels, probabilities), -log_loss(val_labels, probabilities)
            candidates.append((score, fitted))
        return max(candidates, key=lambda candidate: candidate[0])[1]

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> LinearClassifier:
        """Rebuild the fitted model that ``to_arrays`` wrote down."""
        return LinearClassifier.from_arrays(arrays)
