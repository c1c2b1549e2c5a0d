"""What a network is trained to do: ``(output, batch) -> loss of each cell``.

Losses are returned per cell, unreduced: the loop sums them over cells and ranks and divides once,
so that one process and several report the same number.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from dataset.batches import Batch


class Output(NamedTuple):
    """What every network returns for a batch of cells."""

    logits: Tensor  # (b, c)
    cell_embedding: Tensor  # (b, d), the final <cls> state


def classify(
    output: Output,
    batch: "Batch",
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of each cell, ``(b,)``, in float32.

    Parameters
    ----------
    output, batch
        The network's answer and the cells it was given, with their ``labels``.
    class_weights
        Multiplies the loss of the cells of each class, ``(c,)``.
    label_smoothing
        Share of the target spread evenly over all classes.
    """
    losses = F.cross_entropy(
        output.logits.float(), batch["labels"], reduction="none", label_smoothing=label_smoothing
    )
    return losses if class_weights is None else losses * class_weights[batch["labels"]]


def balanced_class_weights(labels: np.ndarray, n_classes: int) -> Tensor:
    """Weights proportional to 1/sqrt(cells in the class), 1 on average over the cells.

    The full inverse would let a class of ten cells steer every update; the square root is the
    usual middle. A class without cells gets 0: no cell will ever ask for it.
    """
    n_cells = np.bincount(labels, minlength=n_classes)
    weights = np.divide(1.0, np.sqrt(n_cells), out=np.zeros(n_classes), where=n_cells > 0)
    weights /= (weights * n_cells).sum() / n_cells.sum()
    return torch.from_numpy(weights.astype(np.float32))
