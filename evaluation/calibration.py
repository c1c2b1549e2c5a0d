"""Calibration: expected calibration error, Brier score, temperature scaling, a threshold."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from evaluation.classification import Weights

N_BINS = 15


def ece(labels: np.ndarray, probabilities: np.ndarray, *, weights: Weights = None) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, on average.

    Cells are put in 15 bins of equal width by the probability of their predicted class; the
    error is the mean over cells of ``|accuracy - confidence|`` of their bin.

    References
    ----------
    Guo et al. 2017, On calibration of modern neural networks, section 2.
    """
    if weights is None:
        weights = np.ones(len(labels))
    gap = weights * ((probabilities.argmax(axis=1) == labels) - probabilities.max(axis=1))
    by_bin = np.bincount(_bins(probabilities), gap, minlength=N_BINS)
    return float(np.abs(by_bin).sum() / weights.sum())


def brier(labels: np.ndarray, probabilities: np.ndarray, *, weights: Weights = None) -> float:
    """Return the mean squared distance of the probabilities to the truth, summed over classes."""
    return float(np.average(squared_distance(labels, probabilities), weights=weights))


def squared_distance(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the squared distance of each cell's probabilities to the truth, from 0 to 2."""
    own = probabilities[np.arange(len(labels)), labels]
    return (probabilities**2).sum(axis=1) - 2 * own + 1


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Return mean confidence, accuracy and number of cells of every bin that has cells."""
    cells = pd.DataFrame(
        {
            "bin": _bins(probabilities),
            "confidence": probabilities.max(axis=1),
            "accuracy": probabilities.argmax(axis=1) == labels,
        }
    )
    bins = cells.groupby("bin")
    return bins.mean().assign(n_cells=bins.size())


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature that makes the probabilities of val cells fit their labels best.

    Above 1 the classifier was too sure of itself, below 1 not sure enough. The predicted class
    does not change. One made-up cell that is really of its second most probable class counts with
    the others (the rule of succession): val cells that are all right are no proof that no cell is
    ever wrong, and would ask for a temperature of 0.

    References
    ----------
    Guo et al. 2017, On calibration of modern neural networks, section 4.2.
    """
    logs = _log(probabilities)
    n_cells = len(labels)
    own = logs[np.arange(n_cells), labels]
    second = np.sort(logs, axis=1)[:, -2] if logs.shape[1] > 1 else own
    # Of the one made-up cell: the average over all cells, so that no cell has to be chosen.
    true = (own.sum() + second.mean()) / (n_cells + 1)

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        normalizers = logsumexp(logs / temperature, axis=1)
        normalizer = (normalizers.sum() + normalizers.mean()) / (n_cells + 1)
        return float(normalizer - true / temperature)

    found = minimize_scalar(loss, bounds=(np.log(0.01), np.log(100.0)), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities at a temperature, ``(n, c)`` float64."""
    return softmax(_log(probabilities) / temperature, axis=1)


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the same in the dtype they came in, to be scored: log-loss clips at its precision."""
    return apply_temperature(probabilities, temperature).astype(probabilities.dtype)


def confidence_threshold(
    labels: np.ndarray, probabilities: np.ndarray, *, false_alarm: float = 0.05
) -> float:
    """Return the confidence below which a cell is uncertain.

    It is the ``false_alarm`` quantile of the confidence of correctly predicted val cells: of the
    correctly predicted cells of known types, that fraction is flagged for nothing. Cells unlike
    the training cells should be flagged far more often.
    """
    correct = probabilities.argmax(axis=1) == labels
    if not correct.any():
        return 1.0
    return float(np.quantile(probabilities.max(axis=1)[correct], false_alarm))


def _bins(probabilities: np.ndarray) -> np.ndarray:
    confidence = probabilities.max(axis=1)
    return np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), 1e-12))
