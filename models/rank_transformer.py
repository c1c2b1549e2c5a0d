"""Transformer over a cell's genes in rank order, classifying from ``<cls>``.

Tokens are those of Geneformer (Theodoris et al. 2023, Methods): the detected genes of a cell by
falling median-scaled expression, after ``<cls>``; for two time points ``<sep>`` and the genes of
the previous profile follow. Deliberate differences:

- trained from scratch, so the gene embeddings may start from the training cells' own expression
  (``gene_init: svd``) and ``<cls>`` from the cell's (``cls_init: expression``)
- pre-norm blocks; the last one computes the ``<cls>`` row only
- whether rank position is an input is a choice of the config. Corrected attention without it sees
  a set: then only the counts behind the tokens (``cls_init``, ``value_embedding``) tell a highly
  expressed gene from a low one
- ranks restart after ``<sep>``: the strongest gene of either half has position 1

Presets: the defaults (width 64, 2 layers) suit some thousand cells on a CPU. For the shape of
Geneformer V1 say ``d_model: 256, n_layers: 6, n_heads: 4, d_feed_forward: 512``.

Legend: ``b`` cells, ``n`` tokens of all cells, ``s`` segments, ``d`` width, ``c`` classes.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from configs.base import Config
from dataset.batches import Batch, cell_of_token, keep_tokens, openings
from dataset.log_expression import TARGET_SUM
from dataset.vocabulary import CLS, N_SPECIALS, PAD, SEP
from models.gene_svd import gene_svd
from models.mlp_classifier import MLPClassifier
from models.objectives import Output
from models.packing import Cells, cells_of
from models.transformer import Encoder, initialize_weights


class RankTransformerConfig(Config):
    """Shape and start of a rank transformer."""

    kind: Literal["rank_transformer"] = "rank_transformer"
    d_model: int = Field(default=64, ge=1, description="width of a token")
    n_layers: int = Field(default=2, ge=1)
    n_heads: int = Field(default=4, ge=1)
    d_head: int | None = Field(default=None, ge=1, description="null: d_model / n_heads")
    d_feed_forward: int | None = Field(default=None, ge=1, description="null: 4 x d_model")
    d_hidden: int | None = Field(default=None, ge=1, description="of the head; null: d_model")
    n_tokens: int | None = Field(
        default=None,
        ge=1,
        description="highest ranks of each half that enter the blocks; null: the whole row. The "
        "cost of attention grows with the square of it",
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="leaves the fast attention kernels"
    )
    checkpoint_activations: bool = Field(
        default=False,
        description="compute each block again for its gradients instead of keeping what happened "
        "in it: the same numbers in less memory, for one more forward pass",
    )
    rank_position: Literal["none", "learned", "sinusoidal"] = "learned"
    value_embedding: Literal["none", "mlp"] = Field(
        default="none", description="mlp: add a function of each token's log1p expression"
    )
    gene_init: Literal["random", "svd"] = Field(
        default="svd", description="svd: of the training cells' standardised log expression"
    )
    cls_init: Literal["learned", "expression"] = Field(
        default="expression",
        description="expression: <cls> also starts with the cell's expression-weighted genes",
    )

    @model_validator(mode="after")
    def _check(self) -> "RankTransformerConfig":
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}: "
                "change one of them or set d_head"
            )
        if self.rank_position == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"sinusoidal positions need an even d_model, found {self.d_model}")
        return self

    def encoder_shape(self) -> dict[str, int]:
        """Return the sizes of the encoder, those left out filled in."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "d_head": self.d_head or self.d_model // self.n_heads,
            "d_feed_forward": self.d_feed_forward or 4 * self.d_model,
        }

    def build(
        self, *, n_vocabulary: int, n_classes: int, n_tokens: int, n_segments: int
    ) -> "RankTransformer":
        """Return the network for an encoded folder; its sizes come from there, not from here."""
        return RankTransformer(
            self,
            n_vocabulary=n_vocabulary,
            n_classes=n_classes,
            n_tokens=n_tokens,
            n_segments=n_segments,
        )

    def initialize(
        self,
        model: "RankTransformer",
        read_expression: Callable[[], tuple[csr_matrix, np.ndarray]],
        read_cells: Callable[[int], Batch],
        rng: np.random.Generator,
    ) -> None:
        """Fit what starts from data, on train cells only.

        Parameters
        ----------
        model
            What ``build`` returned.
        read_expression
            Gives the counts and library sizes of the train cells. Called only when needed: an
            atlas takes a while to read.
        read_cells
            Gives a batch of at most so many train cells.
        rng
            Source of random numbers.
        """
        if self.gene_init == "svd":
            counts, library_size = read_expression()
            genes = gene_svd(counts, library_size, n_components=self.d_model, rng=rng)
            with torch.no_grad():
                model.gene_embedding.weight[N_SPECIALS:] = GENE_STD * torch.from_numpy(genes)
        if self.cls_init == "expression":
            model.standardize_expression(read_cells(1000))


GENE_STD = 0.2  # of the gene embeddings at the start


class RankTransformer(nn.Module):
    """Embedding, encoder, head. Sizes as in ``RankTransformerConfig.build``."""

    def __init__(
        self,
        config: RankTransformerConfig,
        *,
        n_vocabulary: int,
        n_classes: int,
        n_tokens: int,
        n_segments: int,
    ) -> None:
        super().__init__()
        d = config.d_model
        self.gene_embedding = nn.Embedding(n_vocabulary, d, padding_idx=PAD)
        n_positions = min(config.n_tokens or n_tokens, n_tokens - 1) + 1
        self.position_embedding = (
            nn.Embedding(n_positions, d) if config.rank_position == "learned" else None
        )
        if config.rank_position == "sinusoidal":
            self.sinusoids: Tensor
            self.register_buffer("sinusoids", sinusoids(n_positions, d), persistent=False)
        self.segment_embedding = nn.Embedding(n_segments, d) if n_segments > 1 else None
        self.value_embedding = (
            nn.Sequential(nn.Linear(1, d), nn.GELU(), nn.Linear(d, d))
            if config.value_embedding == "mlp"
            else None
        )
        self.expression_norm = nn.LayerNorm(d) if config.cls_init == "expression" else None
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(
            **config.encoder_shape(),
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            checkpoint_activations=config.checkpoint_activations,
        )
        self.head = MLPClassifier(d, config.d_hidden or d, n_classes, config.dropout)
        self.config = config
        self.n_segments = n_segments
        initialize_weights(self)
        nn.init.normal_(self.gene_embedding.weight[N_SPECIALS:], std=GENE_STD)

    def forward(self, batch: Batch) -> Output:
        """Classify each cell by its ``token_ids``, ``counts`` and ``library_size``."""
        x, cells = self.embed(batch)  # (n, d)
        # The last block is asked for one row a cell, <cls>: the head reads no other.
        cell_embedding = self.encoder(self.dropout(x), cells, first_only=True)  # (b, d)
        return Output(logits=self.head(cell_embedding), cell_embedding=cell_embedding)

    def embed(self, batch: Batch) -> tuple[Tensor, Cells]:
        """Sum what is known of each token: gene, rank, segment, value.

        Returns
        -------
        The tokens that enter the blocks, ``(n, d)``, and where each cell lies among them.
        """
        top = batch
        if self.config.n_tokens is not None:
            top = highest_ranks(batch, self.config.n_tokens, self.n_segments)
        token_ids, cells = top["token_ids"], cells_of(top["lengths"], top["offsets"])
        x = self.gene_embedding(token_ids)  # (n, d)
        if self.config.rank_position != "none":
            ranks = rank_positions(token_ids)  # (n,)
            if self.position_embedding is not None:
                x = x + self.position_embedding(ranks)
            else:
                x = x + self.sinusoids[ranks]
        if self.segment_embedding is not None:
            x = x + self.segment_embedding(segments_of(token_ids))
        if self.value_embedding is not None:
            values = self.value_embedding(token_expression(top)[:, None])  # (n, d)
            x = x + values * (token_ids >= N_SPECIALS)[:, None]
        if self.expression_norm is not None:
            # Each segment is summed, over the whole row, into the token that opens it.
            last = cells.offsets[1:] - 1  # (b,)
            for segment, opening in enumerate((CLS, SEP)[: self.n_segments]):
                total = self.expression_norm(self.sum_expression(batch, segment))  # (b, d)
                place = cells.first if opening == CLS else openings(token_ids)[last]  # (b,)
                x = x.index_add(0, place, total * (token_ids[place] == opening)[:, None])
        return x, cells

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
    def standardize_expression(self, batch: Batch) -> None:
        """Let every dimension of the normed sums have mean 0 and deviation 1 over these cells.

        All cells share their housekeeping genes, so that their sums mostly point the same way;
        what tells cell types apart would be a small part of what ``<cls>`` is given.
        """
        if self.expression_norm is None:
            return
        sums = self.sum_expression(batch, segment=0)
        normed = nn.functional.layer_norm(sums, sums.shape[1:])
        std = normed.std(dim=0)
        scale = torch.where(std > 1e-3, 1 / std.clamp(min=1e-3), 1.0)
        self.expression_norm.weight.copy_(scale)
        self.expression_norm.bias.copy_(-normed.mean(dim=0) * scale)


def segments_of(token_ids: Tensor) -> Tensor:
    """Return 0 up to ``<sep>`` and 1 from there on, ``(n,)``."""
    return (token_ids[openings(token_ids)] == SEP).long()


def highest_ranks(batch: Batch, n_tokens: int, n_segments: int) -> Batch:
    """Keep the first ``n_tokens`` genes of each segment of each cell, and its special tokens."""
    lengths = None  # of two segments only the device knows them
    if n_segments == 1:
        lengths = [min(length, 1 + n_tokens) for length in batch["lengths"]]
    return keep_tokens(batch, rank_positions(batch["token_ids"]) <= n_tokens, lengths)


def rank_positions(token_ids: Tensor) -> Tensor:
    """Rank of each token in its segment: 0 for ``<cls>`` and ``<sep>``, 1 for the top gene."""
    return torch.arange(len(token_ids), device=token_ids.device) - openings(token_ids)


def token_expression(batch: Batch) -> Tensor:
    """log1p(counts per 10,000) behind each token, by its segment's library size, ``(n,)``."""
    library_size = batch["library_size"].clamp(min=1)  # (b, s)
    segment = segments_of(batch["token_ids"]).clamp(max=library_size.shape[1] - 1)
    library_size = library_size[cell_of_token(batch), segment]  # (n,)
    return torch.log1p(batch["counts"] * (TARGET_SUM / library_size))


def sinusoids(n_positions: int, d_model: int) -> Tensor:
    """Return the sine positions of Vaswani et al. 2017, section 3.5, ``(n_positions, d)``.

    Scaled to the size of the learned ones, so that they do not drown the genes at the start.
    """
    position = torch.arange(n_positions)[:, None]
    frequency = torch.exp(torch.arange(0, d_model, 2) * (-np.log(10_000.0) / d_model))
    angle = position * frequency
    return 0.1 * torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
