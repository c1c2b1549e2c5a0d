"""What is said when training cannot start or goes wrong, and what to do about it."""

import logging

import numpy as np

from configs.base import ConfigError
from training.config import OptimConfig

logger = logging.getLogger("train")


class TrainingError(ValueError):
    """The loss is not a number any more."""


def refuse_batches(optim: OptimConfig, n_tokens: int, world_size: int) -> None:
    """Refuse sizes of batches that these cells or processes have no use for.

    Parameters
    ----------
    optim
        The config's.
    n_tokens
        Most tokens that a cell of the folder may have.
    world_size
        Number of processes.
    """
    budget, size = optim.tokens_per_batch, optim.batch_size
    if budget is not None and budget < n_tokens:
        raise ConfigError(
            f"optim.tokens_per_batch: found {budget}, and a cell of this folder may have "
            f"{n_tokens} tokens; say {n_tokens} or more"
        )
    if size < world_size:
        raise ConfigError(
            f"optim.batch_size: found {size} cells for {world_size} processes, and each needs one "
            "of every update; raise it or start fewer processes"
        )


def check_finite(what: str, *arrays: np.ndarray | None) -> None:
    """Stop a run whose network has overflowed, for it never comes back.

    Parameters
    ----------
    what
        The arrays are, for the sentence; in the plural.
    arrays
        Of numbers; None is passed over.
    """
    if not all(np.isfinite(array).all() for array in arrays if array is not None):
        raise TrainingError(
            f"{what} are not numbers any more (NaN or infinite); lower optim.lr, or say "
            "precision=float32"
        )


def warn_of_collapse(probabilities: np.ndarray, class_names: list[str], epoch: int) -> None:
    """Sound the alarm when, after the first epochs, all val cells are given to one class."""
    predicted = np.unique(probabilities.argmax(axis=1))
    if epoch >= 2 and len(predicted) == 1 < len(class_names):
        logger.warning(
            "epoch %d: every val cell is called %r; if it stays so, lower optim.lr or start from "
            "model.gene_init=svd",
            epoch + 1,
            class_names[predicted[0]],
        )
