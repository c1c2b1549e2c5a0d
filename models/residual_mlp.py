"""MLP on a cell's expression-weighted genes: the rank transformer without attention.

It starts where ``<cls>`` of ``models/rank_transformer.py`` does, with the same gene embeddings
from the same SVD, and goes through as many pre-norm feed-forward blocks; tokens are only summed,
never compared. What the transformer scores above it is what attention adds.

Of two time points the sum of the previous one is added through a linear layer of its own.

Legend: ``b`` cells, ``n`` tokens of all cells, ``d`` width.
"""

from typing import ClassVar, Literal

from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor, nn

from dataset.batches import Batch, cell_of_token
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import CLS
from models.dropout import Dropout
from models.expression_network import ExpressionConfig, ExpressionNetwork
from models.flops import Flop
from models.network import Encoded
from models.transformer import feed_forward


class ResidualMLPConfig(ExpressionConfig):
    """Shape and initial weights of an MLP on expression-weighted gene embeddings."""

    kind: Literal["residual_mlp"] = "residual_mlp"
    attends: ClassVar[bool] = False
    n_layers: int = Field(default=2, ge=1)
    d_feed_forward: int | None = Field(default=None, ge=1, description="null: 4 x d_model")

    def build(self, facts: DataFacts) -> "ResidualMLP":
        """Return the network for the vocabulary and segments of these data."""
        return ResidualMLP(self, facts)


class MLPBlock(nn.Module):
    """``x + feed_forward(norm(x))``."""

    def __init__(self, d_model: int, d_feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.feed_forward = feed_forward(d_model, d_feed_forward, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the cells after the block, ``(b, d)``."""
        return x + self.dropout(self.feed_forward(self.norm(x)))


class ResidualMLP(ExpressionNetwork):
    """Gene embeddings and the blocks that their sum goes through."""

    def __init__(self, config: ResidualMLPConfig, facts: DataFacts) -> None:
        d = config.d_model
        super().__init__(d, facts)
        self.d_feed_forward = config.d_feed_forward or 4 * d
        self.expression_norm: nn.LayerNorm = nn.LayerNorm(d)
        self.previous = nn.Linear(d, d) if self.n_segments > 1 else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.Sequential(
            *(MLPBlock(d, self.d_feed_forward, config.dropout) for _ in range(config.n_layers))
        )
        self.norm = nn.LayerNorm(d)

    def initialize(self) -> None:
        """Let the genes start larger, and what writes into the residual stream smaller."""
        super().initialize()
        std = (len(self.blocks) * self.d_feed_forward) ** -0.5
        for name, weight in self.blocks.named_parameters():
            if name.endswith("feed_forward.3.weight"):
                nn.init.normal_(weight, std=std)

    def forward(self, batch: Batch, *, tokens: bool = False) -> Encoded:
        """Encode each cell; with ``tokens`` the state of each of its tokens is the cell's."""
        x = self.norm(self.blocks(self.dropout(self.embed(batch))))  # (b, d)
        return Encoded(x, x[cell_of_token(batch)] if tokens else None)

    def embed(self, batch: Batch) -> Tensor:
        """Return what each cell starts from, ``(b, d)``."""
        total = self.expression_norm(self.sum_expression(batch, segment=0))
        if self.previous is not None:
            total = total + self.previous(
                self.expression_norm(self.sum_expression(batch, segment=1))
            )
        return total + self.gene_embedding.weight[CLS]

    def training_flop(self, lengths: ArrayLike) -> Flop:
        """FLOP of an update: 3 forward passes. Sums of embeddings are not counted."""
        n_weights = len(self.blocks) * 2 * self.d_model * self.d_feed_forward
        if self.previous is not None:
            n_weights += self.d_model**2
        flop = 3.0 * 2 * len(lengths) * n_weights  # type: ignore[arg-type]
        return Flop(flop, flop)
