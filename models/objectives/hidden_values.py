"""Values that are hidden from the network, and how well they are predicted.

What the objectives that predict values share (``masked_value``, ``cell_value``): one draw hides
the same values for both. Values are divided by the largest that there can be.

Legend: ``b`` cells, ``n`` tokens of all cells, ``m`` hidden ones.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from dataset.batches import Batch, cell_of_token
from models.objectives.base import Draw
from models.value_embedding import has_value, hide_values

TARGET = "hidden_value_target"  # of each token in the batch: its value, where hidden; else -1
STREAM = 10  # of the draw


class Hidden(NamedTuple):
    """The hidden tokens of a batch."""

    token: Tensor  # (m,), index in the batch
    cell: Tensor  # (m,)
    target: Tensor  # (m,), scaled


def hide_share(batch: Batch, draw: Draw, fraction: float) -> Batch:
    """Hide the values of a share of each cell's genes, unless that has been done already."""
    if TARGET in batch:
        return batch
    is_hidden = has_value(batch) & (draw(STREAM) < fraction)
    target = torch.where(is_hidden, batch["values"], -1)
    return cast(Batch, {**hide_values(batch, is_hidden), TARGET: target})


def hidden_of(batch: Batch, scale: float) -> Hidden:
    """Return the hidden tokens; ``scale`` is the largest value."""
    target = cast("dict[str, Tensor]", batch)[TARGET]  # (n,)
    (token,) = torch.nonzero(target >= 0, as_tuple=True)
    return Hidden(token, cell_of_token(batch)[token], target[token].float() / scale)


def mean_of_cells(losses: Tensor, hidden: Hidden, n_cells: int) -> Tensor:
    """Average over each cell's hidden tokens, ``(b,)``; 0 for a cell without any."""
    total = losses.new_zeros(n_cells).index_add(0, hidden.cell, losses)
    return total / torch.bincount(hidden.cell, minlength=n_cells).clamp(min=1)


def sums_of_cells(predicted: Tensor, hidden: Hidden, n_cells: int, kind: str) -> dict[str, Tensor]:
    """Sum what ``score_hidden`` needs over each cell's hidden tokens, ``(b,)`` each."""
    nothing = predicted.new_zeros(n_cells)
    of_token = {
        "hidden": torch.ones_like(predicted),
        "target": hidden.target,
        "target_squared": hidden.target**2,
        "error_squared": (predicted - hidden.target) ** 2,
    }
    return {
        f"{kind}_{name}": nothing.index_add(0, hidden.cell, values)
        for name, values in of_token.items()
    }


def score_hidden(predictions: dict[str, np.ndarray], kind: str) -> dict[str, float]:
    """Return the mean squared error over all hidden tokens, and ``r2`` by it.

    ``r2`` is 0 for who predicts the mean of all hidden values, and 1 for who errs nowhere.
    """
    names = ("hidden", "target", "target_squared", "error_squared")
    n, total, squares, errors = (float(predictions[f"{kind}_{name}"].sum()) for name in names)
    n = max(n, 1.0)
    variance = squares / n - (total / n) ** 2
    return {
        f"{kind}_loss": errors / n,
        f"{kind}_r2": 1 - errors / n / variance if variance > 0 else 0.0,
    }
