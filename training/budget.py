"""How often a network went through the train cells, and for how long; both with pretraining."""

from collections.abc import Mapping
from typing import Any

from training.runs import Run


def epochs(run: Run) -> int | None:
    """Return the epochs of a network's schedule, and of the run that it began with.

    A schedule that a val score cut short counts whole: it was free to go on. None for what is no
    network, and where the run that it began with is of before this was recorded.
    """
    began_with = run.metrics.get("init_from", {"epochs": 0}).get("epochs")
    if not run.is_network or began_with is None:
        return None
    return run.config.optim.max_epochs + began_with


def seconds(metrics: Mapping[str, Any]) -> float:
    """Return what a run took, of its ``metrics.json``, and what the run took that it began with.

    That is left out where it was not recorded.
    """
    return metrics["seconds"] + metrics.get("init_from", {}).get("seconds", 0.0)
