"""Values that are hidden from the network, and how well they are predicted.

What the objectives that predict values share (``masked_value``, ``cell_value``): one draw hides
the same values for both. Values are divided by the largest that there can be.

Legend: ``b`` cells, ``n`` tokens of all cells, ``m`` hidden ones.
"""

from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dataset.batches import Batch, cell_of_token
from dataset.store.data_facts import DataFacts
from models.network import Encoded
from models.objectives.base import Draw, Objective, mean_of_cells, original_of
from models.value_embedding import has_value, hide_values

TARGET = "hidden_value_target"  # of each token in the batch: its value, where hidden; else -1
STREAM = 10  # of the draw


class Hidden(NamedTuple):
    """The hidden tokens of a batch."""

    token: Tensor  # (m,), index in the batch, or among the tokens that were read
    cell: Tensor  # (m,)
    target: Tensor  # (m,), scaled


class HiddenValues(Objective):
    """Predict hidden values by their squared error; from what, its kinds say."""

    masked_fraction: float = Field(
        default=0.4,
        gt=0,
        le=1,
        description="values of a cell hidden; of masked_value and cell_value together the first "
        "in the list decides",
    )
    hides: ClassVar[bool] = True

    def hide(self, batch: Batch, draw: Draw, facts: DataFacts) -> Batch:
        """Hide values and the counts behind them, unless that has been done; the genes stay."""
        if TARGET in batch:
            return batch
        original = original_of(batch)
        is_hidden = has_value(original) & (draw(STREAM) < self.masked_fraction)
        target = torch.where(is_hidden, original["values"], -1)
        return cast(Batch, {**hide_values(batch, is_hidden), TARGET: target})

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of each cell's hidden values, ``(b,)``."""
        predicted, hidden = self.predict_values(encoded, head, batch)
        errors = (predicted - hidden.target) ** 2
        return mean_of_cells(errors, hidden.cell, len(batch["labels"]))

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return sums over the hidden values of each cell, and over their errors."""
        predicted, hidden = self.predict_values(encoded, head, batch)
        return sums_of_cells(predicted, hidden, len(batch["labels"]), self.kind)

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return the mean squared error of the hidden values, and ``r2``."""
        return score_hidden(predictions, self.kind)

    def predict_values(
        self, encoded: Encoded, head: nn.Module, batch: Batch
    ) -> tuple[Tensor, Hidden]:
        """Return the scaled values that are predicted, ``(m,)``, of which hidden tokens."""
        raise NotImplementedError


def hidden_of(batch: Batch, scale: float, token_index: Tensor | None = None) -> Hidden:
    """Return the hidden tokens.

    Parameters
    ----------
    batch
        Of which values were hidden.
    scale
        The largest value.
    token_index
        The tokens that a network has read, as of ``Encoded``; None: all.
    """
    target, cell = cast("dict[str, Tensor]", batch)[TARGET], cell_of_token(batch)  # (n,)
    if token_index is not None:
        target, cell = target[token_index], cell[token_index]
    (token,) = torch.nonzero(target >= 0, as_tuple=True)
    return Hidden(token, cell[token], target[token].float() / scale)


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
