"""How good a run is: scores, calibration, comparison, annotation of new cells, figures."""

from collections.abc import Callable

from evaluation.calibration import brier, ece
from evaluation.classification import (
    accuracy,
    balanced_accuracy,
    log_loss,
    macro_f1,
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
