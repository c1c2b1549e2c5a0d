"""Whole-cell decoding: predict the expression of every gene from the cell embedding alone.

Dandala et al. 2025 (BMFM-RNA, arXiv:2506.14861; there "whole-cell expression decoding"): the whole
vocabulary is decoded from ``<cls>``, even though the network was shown a part of the cell, so that
the cell embedding has to hold all of it. There it beat masked genes on every downstream metric.

For every gene of the vocabulary two numbers are predicted, whether it is detected in the cell, and
its log1p of counts per 10,000 where it is; those that the network was shown as well as those that
were hidden from it. The loss of a cell is the mean cross-entropy of "detected" over all genes plus
the mean squared error over its detected ones. Deliberate differences: the output embedding is the
network's own (tied), so that a small set of cells suffices; of a cell with more genes than its row
those beyond its end count as not detected, and so do those that ``augment.token_dropout`` left out
of a train cell; of two segments the first is decoded.

Legend: ``b`` cells, ``n`` tokens, ``g`` genes of the vocabulary, ``d`` width.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.batches import Batch, cell_of_token
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import N_SPECIALS
from models.network import Encoded, Network
from models.objectives.base import (
    Draw,
    Objective,
    check_genes,
    mask_genes,
    mean_of_cells,
    original_of,
)
from models.ranked_tokens import segments_of, token_expression

STREAM = 3  # of the draw


class WholeCellConfig(Objective):
    """Decode all genes of a cell from its embedding; needs no labels."""

    kind: Literal["whole_cell"] = "whole_cell"
    hidden_fraction: float = Field(
        default=0.5, ge=0, lt=1, description="genes of a cell that the network is not shown"
    )
    hides: ClassVar[bool] = True

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "WholeCellHead":
        """Return a layer before the outputs, whose weights are the gene embeddings."""
        check_genes(self.kind, facts)
        return WholeCellHead(network, facts.vocabulary.n_tokens)

    def row_names(self, facts: DataFacts) -> dict[str, Sequence[str]]:
        """Return the gene ids."""
        return {"bias.weight": facts.vocabulary.gene_ids}

    def hide(self, batch: Batch, draw: Draw, facts: DataFacts) -> Batch:
        """Replace tokens by ``<mask>`` without their counts."""
        is_gene = original_of(batch)["token_ids"] >= N_SPECIALS
        return mask_genes(batch, is_gene & (draw(STREAM) < self.hidden_fraction))

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each cell, ``(b,)``."""
        return sum(self._losses(encoded, head, batch))  # type: ignore[return-value]

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the two parts of each cell's loss."""
        losses = self._losses(encoded, head, batch)
        return {
            "whole_cell_detection_loss": losses.detection,
            "whole_cell_expression_loss": losses.expression,
        }

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return the mean loss over cells, and the means of its parts."""
        names = ("whole_cell_detection_loss", "whole_cell_expression_loss")
        parts = {name: float(predictions[name].mean()) for name in names}
        return {"whole_cell_loss": sum(parts.values())} | parts

    def _losses(self, encoded: Encoded, head: nn.Module, batch: Batch) -> "Losses":
        logits, predicted = head(encoded.cell_embedding).float().unbind(dim=1)  # (b, g) each
        expression = expression_of_genes(batch, logits.shape[1])
        is_detected = expression > 0
        detection = F.binary_cross_entropy_with_logits(
            logits, is_detected.float(), reduction="none"
        )
        cell, gene = torch.nonzero(is_detected, as_tuple=True)
        errors = (predicted[cell, gene] - expression[cell, gene]).square()
        return Losses(detection.mean(dim=1), mean_of_cells(errors, cell, len(expression)))


class Losses(NamedTuple):
    """Of each cell, ``(b,)``."""

    detection: Tensor  # cross-entropy in nats, mean over all genes
    expression: Tensor  # squared error of log1p expression, mean over the detected genes


class WholeCellHead(nn.Module):
    """Two views of the cell embedding, each multiplied with every gene's embedding."""

    def __init__(self, network: Network, n_vocabulary: int) -> None:
        super().__init__()
        d = network.d_model
        self.layers = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, 2 * d))
        self.bias = nn.Embedding(n_vocabulary, 2)  # its rows are tokens, and no weight decays
        # Within a tuple it is not registered a second time: the weights belong to the network.
        self.tied = (network,)

    def forward(self, cell_embedding: Tensor) -> Tensor:
        """Return logits of "detected", and log1p expression where it is, ``(b, 2, g)``."""
        (network,) = self.tied
        views = self.layers(cell_embedding).unflatten(1, (2, -1))  # (b, 2, d)
        genes, bias = network.token_embedding[N_SPECIALS:], self.bias.weight[N_SPECIALS:]
        return F.linear(views, genes) + bias.T


def expression_of_genes(batch: Batch, n_genes: int) -> Tensor:
    """Return log1p(counts per 10,000) of every gene before any was hidden, ``(b, g)``."""
    original = original_of(batch)
    token_ids, expression = original["token_ids"], token_expression(original)  # (n,)
    (genes,) = torch.nonzero(
        (token_ids >= N_SPECIALS) & (segments_of(token_ids) == 0), as_tuple=True
    )
    table = expression.new_zeros(len(batch["labels"]), n_genes)
    place = cell_of_token(batch)[genes], token_ids[genes] - N_SPECIALS
    return table.index_put(place, expression[genes])
