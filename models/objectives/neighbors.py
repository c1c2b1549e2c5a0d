"""Cell types from the nearest train cells: attention over their embeddings, trained end to end.

Neighborhood component analysis (Goldberger et al. 2004) with a transformer as its map, as in
ModernNCA (Ye et al. 2024): a cell's class shares are those of the train cells, each weighted by a
softmax over cosine similarities. Deliberate differences: all train cells of the bank are compared,
not a sample for each update, and their embeddings are those before the epoch: gradients flow
through the cell only, not through its neighbors.

Legend: ``b`` cells, ``m`` cells of the bank, ``c`` classes, ``d`` width.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.network import Encoded, Network
from models.objectives.base import Bank, Objective, check_classes

# Added to every share: a class whose only cell is left out, or that has none, is not impossible.
FLOOR = 1e-6


class NeighborsConfig(Objective):
    """Predict the type of each cell from the most similar train cells."""

    kind: Literal["neighbors"] = "neighbors"
    temperature: float = Field(
        default=0.1, gt=0, description="of the softmax over cosine similarities"
    )
    max_cells: int = Field(
        default=20_000,
        ge=1,
        description="train cells that are compared with and stored with the run; of more, as many "
        "of each class as fit are drawn, the same number of each that has so many",
    )

    @property
    def bank_size(self) -> int:
        """All cells that are compared with."""
        return self.max_cells

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "Neighbors":
        """Return a head without weights, to be given its cells by ``remember``."""
        check_classes(self.kind, facts)
        return Neighbors(facts.n_classes, self.temperature)

    def remember(self, head: nn.Module, bank: Bank) -> None:
        """Compare with these cells from now on."""
        assert isinstance(head, Neighbors)
        head.remember(bank)

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return ``-log`` of the share of each cell's own class among the others, ``(b,)``.

        It is 0 for a cell without label.
        """
        labels = batch["labels"]
        shares = head(encoded.cell_embedding, batch["cell_index"])
        losses = -shares.gather(1, labels.clamp(min=0)[:, None])[:, 0].log()
        return torch.where(labels >= 0, losses, 0.0)

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the class shares, ``(b, c)``, as ``probabilities``."""
        return {"probabilities": head(encoded.cell_embedding)}


class Neighbors(nn.Module):
    """Class shares among the cells of a bank, by comparing with every one of them."""

    def __init__(self, n_classes: int, temperature: float) -> None:
        super().__init__()
        self.n_classes, self.temperature = n_classes, temperature
        # No buffers: DDP would broadcast them in every update, and a checkpoint would hold them.
        self.bank: tuple[Tensor, Tensor, Tensor] | None = None

    def remember(self, bank: Bank) -> None:
        """Take the cells to compare with."""
        directions = F.normalize(bank.embeddings.float(), dim=1)  # (m, d)
        is_of_class = F.one_hot(bank.labels, self.n_classes).float()  # (m, c)
        self.bank = directions, is_of_class, bank.cell_index

    def forward(self, cell_embedding: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Compare cells with those of the bank.

        Parameters
        ----------
        cell_embedding
            Of the cells, ``(b, d)``.
        left_out
            The train cell that each of them is, ``(b,)``, and is not to be compared with.

        Returns
        -------
        Shares of the classes, ``(b, c)``, float32.
        """
        assert self.bank is not None, "remember comes first"
        directions, is_of_class, cell_index = self.bank
        with torch.autocast(cell_embedding.device.type, enabled=False):  # a share hangs on digits
            logits = F.normalize(cell_embedding.float(), dim=1) @ directions.T / self.temperature
            if left_out is not None:
                is_itself = left_out[:, None] == cell_index
                logits = logits.masked_fill(is_itself, torch.finfo(logits.dtype).min)
            shares = logits.softmax(dim=1) @ is_of_class
            return (shares + FLOOR) / (1 + self.n_classes * FLOOR)
