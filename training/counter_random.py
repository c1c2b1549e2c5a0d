"""Counter-based random numbers: a function of (update, cell, position in its row) alone.

A generator hands out numbers in the order they are asked for, so that a cell's numbers would
depend on which other cells share its process and its batch. Here a counter is hashed instead
(SplitMix64: Steele, Lea & Flood 2014), and however an update's cells are sharded over processes
and batches, each is given the same numbers.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dataset.batches import Batch, cell_of_token

if TYPE_CHECKING:
    from models.objectives.base import Draw


def update_key(seed: int, step: int) -> int:
    """Turn a run's seed and an update's number into the 64 bits that its numbers start from."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0].view(np.int64))


def uniform(key: int, cells: Tensor, position: Tensor, *, stream: int) -> Tensor:
    """Draw a number from [0, 1) for each position in the row of a cell, a multiple of 2^-24.

    Parameters
    ----------
    key
        Of the update, from ``update_key``.
    cells
        Index of the cell in its split, int64.
    position
        In the cell's row, from 0, int64; of the shape of ``cells``, or broadcast with it.
    stream
        Which of several independent draws for the same cells.

    Returns
    -------
    float32, on the device of ``cells``.
    """
    start = _mix(_mix(cells + key) + stream)
    counter = (position + 1) * _signed(0x9E3779B97F4A7C15)
    return _shift(_mix(start + counter), 40).float() * 2.0**-24


def draw_for(batch: Batch, key: int) -> "Draw":
    """Return an objective's source of numbers: ``stream -> (n,)``, one for each token.

    They follow from the cell and the token's position in it. Their streams are not ``augment``'s.
    """

    def draw(stream: int) -> Tensor:  # all of it here: where nothing is hidden, nobody draws
        cell = cell_of_token(batch)
        position = torch.arange(len(cell), device=cell.device) - batch["offsets"][cell]
        return uniform(key, batch["cell_index"][cell], position, stream=100 + stream)

    return draw


def binomial(n: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """Turn uniform numbers into binomial ones: how many of ``n`` are kept, each with chance ``p``.

    The rarer of kept and lost is counted. Where fewer than 10 of them are expected the cumulative
    distribution is inverted term by term (Devroye 1986, section X.4); beyond, the normal
    distribution of the same mean and variance is rounded, within 0.021 of the true cumulative
    probabilities.

    Parameters
    ----------
    n, p, u
        Counts, chances and uniform numbers from [0, 1), float32, of one shape.
    """
    rare = torch.minimum(p, 1 - p)
    mean = n * rare
    is_small = mean < 10
    normal = torch.special.ndtri((u + 2.0**-25).clamp(max=1 - 2.0**-24))  # never infinite
    found = (mean + (mean * (1 - rare)).sqrt() * normal).round()

    inverted = torch.zeros_like(n)
    probability = torch.exp(n * torch.log1p(-rare))  # of 0; below, of 1, 2, ...
    cumulative, odds = probability.clone(), rare / (1 - rare)
    longest = int(torch.where(is_small, n, 0).max()) if n.numel() else 0
    for k in range(min(longest, 40)):  # more than 40 where 10 are expected: one in 10^12
        inverted += u >= cumulative
        probability = probability * odds * ((n - k).clamp(min=0) / (k + 1))
        cumulative += probability
    found = torch.where(is_small, inverted, found).clamp(min=0).minimum(n)
    return torch.where(p < 0.5, found, n - found)


def _mix(z: Tensor) -> Tensor:
    """Scramble 64 bits (the finalizer of SplitMix64); products wrap around."""
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, n: int) -> Tensor:
    """Shift right and fill with zeros: torch's int64 would copy the sign."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def _signed(bits: int) -> int:
    """Read 64 bits as torch does, which has no arithmetic for uint64."""
    return bits - 2**64 if bits >= 2**63 else bits
