"""Pre-norm transformer encoder: blocks of self-attention and feed-forward, their initial weights.

Normalizing before each branch (Xiong et al. 2020) trains from scratch without the collapse to one
class that post-norm stacks show on small cell sets.

Legend: ``b`` cells, ``n`` tokens of all cells, ``q`` tokens asked for, ``d`` width.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.dropout import Dropout
from models.packing import Cells
from models.self_attention import SelfAttention


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_head: int,
        d_feed_forward: int,
        dropout: float,
        attention_dropout: float,
        attention_drop_path: float,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(d_model)
        self.attention = SelfAttention(d_model, n_heads, d_head, attention_dropout)
        self.attention_drop_path = attention_drop_path
        self.norm_feed_forward = nn.LayerNorm(d_model)
        self.feed_forward = feed_forward(d_model, d_feed_forward, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, cells: Cells, *, first_only: bool = False) -> Tensor:
        """Return the tokens after the block, ``(q, d)``: all, or the first of each cell."""
        attended = self.attention(self.norm_attention(x), cells, first_only=first_only)
        if self.training and self.attention_drop_path:
            attended = drop_path(attended, cells, self.attention_drop_path, first_only=first_only)
        x = (x[cells.first] if first_only else x) + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))


def drop_path(branch: Tensor, cells: Cells, share: float, *, first_only: bool = False) -> Tensor:
    """Leave the branch, ``(q, d)``, of some cells out (stochastic depth, Huang et al. 2016)."""
    kept = torch.rand(len(cells.first), device=branch.device) >= share
    scale = kept.to(branch.dtype) / (1 - share)  # (b,)
    if not first_only:
        scale = scale.repeat_interleave(cells.offsets.diff(), output_size=len(branch))
    return branch * scale[:, None]


def feed_forward(d_model: int, d_feed_forward: int, dropout: float) -> nn.Sequential:
    """Return linear, GELU, dropout, linear; as wide at its end as at its start."""
    return nn.Sequential(
        nn.Linear(d_model, d_feed_forward),
        nn.GELU(),
        Dropout(dropout),
        nn.Linear(d_feed_forward, d_model),
    )


class Encoder(nn.Module):
    """A stack of blocks and a closing layer norm.

    Parameters
    ----------
    n_layers, d_model, n_heads, d_head, d_feed_forward
        Its shape.
    dropout, attention_dropout, attention_drop_path
        Of the two branches of a block, of the attention weights, and of the whole attention of a
        cell in a block.
    checkpoint_activations
        Keep only the input of each block for the backward pass and recompute the block there
        (Chen et al. 2016): the same gradients in less memory, for one more forward pass.
    """

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_head: int,
        d_feed_forward: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        attention_drop_path: float = 0.0,
        *,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.blocks = nn.ModuleList(
            Block(
                *(d_model, n_heads, d_head, d_feed_forward),
                *(dropout, attention_dropout, attention_drop_path),
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, cells: Cells, *, first_only: bool = False) -> Tensor:
        """Encode each cell's tokens.

        Parameters
        ----------
        x
            Embedded tokens of all cells, ``(n, d)``.
        cells
            Where each cell lies in ``x``.
        first_only
            Only the first token of each cell is wanted: the last block computes these rows alone,
            the same numbers for less work.

        Returns
        -------
        ``(q, d)``, where ``q`` is ``b`` for the first tokens only and else ``n``.
        """
        for number, block in enumerate(self.blocks, start=1):
            only = first_only and number == len(self.blocks)
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, cells, first_only=only, use_reentrant=False)
            else:
                x = block(x, cells, first_only=only)
        return self.norm(x)


def initialize_weights(model: nn.Module, embedding_std: float = 0.02) -> None:
    """Set every weight of ``model`` to its initial value: the one place where that is decided.

    Linear layers keep the variance of what they are given (standard deviation 1/sqrt(fan_in),
    biases 0); those that write into the residual stream start smaller by 1/sqrt(2 * layers), so
    that its size does not grow with depth (Radford et al. 2019, section 2.3). Embeddings are
    normal with ``embedding_std``, their padding row 0; layer norms start as the identity.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=embedding_std)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for encoder in (m for m in model.modules() if isinstance(m, Encoder)):
        for name, weight in encoder.named_parameters():
            if name.endswith(("attention.to_out.weight", "feed_forward.3.weight")):
                std = 1 / math.sqrt(2 * len(encoder.blocks) * weight.shape[1])
                nn.init.normal_(weight, std=std)
