"""Transformer over a cell's genes and their values; the cell embedding is the state of ``<cls>``.

The network of scGPT (Cui et al. 2024, Methods): a token is the sum of the embeddings of its gene,
of its value and of what is known of the cell, its conditions (equation 5 there), or of the gene in
it (``perturbation_key``); genes are a set, without positions. Deliberate differences:

- trained from scratch, so the gene embeddings may start from the training cells' own expression
  (``gene_init: svd``) and ``<cls>`` from the cell's (``cls_init: expression``)
- pre-norm blocks; the last one computes the ``<cls>`` row only, where no objective reads tokens
- ``<cls>`` has no value, and is never asked for one
- of many genes the blocks read ``context_genes``, those of the highest counts, and ``<cls>`` may
  start with the sum over all. The original reads a random choice of the highly variable ones
- a condition may be unknown, of a donor whom training had not: it then adds nothing. So that this
  is not new to the network, training forgets the conditions of a share ``dropout`` of the cells
- ``batch_norm_by`` (DSBN) normalizes the genes' tokens before conditions are added, and not
  ``<cls>``: it is the same in all cells, and normalized by domain would say which one it is

For the shape of the whole-human scGPT say ``d_model: 512, n_layers: 12, n_heads: 8,
d_feed_forward: 512, gene_init: random, cls_init: learned``.

Legend: ``b`` cells, ``n`` tokens of all cells, ``m`` of them in the blocks, ``d`` width.
"""

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, model_validator
from torch import Tensor, nn

from configs.base import ConfigError
from dataset.batches import Batch, cell_of_token, sort_segments
from dataset.store.data_facts import DataFacts
from models.domain_batch_norm import DomainBatchNorm
from models.dropout import Dropout
from models.expression_network import ExpressionConfig, ExpressionNetwork
from models.flops import Flop, training_flop
from models.network import Encoded, Network, TrainCells
from models.objectives.base import original_of
from models.packing import Cells, cells_of
from models.perturbed_genes import perturbed_genes
from models.ranked_tokens import highest_ranks
from models.transformer import Encoder
from models.value_embedding import (
    HIDDEN,
    IS_KNOWN,
    VALUE_STD,
    ValueEmbedding,
    ValueKind,
    has_value,
    value_scale,
)


class ValueTransformerConfig(ExpressionConfig):
    """Shape and initial weights of a value transformer."""

    kind: Literal["value_transformer"] = "value_transformer"
    n_layers: int = Field(default=2, ge=1)
    n_heads: int = Field(default=4, ge=1)
    d_feed_forward: int | None = Field(default=None, ge=1, description="null: 4 x d_model")
    value_embedding: ValueKind = Field(
        default="mlp", description="a function of the value, a table of bins, or soft bins"
    )
    conditions: list[str] = Field(
        default=[],
        description="obs columns that each cell's tokens are told, some of the folder's "
        "condition_keys",
    )
    context_genes: int | None = Field(
        default=None,
        ge=1,
        description="genes of each cell that enter the blocks, those of the highest counts; null: "
        "the whole row. The cost of attention grows with the square of it",
    )
    perturbation_key: str | None = Field(
        default=None,
        description="obs column, one of the folder's condition_keys, that names the genes which "
        "are perturbed in a cell, joined by '+': their tokens are told so. A gene that a knockout "
        "left without counts is a token in cells encoded with include_zeros",
    )
    batch_norm_by: str | None = Field(
        default=None,
        description="obs column, one of the folder's condition_keys, such as the donor: a "
        "cell's embedded genes are batch-normalized by the statistics of its own (DSBN), or over "
        "all if that is unknown; null: they are not",
    )
    cls_init: Literal["learned", "expression"] = Field(
        default="expression",
        description="expression: <cls> also starts with the cell's expression-weighted genes",
    )
    checkpoint_activations: bool = Field(
        default=False,
        description="recompute each block in the backward pass: the same numbers in less memory, "
        "for one more forward pass",
    )

    @model_validator(mode="after")
    def _check(self) -> "ValueTransformerConfig":
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}: "
                "change one of them"
            )
        if self.batch_norm_by is not None and self.cls_init == "expression":
            raise ValueError(
                f"batch_norm_by {self.batch_norm_by!r} and cls_init 'expression': <cls> would "
                "start with what is not normalized; say cls_init: learned"
            )
        if self.perturbation_key is not None and self.context_genes is not None:
            raise ValueError(
                f"perturbation_key {self.perturbation_key!r} and context_genes "
                f"{self.context_genes}: the perturbed gene may not be among these; say "
                "context_genes: null"
            )
        return self

    def check_data(self, facts: DataFacts) -> None:
        """Raise a ConfigError if tokens have no values, or cells lack a condition."""
        value_scale(facts)
        wanted = [*self.conditions, *filter(None, (self.perturbation_key, self.batch_norm_by))]
        if missing := [key for key in wanted if key not in facts.conditions]:
            raise ConfigError(
                "model.conditions, model.perturbation_key, model.batch_norm_by: "
                f"{', '.join(missing)}; the cells were encoded with condition_keys: "
                f"{list(facts.conditions)}; name some of them, or encode again with "
                f"condition_keys: {list(dict.fromkeys(wanted))}"
            )

    def row_names(self, facts: DataFacts) -> dict[str, Sequence[str]]:
        """Return the names of the conditions that are embedded or normalized by."""
        found: dict[str, Sequence[str]] = {
            f"condition_embeddings.{i}.weight": facts.conditions[key]
            for i, key in enumerate(self.conditions)
        }
        if self.batch_norm_by is not None:
            statistics = ("running_mean", "running_var", "num_batches_tracked")
            domains = facts.conditions[self.batch_norm_by]
            found |= {f"batch_norm.{name}": domains for name in statistics}
        return found

    def encoder_shape(self) -> dict[str, int]:
        """Return the sizes of the encoder, those left out filled in."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.n_heads,
            "d_head": self.d_model // self.n_heads,
            "d_feed_forward": self.d_feed_forward or 4 * self.d_model,
        }

    def build(self, facts: DataFacts) -> "ValueTransformer":
        """Return the network for the vocabulary, values and conditions of these data."""
        return ValueTransformer(self, facts)

    def start(self, network: Network, train: TrainCells, rng: np.random.Generator) -> None:
        """Fit on the train cells, after the genes, the running statistics: a bank needs them."""
        super().start(network, train, rng)
        assert isinstance(network, ValueTransformer)
        if network.batch_norm is not None:
            with torch.no_grad():
                network.train().embed(train.batch(100))


class ValueTransformer(ExpressionNetwork):
    """Embedding and encoder of the genes, values and conditions of each cell."""

    def __init__(self, config: ValueTransformerConfig, facts: DataFacts) -> None:
        d = config.d_model
        super().__init__(d, facts)
        self.config = config
        self.value_embedding = ValueEmbedding(config.value_embedding, d, facts)
        self.columns = [list(facts.conditions).index(key) for key in config.conditions]
        # Row 0, of what is unknown, stays 0.
        self.condition_embeddings = nn.ModuleList(
            nn.Embedding(1 + len(facts.conditions[key]), d, padding_idx=0)
            for key in config.conditions
        )
        self.perturbation_embedding = None
        if (key := config.perturbation_key) is not None:
            self.perturbation = list(facts.conditions).index(key)
            self.perturbation_embedding = nn.Embedding(1, d)
            self.is_perturbed: Tensor  # (1 + k, v)
            is_perturbed = perturbed_genes(key, facts.conditions[key], facts.vocabulary)
            self.register_buffer("is_perturbed", is_perturbed, persistent=False)
        by = config.batch_norm_by
        self.domain = None if by is None else list(facts.conditions).index(by)
        self.batch_norm = None if by is None else DomainBatchNorm(len(facts.conditions[by]), d)
        self.expression_norm = nn.LayerNorm(d) if config.cls_init == "expression" else None
        self.dropout = Dropout(config.dropout)
        self.encoder = Encoder(
            **config.encoder_shape(),
            dropout=config.dropout,
            checkpoint_activations=config.checkpoint_activations,
        )

    def initialize(self) -> None:
        """Let genes and values start larger than other embeddings."""
        super().initialize()
        self.value_embedding.initialize()
        if self.perturbation_embedding is not None:
            nn.init.normal_(self.perturbation_embedding.weight, std=VALUE_STD)

    def forward(self, batch: Batch, *, tokens: bool = False) -> Encoded:
        """Encode each cell, and with ``tokens`` each of its tokens."""
        x, cells, token_index = self.embed(batch)  # (m, d)
        if tokens:
            states = self.encoder(self.dropout(x), cells)  # (m, d)
            return Encoded(states[cells.first], states, token_index)
        # The last block is asked for one row a cell, <cls>: no objective reads another.
        return Encoded(self.encoder(self.dropout(x), cells, first_only=True))  # (b, d)

    def prompt(self, cell_embedding: Tensor, batch: Batch) -> Tensor:
        """Return the tokens' states, ``(m, d)``, where ``<cls>`` is this embedding, ``(b, d)``."""
        x, cells, _ = self.embed(batch)
        x = x.index_copy(0, cells.first.long(), cell_embedding.to(x.dtype))
        return self.encoder(self.dropout(x), cells)

    @staticmethod
    def cells_of(batch: Batch) -> Cells:
        """Return where the cells lie; if an objective says which tokens are known, that too."""
        known = cast("dict[str, Tensor]", batch).get(IS_KNOWN)
        return cells_of(batch["lengths"], batch["offsets"], known)

    def embed(self, batch: Batch) -> tuple[Tensor, Cells, Tensor]:
        """Sum what is known of each token that enters the blocks: gene, value, conditions.

        Returned are the tokens ``(m, d)``, where each cell lies among them, and which tokens of
        the batch they are ``(m,)``.
        """
        told = batch  # of its perturbation always: a cell of an unknown one is as a control
        batch = self.forget_conditions(batch)
        top, token_index = self.context(batch)
        cell, cells = cell_of_token(top), self.cells_of(top)
        x, is_gene = self.gene_embedding(top["token_ids"]), has_value(top)
        x = x + self.value_embedding(top["values"].float()) * is_gene[:, None]
        if self.batch_norm is not None:
            is_known = is_gene & (top["values"] != HIDDEN)
            normed = self.batch_norm(x, top["conditions"][cell, self.domain], is_known)
            x = torch.where(is_gene[:, None], normed, x)
        if self.columns:
            x = x + self.embed_conditions(top)[cell]
        if self.perturbation_embedding is not None:
            codes = 1 + told["conditions"][cell, self.perturbation]  # 0: unknown
            is_perturbed = self.is_perturbed[codes, top["token_ids"]]
            x = x + self.perturbation_embedding.weight * is_perturbed[:, None]
        if self.expression_norm is not None:
            total = self.expression_norm(self.sum_expression(batch, segment=0))  # (b, d)
            x = x.index_add(0, cells.first, total)
        return x, cells, token_index

    def context(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Return the cells with the genes that enter the blocks, and which tokens these are."""
        index = torch.arange(len(batch["token_ids"]), device=batch["token_ids"].device)
        if self.config.context_genes is None:
            return batch, index
        indexed = cast(Batch, {**batch, "token_index": index})
        # A gene whose count an objective hides keeps its place: it is to be predicted.
        by_count = sort_segments(indexed, original_of(batch)["counts"])
        top = highest_ranks(by_count, self.config.context_genes, n_segments=1)
        return top, cast("dict[str, Tensor]", top)["token_index"]

    def forget_conditions(self, batch: Batch) -> Batch:
        """Return the cells, in training some of them without their conditions."""
        if not (self.training and (self.columns or self.batch_norm is not None)):
            return batch
        codes = batch["conditions"]  # (b, k)
        is_told = torch.rand(len(codes), 1, device=codes.device) >= self.config.dropout
        return {**batch, "conditions": torch.where(is_told, codes, -1)}

    def embed_conditions(self, batch: Batch) -> Tensor:
        """Sum the embeddings of each cell's conditions, ``(b, d)``."""
        codes = 1 + batch["conditions"][:, self.columns]  # (b, k), 0: unknown
        embedded = [table(codes[:, i]) for i, table in enumerate(self.condition_embeddings)]
        return torch.stack(embedded).sum(dim=0)

    def training_flop(self, lengths: ArrayLike) -> Flop:
        """FLOP of an update on cells of these lengths."""
        recompute = self.config.checkpoint_activations
        if self.config.context_genes is not None:
            lengths = np.minimum(lengths, 1 + self.config.context_genes)
        return training_flop(
            lengths, checkpoint_activations=recompute, **self.config.encoder_shape()
        )
