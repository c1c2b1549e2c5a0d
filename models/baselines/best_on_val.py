"""The one place where a baseline is tuned: val cells choose among fitted settings."""

import logging
from collections.abc import Iterable, Sequence
from typing import TypeVar

from evaluation.classification import log_loss, macro_f1
from models.baselines.base import Classifier, LabeledCells

logger = logging.getLogger(__name__)


Setting = TypeVar("Setting")
Fitted = TypeVar("Fitted", bound=Classifier)


def best_on_val(
    candidates: Iterable[tuple[Setting, Fitted]], val: LabeledCells
) -> tuple[Setting, Fitted]:
    """Return the candidate with the best macro-F1 on val, ties by log-loss, then the first.

    Parameters
    ----------
    candidates
        Pairs of a setting and the model fitted with it on train.
    val
        The val cells.
    """
    counts, library_size, labels = val
    best: tuple[tuple[float, float], Setting, Fitted] | None = None
    for setting, fitted in candidates:
        probabilities = fitted.predict_proba(counts, library_size)
        score = macro_f1(labels, probabilities), -log_loss(labels, probabilities)
        logger.debug("%s: macro-F1 %.4f, log-loss %.4f", setting, score[0], -score[1])
        if best is None or score > best[0]:
            best = score, setting, fitted
    if best is None:
        raise ValueError("no candidate to choose from: a grid of settings is empty")
    return best[1:]


def warn_at_edge(name: str, chosen: float, tried: Sequence[float], *, lowest: float = 0) -> None:
    """Log a warning where the chosen value is the smallest or largest of several tried.

    Parameters
    ----------
    name
        What the config calls the range.
    lowest
        A smaller value than this does not exist, so that choosing it is no edge.
    """
    if len(set(tried)) < 2:
        return
    for side, edge in (("smallest", min(tried)), ("largest", max(tried))):
        if chosen == edge and edge > lowest:
            logger.warning(
                "%s: val cells chose %g, the %s value tried: a wider range may be better",
                name,
                chosen,
                side,
            )
