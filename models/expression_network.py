"""The start that networks share: a cell as the sum of its genes' embeddings, by expression.

Legend: ``b`` cells, ``d`` width.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import N_SPECIALS, PAD
from models.gene_svd import gene_svd
from models.network import Network, NetworkConfig, TrainCells
from models.ranked_tokens import segments_of, token_expression

GENE_STD = 0.2  # of the gene embeddings at the start


class ExpressionConfig(NetworkConfig):
    """Width and initial weights of a network of gene embeddings."""

    d_model: int = Field(default=64, ge=1, description="width of a token and of the cell")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    gene_init: Literal["random", "svd"] = Field(
        default="svd", description="svd: of the training cells' standardized log expression"
    )

    def start(self, network: Network, train: TrainCells, rng: np.random.Generator) -> None:
        """Fit gene embeddings and the scale of their sums on the train cells."""
        assert isinstance(network, ExpressionNetwork)
        if self.gene_init == "svd":
            counts, library_size = train.expression()
            genes = gene_svd(counts, library_size, n_components=self.d_model, rng=rng)
            with torch.no_grad():
                network.gene_embedding.weight[N_SPECIALS:] = GENE_STD * torch.from_numpy(genes)
        if network.expression_norm is not None:
            network.scale_expression(train.batch(1000))


class ExpressionNetwork(Network):
    """Gene embeddings, and their sum over a cell.

    Attributes
    ----------
    expression_norm
        Of the sums; None: this network takes none.
    """

    by_gene = ("gene_embedding.weight",)
    expression_norm: nn.LayerNorm | None

    def __init__(self, d_model: int, facts: DataFacts) -> None:
        super().__init__()
        self.d_model, self.n_segments = d_model, facts.n_segments
        self.gene_embedding = nn.Embedding(facts.vocabulary.n_tokens, d_model, padding_idx=PAD)

    @property
    def token_embedding(self) -> Tensor:
        """Embedding of every token, ``(v, d)``."""
        return self.gene_embedding.weight

    def initialize(self) -> None:
        """Let the genes start larger than other embeddings: without positions they are all."""
        nn.init.normal_(self.gene_embedding.weight[N_SPECIALS:], std=GENE_STD)

    def sum_expression(self, batch: Batch, segment: int) -> Tensor:
        """Sum the embeddings of a segment's genes, weighted by log1p expression, ``(b, d)``."""
        token_ids = batch["token_ids"]
        return nn.functional.embedding_bag(  # never writes (n, d) down
            token_ids,
            self.gene_embedding.weight,
            batch["offsets"][:-1].long(),
            per_sample_weights=token_expression(batch) * (segments_of(token_ids) == segment),
            mode="sum",
        )

    @torch.no_grad()
    def scale_expression(self, batch: Batch) -> None:
        """Let the normed sums have mean 0 over these cells, and dimensions of closer variance.

        All cells share their housekeeping genes, so that their sums mostly point the same way;
        what tells cell types apart would be a small part of what the network is given. Of an SVD
        the first dimensions vary most. Each is divided by the root of its deviation: with that
        itself (whitening) the last dimensions, mostly noise, would be as loud as the first, and
        val scores were worse on most sets of cells. The mean variance is 1 afterwards. Of a single
        cell, or of cells that are all the same, nothing follows, and nothing is changed.
        """
        if self.expression_norm is None or len(batch["labels"]) < 2:
            return
        sums = self.sum_expression(batch, segment=0)
        normed = nn.functional.layer_norm(sums, sums.shape[1:])
        std = normed.std(dim=0)
        if not (std > 1e-3).any():
            return
        scale = torch.where(std > 1e-3, std.clamp(min=1e-3).rsqrt(), 1.0)
        scale = scale / (scale * std).square().mean().sqrt().clamp(min=1e-3)
        self.expression_norm.weight.copy_(scale)
        self.expression_norm.bias.copy_(-normed.mean(dim=0) * scale)
