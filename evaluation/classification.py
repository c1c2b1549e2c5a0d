"""Scores of a classifier, equal to scikit-learn's, as plain functions of arrays.

Every score takes ``labels (n,)``, ``probabilities (n, c)`` and, by keyword, ``weights (n,)``, as
scikit-learn's ``sample_weight``: a bootstrap resample is a vector of weights, so one function
serves a score and its interval. The predicted class is the most probable one. A score that is a
mean over cells has a function beside it that returns what each cell adds to it, ``(n,)``.
"""

import numpy as np
import pandas as pd

Weights = np.ndarray | None


def confusion(
    labels: np.ndarray, predictions: np.ndarray, n_classes: int, *, weights: Weights = None
) -> np.ndarray:
    """Count the cells of each true class (rows) by predicted class (columns), ``(c, c)``."""
    cells = np.bincount(
        labels.astype(np.int64) * n_classes + predictions, weights, minlength=n_classes**2
    )
    return cells.reshape(n_classes, n_classes)


def accuracy(labels: np.ndarray, probabilities: np.ndarray, *, weights: Weights = None) -> float:
    """Return the fraction of the cells that are correctly predicted."""
    return float(np.average(is_correct(labels, probabilities), weights=weights))


def is_correct(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return 1 for each correctly predicted cell, 0 for others."""
    return (probabilities.argmax(axis=1) == labels).astype(float)


def balanced_accuracy(
    labels: np.ndarray, probabilities: np.ndarray, *, weights: Weights = None
) -> float:
    """Return the mean recall over the classes present in ``labels``."""
    counts = _confusion(labels, probabilities, weights)
    n = counts.sum(axis=1)
    return float(np.mean(np.diag(counts)[n > 0] / n[n > 0]))


def macro_f1(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    weights: Weights = None,
    classes: np.ndarray | None = None,
) -> float:
    """Return the mean F1 over the classes present in ``labels``, NaN if there is none.

    That is scikit-learn's with ``labels=np.unique(labels)``. Its default also averages over the
    classes that are only predicted, each with an F1 of 0: two classifiers would then be averaged
    over different classes, and one stray cell would cost as much as a whole cell type. Here a
    stray cell costs what it is, a miss of its own class.

    Parameters
    ----------
    classes
        Ids of the classes whose cells are scored, as if there were no others; None: all.
    """
    counts = _confusion(labels, probabilities, weights)
    if classes is not None:
        counts[np.setdiff1d(np.arange(len(counts)), classes)] = 0
    f1, n_true, _ = _f1(counts)
    return float(np.mean(f1[n_true > 0])) if n_true.any() else np.nan


def weighted_f1(
    labels: np.ndarray, probabilities: np.ndarray, *, weights: Weights = None
) -> float:
    """Return the mean F1 over the classes, each weighted by its number of cells."""
    f1, n_true, _ = _f1(_confusion(labels, probabilities, weights))
    return float(np.average(f1, weights=n_true))


def top3_accuracy(
    labels: np.ndarray, probabilities: np.ndarray, *, weights: Weights = None
) -> float:
    """Return the fraction of the cells whose class is among the three most probable ones."""
    return float(np.average(is_in_top3(labels, probabilities), weights=weights))


def is_in_top3(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return 1 for each cell whose class is among the three most probable ones, 0 for others.

    Among equal probabilities the class of the larger id is taken first, as in scikit-learn.
    """
    own = probabilities[np.arange(len(labels)), labels][:, None]
    later = np.arange(probabilities.shape[1]) > labels[:, None]
    n_before = ((probabilities > own) | ((probabilities == own) & later)).sum(axis=1)
    return (n_before < 3).astype(float)


def log_loss(labels: np.ndarray, probabilities: np.ndarray, *, weights: Weights = None) -> float:
    """Return the mean of ``-log`` of the probability of each cell's own class, in nats."""
    return float(np.average(surprisal(labels, probabilities), weights=weights))


def surprisal(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return ``-log`` of the probability of each cell's own class, in nats.

    Probabilities are clipped at the machine's precision of their dtype, as in scikit-learn.
    """
    smallest = np.finfo(probabilities.dtype).eps
    own = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(own, smallest, 1 - smallest), dtype=np.float64)


def per_class(labels: np.ndarray, predictions: np.ndarray, class_names: list[str]) -> pd.DataFrame:
    """Return precision, recall, F1 and the number of cells of every class.

    A ratio without a denominator (no such cell, or none so predicted) is 0, as in scikit-learn.
    """
    counts = confusion(labels, predictions, len(class_names))
    f1, n_true, n_predicted = _f1(counts)
    hits = np.diag(counts)
    return pd.DataFrame(
        {
            "precision": _ratio(hits, n_predicted),
            "recall": _ratio(hits, n_true),
            "f1": f1,
            "n_cells": n_true.astype(int),
            "n_predicted": n_predicted.astype(int),
        },
        index=pd.Index(class_names, name="cell_type"),
    )


def _confusion(labels: np.ndarray, probabilities: np.ndarray, weights: Weights) -> np.ndarray:
    return confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1], weights=weights)


def _f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n_true, n_predicted = counts.sum(axis=1), counts.sum(axis=0)
    return _ratio(2 * np.diag(counts), n_true + n_predicted), n_true, n_predicted


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    result = np.zeros(len(numerator))
    return np.divide(numerator, denominator, out=result, where=denominator > 0)
