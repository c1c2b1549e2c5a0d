"""A cell as the sum of its genes' embeddings, weighted by their values."""

from typing import Literal

from torch import nn

from dataset.batches import cell_of_token
from models.network import Encoded, Network, NetworkConfig


class ToyNetworkConfig(NetworkConfig):
    kind: Literal["toy_network"] = "toy_network"
    d_model: int = 16

    def build(self, facts):
        return ToyNetwork(self.d_model, facts.vocabulary.n_tokens)


class ToyNetwork(Network):
    by_gene = ("embedding.weight",)

    def __init__(self, d_model, n_vocabulary):
        super().__init__()
        self.d_model = d_model
        self.embedding = nn.Embedding(n_vocabulary, d_model)

    def forward(self, batch, *, tokens=False):
        x, cell = self.embedding(batch["token_ids"]), cell_of_token(batch)
        total = x.new_zeros(len(batch["labels"]), self.d_model)
        total = total.index_add(0, cell, x * batch["values"][:, None])
        return Encoded(total, x + total[cell] if tokens else None)
