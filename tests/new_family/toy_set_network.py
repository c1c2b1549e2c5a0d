"""A cell as the sum of its genes' embeddings, the mean of its set, and where it lies in it."""

from typing import ClassVar, Literal

import torch
from torch import nn

from dataset.batches import cell_of_token
from models.network import CellSets, Encoded, Network, NetworkConfig


class ToySetNetworkConfig(NetworkConfig):
    kind: Literal["toy_set_network"] = "toy_set_network"
    sample_key: str = "field"
    cells_per_set: int = 12
    reads_positions: ClassVar[bool] = True

    @property
    def cell_sets(self):
        return CellSets(self.sample_key, self.cells_per_set)

    def build(self, facts):
        return ToySetNetwork(facts.vocabulary.n_tokens)


class ToySetNetwork(Network):
    d_model = 16

    def __init__(self, n_vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(n_vocabulary, self.d_model)
        self.to_position = nn.Linear(2, self.d_model)

    def forward(self, batch, *, tokens=False):
        x = self.embedding(batch["token_ids"]) * batch["counts"].log1p()[:, None]
        x = x.new_zeros(len(batch["labels"]), self.d_model).index_add(0, cell_of_token(batch), x)
        n_cells = batch["sets"].diff()
        of_cell = torch.arange(len(n_cells)).repeat_interleave(n_cells)

        def mean(values):
            total = values.new_zeros(len(n_cells), values.shape[1]).index_add(0, of_cell, values)
            return (total / n_cells[:, None])[of_cell]

        away = batch["positions"] - mean(batch["positions"])
        return Encoded(x + mean(x) + self.to_position(away))
