"""Masked values: hide the values of some genes and predict them from the rest of the cell.

Gene expression prediction, GEP, of scGPT (Cui et al. 2024, Methods): a small MLP on the state of
each hidden token, and its squared error. Deliberate differences: values are scaled to [0, 1];
``<cls>`` has no value and is never hidden; the loss of a cell is the mean over its hidden tokens,
so that long cells weigh no more than short ones; there is no second head for zeros.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.network import Encoded, Network
from models.objectives.hidden_values import Hidden, HiddenValues, hidden_of
from models.value_embedding import value_scale


class MaskedValueConfig(HiddenValues):
    """Predict hidden values from the tokens' states; needs no labels."""

    kind: Literal["masked_value"] = "masked_value"
    reads_tokens: ClassVar[bool] = True

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "ValueHead":
        """Return an MLP of three layers."""
        return ValueHead(network.d_model, value_scale(facts))

    def predict_values(
        self, encoded: Encoded, head: nn.Module, batch: Batch
    ) -> tuple[Tensor, Hidden]:
        """Return what the states of the hidden tokens say, of those that the network reads."""
        assert isinstance(head, ValueHead)
        assert encoded.token_states is not None
        hidden = hidden_of(batch, head.scale, encoded.token_index)
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
