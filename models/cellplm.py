"""CellPLM: each cell is a token, and attention looks across the cells of one sample.

Wen et al. 2024. A cell starts as the sum of its genes' embeddings, weighted by log expression, and
goes through blocks of flow attention with the other cells of its set: a sample of dissociated
cells, or a field of view of a tissue, where it also knows where it lies. A cell's prediction
depends on its set: ``evaluation/other_sets.py`` measures by how much.

Deliberate differences from the released code:

- positions work: there they are replaced by zeros. Coordinates are taken relative to the set, with
  one scale for both axes
- sets are cells of one sample of one split, never train and test cells together
- expression is relative to the library size, and its sums start scaled
  (``models/expression_network.py``)
- the cell embedding is the encoder's; the latent belongs to pretraining
  (``models/objectives/masked_counts.py``), as fine-tuning there puts a linear layer in its place

Of two time points the sum of the previous one is added through a linear layer of its own.

Legend: ``b`` cells of all sets, ``m`` sets, ``d`` width.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dataset.batches import Batch, cell_of_token
from dataset.store.data_facts import DataFacts
from models.dropout import Dropout
from models.expression_network import ExpressionConfig, ExpressionNetwork
from models.flow_attention import FlowAttention
from models.network import CellSets, Encoded
from models.transformer import feed_forward

GRID = 100  # steps of the positions along the longer side of a set
POSITION_SCALE = 1.0  # of the sinusoids, beside expression with deviation 1


class CellPLMConfig(ExpressionConfig):
    """Shape and initial weights of a transformer over cells, and which cells it sees together."""

    kind: Literal["cellplm"] = "cellplm"
    n_layers: int = Field(default=2, ge=1)
    n_heads: int = Field(default=4, ge=1)
    d_feed_forward: int | None = Field(default=None, ge=1, description="null: 2 x d_model")
    sample_key: str | None = Field(
        default=None,
        description="obs column of the sample or field of view whose cells are looked at "
        "together, one of the condition_keys of the encoded folder; null: all cells of a split "
        "are of one sample",
    )
    cells_per_set: int = Field(
        default=128, ge=1, description="most cells that are looked at together"
    )
    cell_position: Literal["none", "sinusoidal"] = Field(
        default="none", description="sinusoidal: of each cell in its set, from position_keys"
    )

    @property
    def cell_sets(self) -> CellSets:
        """Cells of one sample."""
        return CellSets(self.sample_key, self.cells_per_set)

    @property
    def reads_positions(self) -> bool:  # type: ignore[override]
        """Whether positions are looked at."""
        return self.cell_position != "none"

    @model_validator(mode="after")
    def _check(self) -> "CellPLMConfig":
        if self.d_model % 4 or self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads} and by 4: "
                "change one of them"
            )
        return self

    def build(self, facts: DataFacts) -> "CellPLM":
        """Return the network for the vocabulary and segments of these data."""
        return CellPLM(self, facts)


class CellBlock(nn.Module):
    """``x + attention(norm(x))`` across cells, then ``x + feed_forward(norm(x))``."""

    def __init__(self, d_model: int, n_heads: int, d_feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(d_model)
        self.attention = FlowAttention(d_model, n_heads)
        self.norm_feed_forward = nn.LayerNorm(d_model)
        self.feed_forward = feed_forward(d_model, d_feed_forward, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Return the cells after the block, ``(b, d)``."""
        x = x + self.dropout(self.attention(self.norm_attention(x), sizes))
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))


class CellPLM(ExpressionNetwork):
    """Gene embeddings, positions, and the blocks that the cells of a set go through."""

    def __init__(self, config: CellPLMConfig, facts: DataFacts) -> None:
        d = config.d_model
        super().__init__(d, facts)
        self.reads_positions = config.reads_positions
        self.expression_norm: nn.LayerNorm = nn.LayerNorm(d)
        self.previous = nn.Linear(d, d) if self.n_segments > 1 else None
        self.missing_position = nn.Parameter(torch.empty(d))
        self.dropout = Dropout(config.dropout)
        shape = d, config.n_heads, config.d_feed_forward or 2 * d
        self.blocks = nn.ModuleList(
            CellBlock(*shape, config.dropout) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(d)

    def initialize(self) -> None:
        """Let the genes start larger, and what writes into the residual stream smaller."""
        super().initialize()
        nn.init.normal_(self.missing_position, std=0.02)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("attention.to_out.weight", "feed_forward.3.weight")):
                nn.init.normal_(weight, std=(2 * len(self.blocks) * weight.shape[1]) ** -0.5)

    def forward(self, batch: Batch, *, tokens: bool = False) -> Encoded:
        """Encode each cell among those of its set; with ``tokens`` its tokens' states are its."""
        sizes = batch["sets"].diff().tolist()
        x = self.dropout(self.embed(batch, sizes))  # (b, d)
        for block in self.blocks:
            x = block(x, sizes)
        x = self.norm(x)
        return Encoded(x, x[cell_of_token(batch)] if tokens else None)

    def embed(self, batch: Batch, sizes: list[int]) -> Tensor:
        """Return what each cell starts from, ``(b, d)``."""
        x = self.expression_norm(self.sum_expression(batch, segment=0))
        if self.previous is not None:
            x = x + self.previous(self.expression_norm(self.sum_expression(batch, segment=1)))
        if not (self.reads_positions and sizes):
            return x + self.missing_position
        of_sets = [on_grid(of_set) for of_set in batch["positions"].split(sizes)]
        position = position_sinusoids(torch.cat(of_sets), self.d_model)
        is_known = position.isfinite().all(dim=1, keepdim=True)
        return x + torch.where(is_known, position, self.missing_position)


def on_grid(positions: Tensor) -> Tensor:
    """Move and scale the positions of a set, ``(n, 2)``, to ``[0, GRID]`` on its longer side."""
    known = positions[positions.isfinite().all(dim=1)]
    if not len(known):
        return positions
    low, high = known.aminmax(dim=0)
    extent = (high - low).max()
    return (positions - low) * (GRID / torch.where(extent > 0, extent, 1))


def position_sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """Return the sines of Vaswani et al. 2017, section 3.5, half of the width for each axis.

    Positions ``(b, 2)`` in steps of the grid; ``(b, d)``.
    """
    n_frequencies = d_model // 4
    exponent = torch.arange(n_frequencies, device=positions.device) / n_frequencies
    angle = positions[:, :, None] * torch.exp(-math.log(10_000.0) * exponent)  # (b, 2, d / 4)
    return POSITION_SCALE * torch.cat((angle.sin(), angle.cos()), dim=2).flatten(1)
