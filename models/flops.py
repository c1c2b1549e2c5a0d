"""FLOP of a forward pass and of a training step, counted from the real tokens.

Credited are the matrix products of the encoder, as a plain implementation would do them: per layer
the four projections and the feed-forward layer for every real token, and ``q @ k`` and
``weights @ v`` of every pair of tokens of a cell; every layer in full, 2 FLOP for a multiply and
an add. Not credited are padding, embeddings, norms, softmax, the head and what activation
checkpointing computes again. The last block really computes the ``<cls>`` row only, so that less
is done than credited: by these figures rates of programs that give the same answer compare, as
in the model FLOP utilisation of Chowdhery et al. 2022, appendix B.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from models.rank_transformer import RankTransformer


def forward_flop(
    lengths: ArrayLike,
    *,
    n_layers: int,
    d_model: int,
    n_heads: int,
    d_head: int,
    d_feed_forward: int,
) -> float:
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
    linear = 2 * d_model * (4 * width + 2 * d_feed_forward)
    return float(n_layers * (linear * t + 4 * width * t**2).sum())


def training_flop(network: "RankTransformer", lengths: ArrayLike) -> float:
    """FLOP of a forward and backward pass of this network: 3 times those of the forward pass.

    Parameters
    ----------
    network
        Not wrapped for several processes.
    lengths
        Tokens of each cell as given to the network, ``(n_cells,)``. Where the network reads the
        highest ranks only (``n_tokens`` of its config), no more are counted; of two halves, one
        of which is shorter than that, up to the space for both.
    """
    if network.config.n_tokens is not None:
        lengths = np.minimum(lengths, network.n_segments * (1 + network.config.n_tokens))
    return 3 * forward_flop(lengths, **network.config.encoder_shape())
