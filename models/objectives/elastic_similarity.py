"""Elastic cell similarity: cells that are alike become more alike, the others less.

ECS of scGPT (Cui et al. 2024, Methods): of every pair of cells ``1 - (s - threshold)^2``, where
``s`` is the cosine of their embeddings, negative ones taken as 0. Pairs above the threshold are
drawn together, those below pushed apart. Deliberate difference: a cell is compared with train
cells as they were embedded before the epoch, not with the others of its batch: a loss then does
not hang on who shares the batch, nor on the number of processes.

Legend: ``b`` cells, ``m`` cells of the bank, ``d`` width.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.network import Encoded, Network
from models.objectives.base import Bank, Objective


class ElasticSimilarityConfig(Objective):
    """Move each cell towards the train cells that it is like, and away from the others."""

    kind: Literal["elastic_similarity"] = "elastic_similarity"
    threshold: float = Field(default=0.6, gt=0, lt=1, description="cosine of cells that are alike")
    max_cells: int = Field(default=1000, ge=2, description="train cells that are compared with")
    is_scored: ClassVar[bool] = False

    @property
    def bank_size(self) -> int:
        """All cells that are compared with."""
        return self.max_cells

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "Similarities":
        """Return a head without weights, to be given its cells by ``remember``."""
        return Similarities(self.threshold)

    def remember(self, head: nn.Module, bank: Bank) -> None:
        """Compare with these cells from now on."""
        assert isinstance(head, Similarities)
        head.bank = F.normalize(bank.embeddings.float(), dim=1), bank.cell_index

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the mean over the other cells of ``1 - (s - threshold)^2``, ``(b,)``."""
        return head(encoded.cell_embedding, batch["cell_index"])


class Similarities(nn.Module):
    """How undecided the similarities of cells to those of a bank are."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        # No buffers: DDP would broadcast them in every update, and a checkpoint would hold them.
        self.bank: tuple[Tensor, Tensor] | None = None

    def forward(self, cell_embedding: Tensor, cell_index: Tensor) -> Tensor:
        """Compare cells ``(b, d)``, each but with itself, ``cell_index`` ``(b,)``: ``(b,)``."""
        assert self.bank is not None, "remember comes first"
        directions, others = self.bank  # (m, d), (m,)
        with torch.autocast(cell_embedding.device.type, enabled=False):
            cosine = F.normalize(cell_embedding.float(), dim=1) @ directions.T
            undecided = 1 - (F.relu(cosine) - self.threshold) ** 2  # (b, m)
            is_other = cell_index[:, None] != others
            return (undecided * is_other).sum(dim=1) / is_other.sum(dim=1).clamp(min=1)
