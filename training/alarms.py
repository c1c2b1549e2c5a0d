"""What is said when training goes wrong, and what to do about it."""

import logging

import numpy as np

logger = logging.getLogger("train")


class TrainingError(ValueError):
    """The loss is not a number any more."""


def refuse_what_is_no_number(probabilities: np.ndarray, epoch: int) -> None:
    """Stop a run whose network has overflowed, for it never comes back."""
    if not np.isfinite(probabilities).all():
        raise TrainingError(
            f"epoch {epoch + 1}: the network's answers are not numbers any more; "
            "lower optim.lr, or say precision=float32"
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
