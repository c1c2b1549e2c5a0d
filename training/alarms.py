"""Checks before and during training; each error says what to do about it."""

import logging

import numpy as np

from configs.base import ConfigError
from configs.user_error import UserError
from training.config import OptimConfig

logger = logging.getLogger("train")


class TrainingError(UserError):
    """The loss is not a number any more."""


def check_batch_sizes(optim: OptimConfig, row_length: int, world_size: int) -> None:
    """Raise a ConfigError if the batches are too small for these cells or processes.

    Parameters
    ----------
    optim
        The config's.
    row_length
        Most tokens that a cell of the folder may have.
    world_size
        Number of processes.
    """
    budget, size = optim.tokens_per_batch, optim.batch_size
    if budget is not None and budget < row_length:
        raise ConfigError(
            f"optim.tokens_per_batch: found {budget}, and a cell of this folder may have "
            f"{row_length} tokens; say {row_length} or more"
        )
    if size < world_size:
        raise ConfigError(
            f"optim.batch_size: found {size} cells for {world_size} processes, and each needs one "
            "of every update; raise it or start fewer processes"
        )


def check_finite(name: str, *arrays: np.ndarray) -> None:
    """Raise a TrainingError if a network has overflowed, from which it never recovers.

    Parameters
    ----------
    name
        Of the arrays, in the plural, for the message.
    arrays
        Of numbers.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise TrainingError(
            f"{name} are NaN or infinite; lower optim.lr, or say precision=float32"
        )


def warn_of_collapse(probabilities: np.ndarray | None, class_names: list[str], epoch: int) -> None:
    """Log a warning when, after the first epochs, one class is predicted for all val cells."""
    if probabilities is None:  # nothing is classified
        return
    predicted = np.unique(probabilities.argmax(axis=1))
    if epoch >= 2 and len(predicted) == 1 < len(class_names):
        logger.warning(
            "epoch %d: %r is predicted for every val cell; if it stays so, lower optim.lr or say "
            "model.gene_init=svd",
            epoch + 1,
            class_names[predicted[0]],
        )
