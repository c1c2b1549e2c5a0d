"""The one place where a baseline is tuned: val cells choose among fitted settings.

Labels and probabilities are both judged later, so both choose. A macro-F1 that is better by one or
two val cells is no reason to take a model whose probabilities are far worse: of the settings whose
macro-F1 is within ``TOLERANCE`` of the best, the one with the lowest log-loss is taken, each at
its own temperature, as models are compared.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from evaluation.calibration import fit_temperature, scaled
from evaluation.classification import log_loss, macro_f1
from models.baselines.base import Classifier, LabeledCells

logger = logging.getLogger(__name__)

TOLERANCE = 0.01  # of macro-F1: half of what the comparison of models takes for a difference

Setting = TypeVar("Setting")


def best_on_val(
    settings: Sequence[Setting], fit: Callable[[Setting], Classifier], val: LabeledCells
) -> Setting:
    """Return the setting that is best on val, the first of equals.

    Parameters
    ----------
    settings
        To choose among.
    fit
        Fits a setting on train. No model is kept, for there may be many.
    val
        The val cells.
    """
    if not settings:
        raise ValueError("no setting to choose from: a grid is empty")
    counts, library_size, labels = val
    f1, loss = [], []
    for setting in settings:
        probabilities = fit(setting).predict_proba(counts, library_size)
        temperature = fit_temperature(labels, probabilities)
        f1.append(macro_f1(labels, probabilities))
        loss.append(log_loss(labels, scaled(probabilities, temperature)))
        logger.debug("%s: macro-F1 %.4f, log-loss %.4f", setting, f1[-1], loss[-1])
    good = [i for i in range(len(settings)) if f1[i] >= max(f1) - TOLERANCE]
    return settings[min(good, key=loss.__getitem__)]


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
