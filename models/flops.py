"""FLOP of a forward pass and of a training step, counted from the real tokens.

Counted are the matrix products of the encoder, 2 FLOP for a multiply and an add: per layer the
four projections and the feed-forward layer for every real token, and ``q @ k`` and
``weights @ v`` of every pair of tokens of a cell. Not counted are padding, embeddings, norms,
softmax and the head.

Two figures, as in Chowdhery et al. 2022, appendix B. *Model* FLOP are those of the usual formula:
every layer in full, nothing twice. By them the rates of programs that give the same answer
compare, whatever each leaves out. *Hardware* FLOP are those done: the last block computes the
``<cls>`` row only, and activation checkpointing computes the blocks again. (What fused attention
kernels compute again for their gradients is in neither.)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Flop(NamedTuple):
    """By the usual formula, and done."""

    model: float
    hardware: float


def forward_flop(
    lengths: ArrayLike,
    *,
    n_layers: int,
    d_model: int,
    n_heads: int,
    d_head: int,
    d_feed_forward: int,
) -> Flop:
    """FLOP of one forward pass over cells of these lengths.

    Parameters
    ----------
    lengths
        Real tokens of each cell, special ones included, ``(n_cells,)``.
    n_layers, d_model, n_heads, d_head, d_feed_forward
        Shape of the encoder.
    """
    t = np.asarray(lengths, dtype=np.float64)
    width = n_heads * d_head
    per_query = 2 * d_model * (2 * width + 2 * d_feed_forward)  # to_q, to_out, feed-forward
    per_key = 2 * d_model * 2 * width  # to_kv
    layer = ((per_query + per_key) * t + 4 * width * t**2).sum()
    last = (per_query + per_key * t + 4 * width * t).sum()
    return Flop(float(n_layers * layer), float((n_layers - 1) * layer + last))


def training_flop(
    lengths: ArrayLike, *, checkpoint_activations: bool = False, **shape: int
) -> Flop:
    """FLOP of a forward and backward pass: 3 times those of the forward pass.

    Parameters
    ----------
    lengths
        Tokens of each cell that enter the encoder, ``(n_cells,)``.
    checkpoint_activations
        Whether the blocks are computed again for their gradients.
    shape
        Of the encoder, as of ``forward_flop``.
    """
    forward = forward_flop(lengths, **shape)
    again = 1 if checkpoint_activations else 0
    return Flop(3 * forward.model, (3 + again) * forward.hardware)
