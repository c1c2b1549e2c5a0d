"""A linear classifier over genes: logistic regression and the linear SVM, once fitted."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import softmax

from models.baselines.features import log_normalize


@dataclass(frozen=True)
class LinearClassifier:
    """Softmax over one weighted sum of log expression per class.

    Attributes
    ----------
    weights
        ``(n_genes, n_classes)``, in log expression: one unit is one unit of ``log1p(CP10K)``.
    intercept
        ``(n_classes,)``; minus infinity for a class without training cells, which so never occurs.
    """

    weights: np.ndarray
    intercept: np.ndarray

    @classmethod
    def with_all_classes(
        cls, weights: np.ndarray, intercept: np.ndarray, present: np.ndarray, n_classes: int
    ) -> "LinearClassifier":
        """Add the classes without training cells, which are never predicted.

        Parameters
        ----------
        weights, intercept
            ``(n_genes, n_present)`` and ``(n_present,)``, in log expression.
        present
            Ids of the classes with training cells, ascending.
        n_classes
            Number of classes.
        """
        all_weights = np.zeros((len(weights), n_classes), dtype=np.float32)
        all_weights[:, present] = weights
        all_intercepts = np.full(n_classes, -np.inf, dtype=np.float32)
        all_intercepts[present] = intercept
        return cls(weights=all_weights, intercept=all_intercepts)

    def predict_proba(self, counts: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return class probabilities, ``(n_cells, n_classes)``, of raw counts."""
        scores = log_normalize(counts, library_size) @ self.weights + self.intercept
        return softmax(scores.astype(np.float64), axis=1)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``from_arrays`` needs."""
        return {"weights": self.weights, "intercept": self.intercept}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "LinearClassifier":
        """Rebuild the classifier that ``to_arrays`` wrote down."""
        return cls(weights=arrays["weights"], intercept=arrays["intercept"])
