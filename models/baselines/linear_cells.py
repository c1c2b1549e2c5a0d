"""Training cells as a linear classifier sees them: centered, of mean norm 1, in one of two forms.

Few cells are rotated onto all of their principal axes: weights under an L2 penalty lie in the span
of the cells, so nothing is lost, and there are ``n_cells`` weights a class instead of ``n_genes``.
Many cells stay sparse. Both know their leading axes, with which a solver takes steps that are as
long along an axis of little variance as along one of much.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags

from models.baselines.features import PrincipalAxes, mean_and_std

# Beyond this many axes the variance is nearly level; all of them save no iteration more.
LEADING_AXES = 50


@dataclass(frozen=True)
class RotatedCells:
    """Cells on all of their principal axes, ``(n_cells, n_axes)``, dense."""

    coordinates: NDArray[np.float64]
    variance: NDArray[np.float64]
    axes: PrincipalAxes
    norm: float

    @classmethod
    def fit(
        cls, expression: csr_matrix, weights: np.ndarray, rng: np.random.Generator
    ) -> "RotatedCells":
        """Rotate log expression ``(n_cells, n_genes)``, each gene times its weight."""
        n_cells = expression.shape[0]
        axes = PrincipalAxes.fit(expression, weights, n_axes=n_cells, exact_cells=n_cells, rng=rng)
        coordinates = axes.coordinates(expression).astype(np.float64)
        norm = _typical_norm(float(np.sum(coordinates**2)), n_cells)
        coordinates /= norm
        variance = np.mean(coordinates**2, axis=0)
        return cls(coordinates=coordinates, variance=variance, axes=axes, norm=norm)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells, and of weights a class."""
        return self.coordinates.shape[0], self.coordinates.shape[1]

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Return cells times weights, ``(n_cells, n_classes)``."""
        return self.coordinates @ weights

    def gradient(self, residuals: np.ndarray) -> np.ndarray:
        """Return transposed cells times residuals, ``(n_weights, n_classes)``."""
        return self.coordinates.T @ residuals

    def precondition(self, values: np.ndarray, strength: float) -> np.ndarray:
        """Divide by ``sqrt(1 + strength * variance)`` along every axis."""
        return values / np.sqrt(1 + strength * self.variance)[:, None]

    def to_genes(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights in log expression, ``(n_genes, n_classes)``, and what they center by."""
        return self.axes.axes @ weights / self.norm, self.axes.offset @ weights / self.norm


@dataclass(frozen=True)
class SparseCells:
    """Cells on all genes, ``(n_cells, n_genes)``: a sparse matrix minus one row of means."""

    scaled: csr_matrix
    shift: NDArray[np.float64]
    gene_weights: NDArray[np.float64]
    leading: NDArray[np.float64]
    variance: NDArray[np.float64]
    other_variance: float
    norm: float

    @classmethod
    def fit(
        cls, expression: csr_matrix, weights: np.ndarray, rng: np.random.Generator
    ) -> "SparseCells":
        """Scale log expression ``(n_cells, n_genes)`` by the weights of its genes.

        Parameters
        ----------
        rng
            Starts the search for the leading axes, which change the steps and not the answer.
        """
        n_cells, n_genes = expression.shape
        mean, std = mean_and_std(expression)
        norm = _typical_norm(n_cells * float(np.sum((std * weights) ** 2)), n_cells)
        gene_weights = weights / norm
        axes = PrincipalAxes.fit(
            expression, gene_weights, n_axes=min(LEADING_AXES, n_genes), exact_cells=0, rng=rng
        )
        variance = np.mean(axes.coordinates(expression).astype(np.float64) ** 2, axis=0)
        # The axes have the weights of the genes folded in; as directions they do not.
        folded = gene_weights[:, None]
        leading = np.divide(axes.axes, folded, out=np.zeros(axes.axes.shape), where=folded > 0)
        return cls(
            scaled=csr_matrix(expression @ diags(gene_weights), dtype=np.float64),
            shift=mean * gene_weights,
            gene_weights=gene_weights,
            leading=leading,
            variance=variance,
            other_variance=max(1 - float(variance.sum()), 0.0) / min(n_cells, n_genes),
            norm=norm,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells, and of weights a class."""
        return self.scaled.shape

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Return cells times weights, ``(n_cells, n_classes)``."""
        return self.scaled @ weights - self.shift @ weights

    def gradient(self, residuals: np.ndarray) -> np.ndarray:
        """Return transposed cells times residuals, ``(n_weights, n_classes)``."""
        return self.scaled.T @ residuals - np.outer(self.shift, residuals.sum(axis=0))

    def precondition(self, values: np.ndarray, strength: float) -> np.ndarray:
        """Divide by ``sqrt(1 + strength * variance)`` along the leading axes, level beyond."""
        other = 1 / np.sqrt(1 + strength * self.other_variance)
        factor = 1 / np.sqrt(1 + strength * self.variance) - other
        return other * values + self.leading @ (factor[:, None] * (self.leading.T @ values))

    def to_genes(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights in log expression, ``(n_genes, n_classes)``, and what they center by."""
        return self.gene_weights[:, None] * weights, self.shift @ weights


LinearCells = RotatedCells | SparseCells


def _typical_norm(total: float, n_cells: int) -> float:
    """Return the root mean square norm of the cells; 1 where all are alike."""
    return float(np.sqrt(total / n_cells)) if total > 0 else 1.0
