"""A cell as the mean of its tokens' embeddings."""

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
        self.of_value = nn.Linear(1, d_model)

    def forward(self, batch, *, tokens=False):
        x = self.embedding(batch["token_ids"]) + self.of_value(batch["values"][:, None])
        cell, lengths = cell_of_token(batch), batch["offsets"].diff()
        total = x.new_zeros(len(lengths), self.d_model).index_add(0, cell, x)
        mean = total / lengths[:, None]
        return Encoded(mean, x + mean[cell] if tokens else None)
