"""Generative pretraining: predict the values of unknown genes from known ones, or from the cell.

Cui et al. 2024, Methods, "Generative pretraining". Of each cell a share of the genes is unknown;
they look at the known ones and at themselves only (``models/attention_masks.py``), so that any
number of them may be asked for at once. Two prompts: known genes, and the cell embedding that
comes of them, alone, in the place of ``<cls>``. Deliberate differences:

- the unknown share is drawn for each cell, not for each step
- a prediction is a normal distribution, trained by its likelihood (Nix & Weigend 1994), so that it
  says how sure it is. The original asks for the most confident genes first, and its squared error
  has no confidence

Legend: ``b`` cells, ``n`` tokens of all cells, ``m`` unknown ones.
"""

from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from configs.base import ConfigError
from dataset.batches import Batch, cell_of_token
from dataset.store.data_facts import DataFacts
from models.network import Encoded, Network
from models.objectives.base import Draw, Objective, mean_of_cells, original_of
from models.objectives.hidden_values import (
    TARGET,
    Hidden,
    hidden_of,
    score_hidden,
    sums_of_cells,
)
from models.value_embedding import HIDDEN, IS_KNOWN, has_value, hide_values, value_scale

UNKNOWN_SHARES = (0.25, 0.5, 0.75)
STREAM = 20  # of the draws: which share, which genes


class GenerateValuesConfig(Objective):
    """Predict unknown values from known genes and from the cell; needs no labels."""

    kind: Literal["generate_values"] = "generate_values"
    reads_tokens: ClassVar[bool] = True
    hides: ClassVar[bool] = True

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "ValueDistribution":
        """Return the head that predicts a value and how sure it is."""
        if not hasattr(network, "prompt"):
            raise ConfigError(
                f"objectives: {self.kind} prompts a network with cells and masks its attention, "
                f"which {type(network).__name__} cannot be; say model.kind=value_transformer"
            )
        n_read = getattr(network.config, "context_genes", None)
        if n_read is not None:
            raise ConfigError(
                f"objectives: {self.kind} fills in every gene of a row, and the blocks are to "
                f"read {n_read} (model.context_genes); say model.context_genes=null, on cells "
                "encoded with few genes as tokens (tokenizer.n_top_genes)"
            )
        return ValueDistribution(network, value_scale(facts))

    def hide(self, batch: Batch, draw: Draw, facts: DataFacts) -> Batch:
        """Make a share of each cell's genes unknown, their values and the counts behind them."""
        if TARGET in batch:
            raise ConfigError(
                f"objectives: another one has hidden values before {self.kind} could; list "
                f"{self.kind} first"
            )
        shares = torch.tensor(UNKNOWN_SHARES, device=batch["token_ids"].device)
        of_token = shares[(draw(STREAM) * len(shares)).long()]
        share = of_token[batch["offsets"][:-1].long()]  # (b,), what <cls> has drawn
        original = original_of(batch)
        is_unknown = has_value(original) & (draw(STREAM + 1) < share[cell_of_token(batch)])
        target = torch.where(is_unknown, original["values"], -1)
        unknown = {**hide_values(batch, is_unknown), TARGET: target, IS_KNOWN: ~is_unknown}
        return cast(Batch, unknown)

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the negative log-likelihood of each cell's unknown values, by both prompts."""
        hidden, by_genes, by_cell = self._predict(encoded, head, batch)
        total = torch.zeros_like(hidden.target)
        for mean, log_variance in (by_genes, by_cell):
            error = (mean - hidden.target) ** 2
            total = total + 0.5 * (error * torch.exp(-log_variance) + log_variance)
        return mean_of_cells(total, hidden.cell, len(batch["labels"]))

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return sums over the unknown values of each cell, and over the errors of each prompt."""
        hidden, (by_genes, _), (by_cell, _) = self._predict(encoded, head, batch)
        n_cells, kind = len(batch["labels"]), self.kind
        return sums_of_cells(by_genes, hidden, n_cells, kind) | sums_of_cells(
            by_cell, hidden, n_cells, f"{kind}_by_cell"
        )

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return mean squared error and ``r2`` of each prompt."""
        by_cell = score_hidden(predictions, f"{self.kind}_by_cell")
        return score_hidden(predictions, self.kind) | by_cell

    def _predict(
        self, encoded: Encoded, head: nn.Module, batch: Batch
    ) -> tuple[Hidden, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the unknown values, and means and log variances by genes and by the cell."""
        assert isinstance(head, ValueDistribution)
        assert encoded.token_states is not None
        hidden = hidden_of(batch, head.scale)
        by_cell = head.from_cell(encoded.cell_embedding, batch)
        return hidden, head(encoded.token_states[hidden.token]), head(by_cell[hidden.token])


class ValueDistribution(nn.Module):
    """Mean and logarithm of the variance of a token's scaled value, from its state.

    ``scale`` is the largest value, which means are in units of.
    """

    def __init__(self, network: Network, scale: float) -> None:
        super().__init__()
        self.scale, d = scale, network.d_model
        self.layers = nn.Sequential(
            nn.Linear(d, d), nn.LeakyReLU(), nn.Linear(d, d), nn.LeakyReLU(), nn.Linear(d, 2)
        )
        # Within a tuple it is not registered a second time: the weights belong to the network.
        self.tied = (network,)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Map states ``(m, d)`` to means and log variances, ``(m,)`` float32 each."""
        mean, log_variance = self.layers(states).float().unbind(dim=1)
        return mean, log_variance.clamp(-8, 4)

    def from_cell(self, cell_embedding: Tensor, batch: Batch) -> Tensor:
        """Return the states of all tokens, ``(n, d)``, where only the cell is known."""
        (network,) = self.tied
        is_gene = has_value(batch)
        nothing = {**hide_values(batch, is_gene), IS_KNOWN: ~is_gene}
        return network.prompt(cell_embedding, nothing)  # type: ignore[operator]

    @torch.no_grad()
    def generate(
        self, batch: Batch, n_rounds: int, cell_embedding: Tensor | None = None
    ) -> Tensor:
        """Predict all unknown values in rounds, the most confident first.

        In each round the surest of every cell become known, by the value that was predicted, and
        the others are predicted again.

        Parameters
        ----------
        batch
            Cells whose unknown genes have the value ``HIDDEN``.
        n_rounds
            In the last of which all are known.
        cell_embedding
            ``(b, d)``, to be put in the place of ``<cls>``; None: it is as ever.

        Returns
        -------
        Values of all tokens, ``(n,)``, in the units of the batch.
        """
        (network,) = self.tied
        cell, n_cells = cell_of_token(batch), len(batch["labels"])
        values = batch["values"].float()
        for n_left in range(n_rounds, 0, -1):
            (unknown,) = torch.nonzero(values == HIDDEN, as_tuple=True)
            seen = cast(Batch, {**batch, "values": values, IS_KNOWN: values != HIDDEN})
            if cell_embedding is None:
                states = network(seen, tokens=True).token_states
            else:
                states = network.prompt(cell_embedding, seen)  # type: ignore[operator]
            mean, log_variance = self(states[unknown])
            n_unknown = torch.bincount(cell[unknown], minlength=n_cells)
            order = log_variance.argsort()
            order = order[cell[unknown][order].argsort(stable=True)]  # the surest of each first
            start = n_unknown.cumsum(0) - n_unknown
            nth = torch.arange(len(order), device=order.device) - start[cell[unknown][order]]
            wanted = -(-n_unknown // n_left)
            surest = order[nth < wanted[cell[unknown][order]]]
            found = (mean[surest] * self.scale).clamp(0, self.scale)
            values = values.index_copy(0, unknown[surest], found)
        return values
