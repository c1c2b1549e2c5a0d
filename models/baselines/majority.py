"""The floor: every cell gets the class frequencies of the training cells."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.sparse import csr_matrix

from models.baselines.base import BaselineConfig, LabeledCells


class MajorityConfig(BaselineConfig):
    """Nothing to choose."""

    kind: Literal["majority"] = "majority"
    is_control: ClassVar[bool] = True  # it looks at no gene, and figures leave it out

    def fit(self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int) -> "Majority":
        """Count the training labels; nothing else is looked at."""
        frequencies = np.bincount(train.labels, minlength=n_classes) / len(train.labels)
        return Majority(frequencies=frequencies.astype(np.float32))

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> "Majority":
        """Rebuild the fitted model that ``to_arrays`` wrote down."""
        return Majority(frequencies=arrays["frequencies"])


@dataclass(frozen=True)
class Majority:
    """Share of every class among the training cells, ``(n_classes,)``."""

    frequencies: np.ndarray

    def predict_proba(self, counts: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return the same class probabilities for every cell, ``(n_cells, n_classes)``."""
        return np.tile(self.frequencies.astype(np.float64), (counts.shape[0], 1))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``from_arrays`` needs."""
        return {"frequencies": self.frequencies}
