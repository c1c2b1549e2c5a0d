"""An adversary that tells a condition from the cell embedding, which learns to hide it.

DAR of scGPT (Cui et al. 2024, Methods): a classifier of the experimental batch behind a layer that
reverses gradients (Ganin et al. 2016, Domain-adversarial training, section 4.1). The classifier
gets better at telling the batches apart, and the network at giving it nothing to tell them by;
``weight`` scales both. The condition is any obs column that the cells were encoded with; a cell
whose is unknown teaches nothing.

A score near that of naming the most common value may also be that of a weak adversary: what is
left in the embeddings is known when another classifier is trained on them. A type that one batch
alone has is hidden with its batch.

Legend: ``b`` cells, ``k`` values of the condition, ``d`` width.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from configs.base import ConfigError
from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.network import Encoded, Network
from models.objectives.base import Objective

UNKNOWN = -1  # the code of a condition


class ConditionAdversaryConfig(Objective):
    """Remove what a condition, such as the donor, leaves in the cell embedding."""

    kind: Literal["condition_adversary"] = "condition_adversary"
    condition: str = Field(description="obs column to remove, one of the folder's condition_keys")

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "Adversary":
        """Return the classifier behind the reversal."""
        if self.condition not in facts.conditions:
            raise ConfigError(
                f"objectives: {self.kind} removes the obs column {self.condition!r}, and the "
                f"cells were encoded with condition_keys: {list(facts.conditions)}; name one of "
                f"them, or encode again with condition_keys: [{self.condition}]"
            )
        column = list(facts.conditions).index(self.condition)
        return Adversary(network.d_model, column, len(facts.conditions[self.condition]))

    def row_names(self, facts: DataFacts) -> dict[str, Sequence[str]]:
        """Return the names of the condition's values."""
        names = facts.conditions[self.condition]
        return dict.fromkeys(("layers.6.weight", "layers.6.bias"), names)

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the adversary's cross-entropy of each cell, ``(b,)``; 0 where it is unknown."""
        assert isinstance(head, Adversary)
        codes, logits = batch["conditions"][:, head.column], head(encoded.cell_embedding)
        return F.cross_entropy(logits, codes, reduction="none", ignore_index=UNKNOWN)

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return of each cell the code, that which the adversary predicts, and its loss."""
        assert isinstance(head, Adversary)
        return {
            f"{self.kind}_code": batch["conditions"][:, head.column],
            f"{self.kind}_predicted": head(encoded.cell_embedding).argmax(dim=1),
            f"{self.kind}_loss": self.loss(encoded, head, batch),
        }

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return accuracy and cross-entropy of the adversary; none where all is unknown to it.

        Neither is called a loss: where no score is named to choose the epoch, the first loss does,
        and the epoch whose adversary is best is not the best one.
        """
        codes, predicted = (predictions[f"{self.kind}_{name}"] for name in ("code", "predicted"))
        known = codes != UNKNOWN
        if not known.any():  # such as donors whom training had not
            return {}
        losses = predictions[f"{self.kind}_loss"][known]
        return {
            f"{self.kind}_accuracy": float((predicted == codes)[known].mean()),
            f"{self.kind}_cross_entropy": float(losses.mean()),
        }


class Adversary(nn.Module):
    """Linear, leaky ReLU, layer norm, twice, and linear, behind the reversal of gradients.

    ``column`` is that of the condition in the batch's.
    """

    def __init__(self, d_model: int, column: int, n_values: int) -> None:
        super().__init__()
        self.column = column
        self.layers = nn.Sequential(
            nn.Linear(d_model, d_model),
            nn.LeakyReLU(),
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_model),
            nn.LeakyReLU(),
            nn.LayerNorm(d_model),
            nn.Linear(d_model, n_values),
        )

    def forward(self, cell_embedding: Tensor) -> Tensor:
        """Map cell embeddings ``(b, d)`` to logits ``(b, k)``, float32."""
        reversed_embedding: Any = ReverseGradient.apply(cell_embedding)
        return self.layers(reversed_embedding).float()


class ReverseGradient(torch.autograd.Function):
    """The identity, with minus its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return what is given."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return minus the gradient."""
        return -gradients[0]
