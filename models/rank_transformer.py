"""Transformer over a cell's genes in rank order; the cell is the state of ``<cls>``.

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

Legend: ``b`` cells, ``t`` tokens of a padded row, ``n`` real tokens of all cells, ``d`` width.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, model_validator
from torch import Tensor, nn

from dataset.log_expression import TARGET_SUM
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import CLS, N_SPECIALS, PAD, SEP
from models.flops import Flop, training_flop
from models.gene_svd import gene_svd
from models.network import Encoded, Network, NetworkConfig, TrainCells
from models.packing import Cells, pack
from models.transformer import Encoder

if TYPE_CHECKING:
    from dataset.batches import Batch


class RankTransformerConfig(NetworkConfig):
    """Shape and start of a rank transformer."""

    kind: Literal["rank_transformer"] = "rank_transformer"
    d_model: int = Field(default=64, ge=1, description="width of a token")
    n_layers: int = Field(default=2, ge=1)
    n_heads: int = Field(default=4, ge=1)
    d_head: int | None = Field(default=None, ge=1, description="null: d_model / n_heads")
    d_feed_forward: int | None = Field(default=None, ge=1, description="null: 4 x d_model")
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

    def build(self, facts: DataFacts) -> "RankTransformer":
        """Return the network for these data; its sizes come from there, not from here."""
        return RankTransformer(
            self,
            n_vocabulary=facts.vocabulary.n_tokens,
            row_length=facts.row_length,
            n_segments=facts.n_segments,
        )

    def start(self, network: Network, train: TrainCells, rng: np.random.Generator) -> None:
        """Fit gene embeddings and the scale of ``<cls>`` on the train cells."""
        assert isinstance(network, RankTransformer)
        if self.gene_init == "svd":
            counts, library_size = train.expression()
            genes = gene_svd(counts, library_size, n_components=self.d_model, rng=rng)
            with torch.no_grad():
                network.gene_embedding.weight[N_SPECIALS:] = GENE_STD * torch.from_numpy(genes)
        if self.cls_init == "expression":
            network.standardize_expression(train.batch(1000))


GENE_STD = 0.2  # of the gene embeddings at the start


class RankTransformer(Network):
    """Embedding and encoder. Sizes as in ``RankTransformerConfig.build``."""

    by_gene = ("gene_embedding.weight",)

    def __init__(
        self,
        config: RankTransformerConfig,
        *,
        n_vocabulary: int,
        row_length: int,
        n_segments: int,
    ) -> None:
        super().__init__()
        d = self.d_model = config.d_model
        self.gene_embedding = nn.Embedding(n_vocabulary, d, padding_idx=PAD)
        n_positions = min(config.n_tokens or row_length, row_length - 1) + 1
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
        self.config = config
        self.n_segments = n_segments

    @property
    def token_embedding(self) -> Tensor:
        """Embedding of every token, ``(v, d)``."""
        return self.gene_embedding.weight

    def initialize(self) -> None:
        """Let the genes start larger than other embeddings: without positions they are all."""
        nn.init.normal_(self.gene_embedding.weight[N_SPECIALS:], std=GENE_STD)

    def forward(self, batch: "Batch", *, tokens: bool = False) -> Encoded:
        """Encode each cell; with ``tokens``, each of its tokens that enters the blocks too.

        Uses ``token_ids`` and ``counts`` ``(b, t)`` and ``library_size`` ``(b, segments)``.
        """
        x, cells = self.embed(batch)  # (n, d)
        if tokens:
            states = self.encoder(self.dropout(x), cells)  # (n, d)
            return Encoded(states[cells.first], states)
        # The last block is asked for one row a cell, <cls>: no objective reads another.
        return Encoded(self.encoder(self.dropout(x), cells, first_only=True))  # (b, d)

    def training_flop(self, lengths: ArrayLike) -> Flop:
        """FLOP of an update on cells of these lengths.

        Where the network reads the highest ranks only (``n_tokens`` of its config), no more are
        counted; of two halves, one of which is shorter than that, up to the space for both.
        """
        config = self.config
        if config.n_tokens is not None:
            lengths = np.minimum(lengths, self.n_segments * (1 + config.n_tokens))
        again = config.checkpoint_activations
        return training_flop(lengths, checkpoint_activations=again, **config.encoder_shape())

    def embed(self, batch: "Batch") -> tuple[Tensor, Cells]:
        """Sum what is known of each token: gene, rank, segment, value.

        Returns
        -------
        The tokens that enter the blocks, ``(n, d)``, and where each cell lies among them.
        """
        top = batch
        if self.config.n_tokens is not None:
            top = highest_ranks(batch, self.config.n_tokens, self.n_segments)
        real, cells = pack(top["token_ids"] == PAD)  # (n,) in b * t
        token_ids = top["token_ids"].flatten()[real]  # (n,)
        x = self.gene_embedding(token_ids)  # (n, d)
        if self.config.rank_position != "none":
            ranks = rank_positions(top["token_ids"]).flatten()[real]  # (n,)
            if self.position_embedding is not None:
                x = x + self.position_embedding(ranks)
            else:
                x = x + self.sinusoids[ranks]
        if self.segment_embedding is not None:
            x = x + self.segment_embedding(segments_of(top["token_ids"]).flatten()[real])
        if self.value_embedding is not None:
            expression = token_expression(top).flatten()[real]
            values = self.value_embedding(expression[:, None])  # (n, d)
            x = x + values * (token_ids >= N_SPECIALS)[:, None]
        if self.expression_norm is not None:
            # Each half is summed, over the whole row, into the token that opens it.
            for segment, opening in enumerate((CLS, SEP)[: self.n_segments]):
                total = self.expression_norm(self.sum_expression(batch, segment))  # (b, d)
                is_opening = top["token_ids"] == opening  # (b, t), once in a row at most
                place = cells.first + is_opening.long().argmax(dim=1)
                x = x.index_add(0, place, total * is_opening.any(dim=1, keepdim=True))
        return x, cells

    def sum_expression(self, batch: "Batch", segment: int) -> Tensor:
        """Sum the embeddings of a half's genes, weighted by log1p expression, ``(b, d)``."""
        token_ids = batch["token_ids"]
        return nn.functional.embedding_bag(  # never writes (b, t, d) down
            token_ids,
            self.gene_embedding.weight,
            per_sample_weights=token_expression(batch) * (segments_of(token_ids) == segment),
            mode="sum",
        )

    @torch.no_grad()
    def standardize_expression(self, batch: "Batch") -> None:
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
    """Return 0 up to ``<sep>`` and 1 from there on, ``(b, t)``."""
    return (token_ids == SEP).cumsum(dim=1)


def highest_ranks(batch: "Batch", n_tokens: int, n_segments: int) -> "Batch":
    """Keep the first ``n_tokens`` genes of each half of each cell, and its special tokens."""
    if n_segments == 1:  # they stand in front, and sorting whole rows would take long
        for_one = {name: batch[name][:, : 1 + n_tokens] for name in ("token_ids", "counts")}
        batch = {**batch, **for_one}  # type: ignore[typeddict-item]
    token_ids = batch["token_ids"]
    keep = (rank_positions(token_ids) <= n_tokens) & (token_ids != PAD)
    # What is kept moves to the front, in order.
    order = (~keep).byte().argsort(dim=1, stable=True)[:, : n_segments * (1 + n_tokens)]
    keep = keep.gather(1, order)
    return {
        **batch,
        "token_ids": torch.where(keep, token_ids.gather(1, order), PAD),
        "counts": torch.where(keep, batch["counts"].gather(1, order), 0),
    }


def rank_positions(token_ids: Tensor) -> Tensor:
    """Rank of each token in its own half: 0 for ``<cls>`` and ``<sep>``, 1 for the top gene."""
    index = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
    opening = torch.where(token_ids == SEP, index, 0).cummax(dim=1).values
    return index - opening


def token_expression(batch: "Batch") -> Tensor:
    """log1p(counts per 10,000) behind each token, by its own half's library size, ``(b, t)``."""
    library_size = batch["library_size"].clamp(min=1)  # (b, segments)
    column = segments_of(batch["token_ids"]).clamp(max=library_size.shape[1] - 1)
    return torch.log1p(batch["counts"] * (TARGET_SUM / library_size.gather(1, column)))


def sinusoids(n_positions: int, d_model: int) -> Tensor:
    """Return the sine positions of Vaswani et al. 2017, section 3.5, ``(n_positions, d)``.

    Scaled to the size of the learned ones, so that they do not drown the genes at the start.
    """
    position = torch.arange(n_positions)[:, None]
    frequency = torch.exp(torch.arange(0, d_model, 2) * (-np.log(10_000.0) / d_model))
    angle = position * frequency
    return 0.1 * torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
