"""Embeddings of the value of a token, such as the bin of a gene's expression.

Three ways, each as wide as a token:

- ``mlp``: a function of the number (Cui et al. 2024, Methods, "continuous" there)
- ``bins``: a row of a table for each bin
- ``soft_bins``: a mean of such rows, whose weights follow from the number (Gong et al. 2023,
  xTrimoGene, "auto-discretization"; Hao et al. 2024, scFoundation): neighboring values share rows,
  and how wide a bin is, is learned

Deliberate differences: values are scaled to about [0, 1]; a value that is hidden has an embedding
of its own, where scGPT feeds -1 through the same function.

Legend: ``n`` tokens, ``r`` rows of the table, ``d`` width.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.base import ConfigError
from dataset.batches import Batch
from dataset.log_expression import TARGET_SUM
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import N_SPECIALS

HIDDEN = -1.0  # the value of a token whose own is to be predicted
IS_KNOWN = "is_known"  # of each token in the batch, where attention is masked by it
SOFT_BINS = 50
VALUE_STD = 0.2  # of the embeddings at the start, as of the genes'

ValueKind = Literal["mlp", "bins", "soft_bins"]


def value_scale(facts: DataFacts) -> float:
    """Return the largest value of a token, to divide by: the last bin, or the log of all counts.

    Raises
    ------
    ConfigError
        If the tokenizer of these data writes no values.
    """
    values = facts.tokenizer.get("values")
    if values is None:
        raise ConfigError(
            "model, objectives: tokens need a value each, and these cells were encoded by the "
            f"tokenizer {facts.tokenizer.get('kind', 'of another kind')!r}, which writes none; "
            "encode with one that does, as configs/preprocess/baron_human_values.yaml"
        )
    if values == "log1p":
        return float(torch.log1p(torch.tensor(TARGET_SUM)))
    return float(facts.tokenizer["n_bins"] - 1)


def has_value(batch: Batch) -> Tensor:
    """Return which tokens have a value, ``(n,)``: the genes."""
    return batch["token_ids"] >= N_SPECIALS


def hide_values(batch: Batch, is_hidden: Tensor) -> Batch:
    """Return the cells without some counts, ``is_hidden`` ``(n,)``, nor the values of them."""
    hidden: Batch = {**batch, "counts": torch.where(is_hidden, 0, batch["counts"])}
    if "values" in batch:
        hidden["values"] = torch.where(is_hidden, HIDDEN, batch["values"])
    return hidden


class ValueEmbedding(nn.Module):
    """Embeds the values of tokens."""

    def __init__(self, kind: ValueKind, d_model: int, facts: DataFacts) -> None:
        super().__init__()
        self.kind, self.scale = kind, value_scale(facts)
        self.hidden = nn.Embedding(1, d_model)
        if kind == "bins" and facts.tokenizer["values"] == "log1p":
            raise ConfigError(
                "model.value_embedding: bins, and the values of these cells are continuous "
                "(tokenizer.values: log1p); choose mlp or soft_bins, or encode with bins"
            )
        if kind == "mlp":
            self.layers = nn.Sequential(
                nn.Linear(1, d_model), nn.GELU(), nn.Linear(d_model, d_model)
            )
        else:
            n_rows = 1 + int(self.scale) if kind == "bins" else SOFT_BINS
            self.table = nn.Embedding(n_rows, d_model)
        if kind == "soft_bins":
            self.to_first = nn.Linear(1, SOFT_BINS)
            self.to_weights = nn.Linear(SOFT_BINS, SOFT_BINS)

    def initialize(self) -> None:
        """Let values start as large as genes, so that neither is drowned."""
        nn.init.normal_(self.hidden.weight, std=VALUE_STD)
        if self.kind == "mlp":
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=VALUE_STD / last.in_features**0.5)
        else:
            nn.init.normal_(self.table.weight, std=VALUE_STD)

    def forward(self, values: Tensor) -> Tensor:
        """Map values ``(n,)`` to embeddings ``(n, d)``."""
        is_hidden = (values == HIDDEN)[:, None]
        seen = values.clamp(min=0)
        if self.kind == "bins":
            embedded = self.table(seen.long())
        elif self.kind == "mlp":
            embedded = self.layers(seen[:, None] / self.scale)
        else:
            first = F.leaky_relu(self.to_first(seen[:, None] / self.scale))  # (n, r)
            weights = (self.to_weights(first) + first).softmax(dim=1)
            embedded = weights @ self.table.weight
        return torch.where(is_hidden, self.hidden.weight, embedded)
