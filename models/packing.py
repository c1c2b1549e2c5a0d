"""The tokens of all cells of a batch in one row, end to end: no work is spent on padding.

Linear layers, norms and embeddings look at one token at a time and never notice. Attention is told
where each cell begins and ends.

Legend: ``b`` cells, ``t`` tokens of the longest cell, ``n`` real tokens of all cells.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Cells(NamedTuple):
    """Where the cells of a batch lie in its row of ``n`` tokens."""

    offsets: Tensor  # (b + 1,) int32: cell i has the tokens from offsets[i] up to offsets[i + 1]
    lengths: list[int]  # tokens of each cell
    longest: int  # of the lengths; 0 without cells

    @property
    def first(self) -> Tensor:
        """Place of each cell's first token, which is ``<cls>``, ``(b,)``."""
        return self.offsets[:-1]


def cells_of(lengths: list[int], device: torch.device | str = "cpu") -> Cells:
    """Lay cells of these lengths end to end."""
    offsets = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return Cells(offsets.to(device, non_blocking=True), lengths, max(lengths, default=0))


def pack(padding_mask: Tensor) -> tuple[Tensor, Cells]:
    """Find the real tokens of padded rows.

    The host waits for the device once, to learn the lengths: sizes of tensors live there.

    Parameters
    ----------
    padding_mask
        True where a token is padding, ``(b, t)``; in each row at its end, and the first token of
        a row never is.

    Returns
    -------
    The place of every real token in the flattened rows, ``(n,)``, and the cells.
    """
    b, t = padding_mask.shape
    cells = cells_of((~padding_mask).sum(dim=1).tolist(), padding_mask.device)
    # Token j of the packed row stands j + (begin of its padded row - begin of its cell) in b * t.
    shift = torch.arange(b, device=padding_mask.device) * t - cells.first
    n = sum(cells.lengths)  # known, so that repeat_interleave need not ask the device
    shift = shift.repeat_interleave(cells.offsets.diff(), output_size=n)
    return shift + torch.arange(n, device=padding_mask.device), cells
