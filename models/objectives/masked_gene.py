"""Masked genes: hide some tokens of a cell and predict the genes that stood there.

Devlin et al. 2019, section 3.1, on genes in rank order, as Geneformer is pretrained (Theodoris et
al. 2023, Methods). Deliberate differences: the random replacement is a gene, never a special
token; the count behind a masked token is hidden with it; the loss of a cell is the mean over its
hidden tokens, so that long cells weigh no more than short ones.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.batches import Batch, cell_of_token
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import N_SPECIALS
from models.network import Encoded, Network
from models.objectives.base import Draw, Objective, mask_genes, mean_of_cells, original_of

TARGET = "masked_gene_target"  # of each token in the batch: the gene that was there, or -1


class MaskedGeneConfig(Objective):
    """Predict the genes behind hidden tokens; needs no labels."""

    kind: Literal["masked_gene"] = "masked_gene"
    masked_fraction: float = Field(default=0.15, gt=0, le=1, description="genes of a cell hidden")
    mask_token_fraction: float = Field(
        default=0.8, ge=0, le=1, description="of the hidden genes: replaced by <mask>"
    )
    random_fraction: float = Field(
        default=0.1, ge=0, le=1, description="of the hidden genes: replaced by a random gene"
    )
    reads_tokens: ClassVar[bool] = True
    hides: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check(self) -> "MaskedGeneConfig":
        if self.mask_token_fraction + self.random_fraction > 1 + 1e-9:
            raise ValueError(
                f"mask_token_fraction {self.mask_token_fraction} and random_fraction "
                f"{self.random_fraction} are more than all hidden genes: lower one of them"
            )
        return self

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "MaskedGeneHead":
        """Return a layer before the output, whose weights are the gene embeddings."""
        return MaskedGeneHead(network, facts.vocabulary.n_tokens)

    def row_names(self, facts: DataFacts) -> dict[str, Sequence[str]]:
        """Return the gene ids."""
        return {"bias": facts.vocabulary.gene_ids}

    def hide(self, batch: Batch, draw: Draw, facts: DataFacts) -> Batch:
        """Replace tokens: by ``<mask>`` without its count, by a random gene, or not at all."""
        token_ids = original_of(batch)["token_ids"]
        is_hidden = (token_ids >= N_SPECIALS) & (draw(0) < self.masked_fraction)
        how, changed = draw(1), self.mask_token_fraction + self.random_fraction
        is_masked = is_hidden & (how < self.mask_token_fraction)
        is_random = is_hidden & ~is_masked & (how < changed)
        gene = N_SPECIALS + (draw(2) * facts.vocabulary.n_genes).long()
        batch = mask_genes(batch, is_masked)
        is_random &= batch["token_ids"] >= N_SPECIALS  # unless another objective has masked it
        seen = torch.where(is_random, gene, batch["token_ids"])
        target = torch.where(is_hidden, token_ids, -1)
        return cast(Batch, {**batch, "token_ids": seen, TARGET: target})

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of each cell's hidden genes, ``(b,)``; 0 without any."""
        cell, losses, _ = self._hidden(encoded, head, batch)
        return mean_of_cells(losses, cell, len(batch["labels"]))

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return how many genes of each cell were hidden, how many predicted, and their loss."""
        cell, losses, is_correct = self._hidden(encoded, head, batch)
        nothing = losses.new_zeros(len(batch["labels"]))
        return {
            "masked_gene_hidden": nothing.index_add(0, cell, torch.ones_like(losses)),
            "masked_gene_correct": nothing.index_add(0, cell, is_correct.float()),
            "masked_gene_loss": nothing.index_add(0, cell, losses),
        }

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return loss and accuracy over all hidden tokens."""
        n = max(float(predictions["masked_gene_hidden"].sum()), 1.0)
        return {
            "masked_gene_loss": float(predictions["masked_gene_loss"].sum()) / n,
            "masked_gene_accuracy": float(predictions["masked_gene_correct"].sum()) / n,
        }

    def _hidden(
        self, encoded: Encoded, head: nn.Module, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cell of each hidden token that was read, its loss, whether it is correct."""
        target, cell = cast("dict[str, Tensor]", batch)[TARGET], cell_of_token(batch)  # (n,)
        if encoded.token_index is not None:
            target, cell = target[encoded.token_index], cell[encoded.token_index]
        assert encoded.token_states is not None
        (hidden,) = torch.nonzero(target >= 0, as_tuple=True)
        logits = head(encoded.token_states[hidden]).float()  # (hidden, v)
        target = target[hidden]
        losses = F.cross_entropy(logits, target, reduction="none")
        return cell[hidden], losses, logits.argmax(dim=1) == target


class MaskedGeneHead(nn.Module):
    """Linear, GELU, layer norm, and the product with every token's embedding (tied weights)."""

    def __init__(self, network: Network, n_vocabulary: int) -> None:
        super().__init__()
        d = network.d_model
        self.layers = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.LayerNorm(d))
        self.bias = nn.Parameter(torch.zeros(n_vocabulary))
        # Within a tuple it is not registered a second time: the weights belong to the network.
        self.tied = (network,)

    def forward(self, states: Tensor) -> Tensor:
        """Map states ``(m, d)`` to logits ``(m, v)``."""
        (network,) = self.tied
        return F.linear(self.layers(states), network.token_embedding, self.bias)
