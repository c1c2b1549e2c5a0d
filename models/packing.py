"""Packed batches: the tokens of all cells end to end, and no work is spent on padding.

Linear layers, norms and embeddings look at one token at a time and never notice. Attention is told
where each cell begins and ends.

Legend: ``b`` cells, ``n`` tokens of all cells.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """Where the cells of a batch lie in its row of ``n`` tokens.

    No tuple: the compiler looks into tuples, and would make a program for every number of cells.
    """

    offsets: Tensor  # (b + 1,) int32: cell i has the tokens from offsets[i] up to offsets[i + 1]
    lengths: list[int]  # tokens of each cell
    longest: int  # of the lengths; 0 without cells
    is_known: Tensor | None = None  # (n,) bool, where attention is masked (attention_masks.py)

    @property
    def first(self) -> Tensor:
        """Index of each cell's first token, which is ``<cls>``, ``(b,)``."""
        return self.offsets[:-1]


def cells_of(
    lengths: list[int], offsets: Tensor | None = None, is_known: Tensor | None = None
) -> Cells:
    """Lay cells of these lengths end to end; ``offsets`` where a device has them already."""
    if offsets is None:
        offsets = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return Cells(offsets, lengths, max(lengths, default=0), is_known)
