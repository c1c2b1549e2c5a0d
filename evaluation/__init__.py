"""How good a run is: scores, calibration, comparison, annotation of new cells, figures."""

from collections.abc import Callable

import numpy as np

from evaluation.calibration import brier, ece, scaled, squared_distance
from evaluation.classification import (
    accuracy,
    balanced_accuracy,
    is_correct,
    is_in_top3,
    log_loss,
    macro_f1,
    surprisal,
    top3_accuracy,
    weighted_f1,
)

# Name -> f(labels (n,), probabilities (n, c)) -> float; each also takes weights (n,) by keyword.
METRICS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
    "top3_accuracy": top3_accuracy,
    "log_loss": log_loss,
    "ece": ece,
    "brier": brier,
}
# Those that are means over cells -> f(labels, probabilities) -> what each cell adds, (n,).
CELL_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": is_correct,
    "top3_accuracy": is_in_top3,
    "log_loss": surprisal,
    "brier": squared_distance,
}
# Those that a temperature changes, and that are also given at the one of the val cells.
SCALED = ("log_loss", "ece")


def scaled_scores(
    labels: np.ndarray, probabilities: np.ndarray, temperature: float
) -> dict[str, float]:
    """Return the scores at a temperature: ``log_loss_scaled`` and ``ece_scaled``."""
    at_temperature = scaled(probabilities, temperature)
    return {f"{name}_scaled": METRICS[name](labels, at_temperature) for name in SCALED}
