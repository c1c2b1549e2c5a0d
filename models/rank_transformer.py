"""Transformer over a cell's genes in rank order; the cell embedding is the state of ``<cls>``.

Tokens are those of Geneformer (Theodoris et al. 2023, Methods): the detected genes of a cell by
falling median-scaled expression, after ``<cls>``; for two time points ``<sep>`` and the genes of
the previous profile follow. Deliberate differences:

- trained from scratch, so the gene embeddings may start from the training cells' own expression
  (``gene_init: svd``) and ``<cls>`` from the cell's (``cls_init: expression``)
- pre-norm blocks; the last one computes the ``<cls>`` row only
- rank position is a choice. Without it attention sees a set: then only the counts behind the
  tokens (``cls_init``, ``value_embedding``) tell a highly expressed gene from a low one
- ranks restart after ``<sep>``: the strongest gene of either segment has position 1

Legend: ``b`` cells, ``n`` tokens of all cells, ``m`` of them in the blocks, ``d`` width.
"""

from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, model_validator
from torch import Tensor, nn

from configs.base import ConfigError
from dataset.batches import Batch, openings
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import CLS, N_SPECIALS, SEP
from models.dropout import Dropout
from models.expression_network import ExpressionConfig, ExpressionNetwork
from models.flops import Flop, training_flop
from models.network import Encoded
from models.packing import Cells, cells_of
from models.ranked_tokens import (
    check_ranked,
    highest_ranks,
    rank_positions,
    segments_of,
    sinusoids,
    token_expression,
)
from models.transformer import Encoder

MAX_RANKS = 2048  # that have a learned position, where the config sets no context_genes


class RankTransformerConfig(ExpressionConfig):
    """Shape and initial weights of a rank transformer."""

    kind: Literal["rank_transformer"] = "rank_transformer"
    n_layers: int = Field(default=2, ge=1)
    n_heads: int = Field(default=4, ge=1)
    d_head: int | None = Field(default=None, ge=1, description="null: d_model / n_heads")
    d_feed_forward: int | None = Field(default=None, ge=1, description="null: 4 x d_model")
    context_genes: int | None = Field(
        default=None,
        ge=1,
        description="highest ranks of each segment that enter the blocks; null: the whole row. "
        "The cost of attention grows with the square of it",
    )
    attention_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="leaves the fast attention kernels"
    )
    attention_drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the cells whose attention a block leaves out in an update: where "
        "cells are few, attention learns them by heart, and the rest of the network must not rely "
        "on it",
    )
    checkpoint_activations: bool = Field(
        default=False,
        description="recompute each block in the backward pass: the same numbers in less memory, "
        "for one more forward pass",
    )
    rank_position: Literal["none", "learned", "sinusoidal"] = "learned"
    value_embedding: Literal["none", "mlp"] = Field(
        default="none", description="mlp: add a function of each token's log1p expression"
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

    def check_data(self, facts: DataFacts) -> None:
        """Raise a ConfigError if ranks are read and the tokens of these data are in no order."""
        super().check_data(facts)
        if self.rank_position != "none" or self.context_genes is not None:
            check_ranked(facts)

    def encoder_shape(self) -> dict[str, int]:
        """Return the sizes of the encoder, those left out filled in."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "d_head": self.d_head or self.d_model // self.n_heads,
            "d_feed_forward": self.d_feed_forward or 4 * self.d_model,
        }

    def build(self, facts: DataFacts) -> "RankTransformer":
        """Return the network for the vocabulary, row length and segments of these data."""
        n_ranks = facts.row_length // facts.n_segments - 1
        if self.rank_position == "learned" and self.context_genes is None and n_ranks > MAX_RANKS:
            raise ConfigError(
                f"model.context_genes: a cell of this folder may have {n_ranks:,} genes, and "
                f"{MAX_RANKS:,} ranks have a learned position; say how many ranks to read, such "
                f"as model.context_genes={n_ranks}"
            )
        return RankTransformer(self, facts)


class RankTransformer(ExpressionNetwork):
    """Embedding and encoder of the tokens of each cell."""

    def __init__(self, config: RankTransformerConfig, facts: DataFacts) -> None:
        d = config.d_model
        super().__init__(d, facts)
        self.config = config
        # The weights of two folders have one shape: it does not follow the length of the rows.
        n_positions = 1 + (config.context_genes or MAX_RANKS)
        self.position_embedding = (
            nn.Embedding(n_positions, d) if config.rank_position == "learned" else None
        )
        if config.rank_position == "sinusoidal":
            self.sinusoids: Tensor
            self.register_buffer("sinusoids", sinusoids(facts.row_length, d), persistent=False)
        self.segment_embedding = nn.Embedding(self.n_segments, d) if self.n_segments > 1 else None
        self.value_embedding = (
            nn.Sequential(nn.Linear(1, d), nn.GELU(), nn.Linear(d, d))
            if config.value_embedding == "mlp"
            else None
        )
        self.expression_norm = nn.LayerNorm(d) if config.cls_init == "expression" else None
        self.dropout = Dropout(config.dropout)
        self.encoder = Encoder(
            **config.encoder_shape(),
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            attention_drop_path=config.attention_drop_path,
            checkpoint_activations=config.checkpoint_activations,
        )

    def forward(self, batch: Batch, *, tokens: bool = False) -> Encoded:
        """Encode each cell, and with ``tokens`` each of its tokens that enters the blocks."""
        x, cells, token_index = self.embed(batch)  # (m, d)
        if tokens:
            states = self.encoder(self.dropout(x), cells)  # (m, d)
            return Encoded(states[cells.first], states, token_index)
        # The last block is asked for one row a cell, <cls>: no objective reads another.
        return Encoded(self.encoder(self.dropout(x), cells, first_only=True))  # (b, d)

    def embed(self, batch: Batch) -> tuple[Tensor, Cells, Tensor]:
        """Sum what is known of each token that enters the blocks: gene, rank, segment, value.

        Returned are the tokens ``(m, d)``, where each cell lies among them, and which tokens of
        the batch they are ``(m,)``.
        """
        index = torch.arange(len(batch["token_ids"]), device=batch["token_ids"].device)
        top = cast(Batch, {**batch, "token_index": index})
        if self.config.context_genes is not None:
            top = highest_ranks(top, self.config.context_genes, self.n_segments)
        token_ids, cells = top["token_ids"], cells_of(top["lengths"], top["offsets"])
        x = self.gene_embedding(token_ids)  # (m, d)
        if self.position_embedding is not None:
            x = x + self.position_embedding(rank_positions(token_ids))
        elif self.config.rank_position == "sinusoidal":
            x = x + self.sinusoids[rank_positions(token_ids)]
        if self.segment_embedding is not None:
            x = x + self.segment_embedding(segments_of(token_ids))
        if self.value_embedding is not None:
            values = self.value_embedding(token_expression(top)[:, None])  # (m, d)
            x = x + values * (token_ids >= N_SPECIALS)[:, None]
        if self.expression_norm is not None:
            # Each segment is summed, over the whole row, into the token that opens it.
            last = cells.offsets[1:] - 1  # (b,)
            for segment, opening in enumerate((CLS, SEP)[: self.n_segments]):
                total = self.expression_norm(self.sum_expression(batch, segment))  # (b, d)
                first = cells.first if opening == CLS else openings(token_ids)[last]  # (b,)
                x = x.index_add(0, first, total * (token_ids[first] == opening)[:, None])
        return x, cells, cast("dict[str, Tensor]", top)["token_index"]

    def training_flop(self, lengths: ArrayLike) -> Flop:
        """FLOP of an update on cells of these lengths, of which the blocks read the top ranks."""
        config = self.config
        if config.context_genes is not None:  # of two segments: up to the space for both
            lengths = np.minimum(lengths, self.n_segments * (1 + config.context_genes))
        recompute = config.checkpoint_activations
        return training_flop(lengths, checkpoint_activations=recompute, **config.encoder_shape())
