"""Nearest neighbors on principal components: what a clustering-minded biologist would do."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.neighbors import NearestNeighbors

from models.baselines.base import BaselineConfig, LabeledCells
from models.baselines.best_on_val import best_on_val, warn_at_edge
from models.baselines.features import PrincipalAxes, highly_variable, log_normalize


class KNNConfig(BaselineConfig):
    """Neighbors among the training cells; how many is tuned on val by macro-F1."""

    kind: Literal["knn"] = "knn"
    k_grid: list[int] = Field(
        default=[3, 5, 10, 15, 30, 50], min_length=1, description="numbers of neighbors to try"
    )
    n_top_genes: int = Field(default=2000, ge=1, description="highly variable genes in train")
    n_components: int = Field(default=50, ge=1, description="principal components")

    def fit(self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int) -> "KNN":
        """Remember the training cells; choose ``k`` on val.

        The seed only starts the search for the axes where there are thousands of cells.
        """
        labels = train.labels
        expression = log_normalize(train.counts, train.library_size)
        weights = np.zeros(expression.shape[1])
        weights[highly_variable(expression, self.n_top_genes)] = 1.0
        rng = np.random.default_rng(seed)
        axes = PrincipalAxes.fit(expression, weights, n_axes=self.n_components, rng=rng)
        coordinates = axes.coordinates(expression)
        class_counts = np.bincount(labels, minlength=n_classes)
        tried = sorted({min(k, len(labels)) for k in self.k_grid})
        own = labels.astype(np.int64)

        def fitted(k: int) -> KNN:
            return KNN(axes, coordinates, own, class_counts, k)

        k = best_on_val(tried, fitted, val)
        warn_at_edge("k_grid", k, tried, lowest=1)
        return fitted(k)

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> "KNN":
        """Rebuild the fitted model that ``to_arrays`` wrote down."""
        return KNN(
            axes=PrincipalAxes(axes=arrays["axes"], offset=arrays["offset"]),
            coordinates=arrays["coordinates"],
            labels=arrays["labels"],
            class_counts=arrays["class_counts"],
            k=arrays["k"].item(),
        )


@dataclass(frozen=True)
class KNN:
    """The training cells on their principal components, ``(n_cells, n_components)``."""

    axes: PrincipalAxes
    coordinates: np.ndarray
    labels: np.ndarray
    class_counts: np.ndarray
    k: int

    def predict_proba(self, counts: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return class probabilities, ``(n_cells, n_classes)``, of raw counts.

        The share of the neighbors, plus one vote split by the class frequencies: with no vote
        at all a class would be impossible, and one such cell makes the log-loss infinite.
        """
        query = self.axes.coordinates(log_normalize(counts, library_size))
        neighbors = NearestNeighbors(n_neighbors=self.k).fit(self.coordinates)
        found = self.labels[neighbors.kneighbors(query, return_distance=False)]  # (n, k)
        n_classes = len(self.class_counts)
        cells = np.arange(len(found))[:, None]
        votes = np.bincount(
            (cells * n_classes + found).ravel(), minlength=len(found) * n_classes
        ).reshape(len(found), n_classes)
        prior = self.class_counts / self.class_counts.sum()
        return (votes + prior) / (self.k + 1)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``from_arrays`` needs."""
        return {
            "axes": self.axes.axes,
            "offset": self.axes.offset,
            "coordinates": self.coordinates,
            "labels": self.labels,
            "class_counts": self.class_counts,
            "k": np.array([self.k]),
        }
