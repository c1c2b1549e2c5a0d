"""How often a network went through the train cells: equal for networks that are compared."""

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
