"""A linear classifier over genes: logistic regression and the linear SVM, once fitted."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import softmax

from models.baselines.features import PrincipalAxes, log_normalize


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
    def from_axes(
        cls,
        axes: PrincipalAxes,
        coefficients: np.ndarray,
        intercept: np.ndarray,
        classes: np.ndarray,
        n_classes: int,
    ) -> "LinearClassifier":
        """Turn scikit-learn's coefficients on principal axes into weights of genes.

        Parameters
        ----------
        coefficients, intercept
            ``(n_present, n_axes)`` and ``(n_present,)``, or one row where two classes are present.
        classes
            Ids of the classes present in train, in scikit-learn's order.
        """
        if len(coefficients) == 1:  # two classes: the second against the first
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercept = np.concatenate([np.zeros_like(intercept), intercept])
        weights = np.zeros((len(axes.axes), n_classes), dtype=np.float32)
        weights[:, classes] = axes.axes @ coefficients.T
        all_intercepts = np.full(n_classes, -np.inf, dtype=np.float32)
        all_intercepts[classes] = intercept - coefficients @ axes.offset
        return cls(weights=weights, intercept=all_intercepts)

    def predict_proba(self, expression: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return class probabilities, ``(n_cells, n_classes)``, of raw counts."""
        scores = log_normalize(expression, library_size) @ self.weights + self.intercept
        return softmax(scores.astype(np.float64), axis=1)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``from_arrays`` needs."""
        return {"weights": self.weights, "intercept": self.intercept}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "LinearClassifier":
        """Rebuild the classifier that ``to_arrays`` wrote down."""
        return cls(weights=arrays["weights"], intercept=arrays["intercept"])
