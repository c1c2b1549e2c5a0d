"""The interface of a baseline: a config that fits it, and a classifier that predicts."""

from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from scipy.sparse import csr_matrix

from configs.base import Config


class LabeledCells(NamedTuple):
    """Cells of a split, as a baseline is fitted and tuned on them."""

    counts: csr_matrix  # (n_cells, n_genes), raw
    library_size: np.ndarray  # (n_cells,), counts over all genes
    labels: np.ndarray  # (n_cells,), class ids


class Classifier(Protocol):
    """A fitted baseline."""

    def predict_proba(self, counts: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return class probabilities, ``(n_cells, n_classes)``, of raw counts."""
        ...

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``BaselineConfig.from_arrays`` needs."""
        ...


class BaselineConfig(Config):
    """Settings of a baseline; also has a ``kind`` of its own."""

    role: ClassVar[str] = "baseline"  # that a table gives it

    def fit(self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int) -> Classifier:
        """Fit on the train cells; val chooses among settings.

        Parameters
        ----------
        train, val
            The cells.
        n_classes
            Number of classes, with or without training cells.
        seed
            Of whatever is drawn at random.
        """
        raise NotImplementedError

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> Classifier:
        """Rebuild the classifier that ``to_arrays`` wrote down."""
        raise NotImplementedError


def all_classes(probabilities: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Give a class without training cells a column of zeros."""
    columns = np.zeros((len(probabilities), n_classes))
    columns[:, classes] = probabilities
    return columns
