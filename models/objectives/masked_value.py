"""Masked values: hide the values of some genes and predict them from the rest of the cell.

Gene expression prediction, GEP, of scGPT (Cui et al. 2024, Methods): a small MLP on the state of
each hidden token, and its squared error. Deliberate differences: values are scaled to [0, 1];
``<cls>`` has no value and is never hidden; the loss of a cell is the mean over its hidden tokens,
so that long cells weigh no more than short ones; there is no second head for zeros.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.network import Encoded, Network
from models.objectives.base import Draw, Objective
from models.objectives.hidden_values import (
    Hidden,
    hidden_of,
    hide_share,
    mean_of_cells,
    score_hidden,
    sums_of_cells,
)
from models.value_embedding import value_scale


class MaskedValueConfig(Objective):
    """Predict hidden values from the tokens' states; needs no labels."""

    kind: Literal["masked_value"] = "masked_value"
    masked_fraction: float = Field(
        default=0.4, gt=0, le=1, description="values of a cell hidden; with cell_value the first "
        "of the two in the list decides"
    )  # fmt: skip
    reads_tokens: ClassVar[bool] = True
    hides: ClassVar[bool] = True

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "ValueHead":
        """Return an MLP of three layers."""
        return ValueHead(network.d_model, value_scale(facts))

    def hide(self, batch: Batch, draw: Draw, facts: DataFacts) -> Batch:
        """Hide values and the counts behind them; the genes stay."""
        return hide_share(batch, draw, self.masked_fraction)

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of each cell's hidden values, ``(b,)``."""
        predicted, hidden = self._predict(encoded, head, batch)
        errors = (predicted - hidden.target) ** 2
        return mean_of_cells(errors, hidden, len(batch["labels"]))

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return sums over the hidden values of each cell, and over their errors."""
        predicted, hidden = self._predict(encoded, head, batch)
        n_cells = len(batch["labels"])
        return sums_of_cells(predicted, hidden, n_cells, self.kind)

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return the mean squared error of the hidden values, and ``r2``."""
        return score_hidden(predictions, self.kind)

    def _predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> tuple[Tensor, Hidden]:
        assert isinstance(head, ValueHead)
        assert encoded.token_states is not None
        assert encoded.token_index is None
        hidden = hidden_of(batch, head.scale)
        return head(encoded.token_states[hidden.token]), hidden


class ValueHead(nn.Module):
    """Linear, leaky ReLU, twice, and linear: from a token's state to its scaled value.

    ``scale`` is the largest value, which predictions are in units of.
    """

    def __init__(self, d_model: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.layers = nn.Sequential(
            nn.Linear(d_model, d_model),
            nn.LeakyReLU(),
            nn.Linear(d_model, d_model),
            nn.LeakyReLU(),
            nn.Linear(d_model, 1),
        )

    def forward(self, states: Tensor) -> Tensor:
        """Map states ``(m, d)`` to values ``(m,)``, float32."""
        return self.layers(states)[:, 0].float()
