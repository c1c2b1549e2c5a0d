"""Encoded cells for PyTorch: rows straight from the memory map, batches of cells of like length.

Rows stay 16 bits wide until they are on the device. Worker processes would cost more than the
reading: use ``num_workers=0``.
"""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dataset.encoded_folder import EncodedSplit

POOL_BATCHES = 50
PAD_MULTIPLE = 64


class Batch(TypedDict):
    """A minibatch: ``b`` cells, ``t`` tokens, ``s`` segments."""

    token_ids: Tensor  # (b, t)
    counts: Tensor  # (b, t), the count behind every token
    library_size: Tensor  # (b, s) float32
    labels: Tensor  # (b,) int64
    cell_index: Tensor  # (b,) int64, place of the cell in its split


class NpyDataset(Dataset):
    """The cells of a split, read a list at a time; ``collate`` makes a ``Batch`` of them."""

    def __init__(self, split: EncodedSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, NDArray]:
        """Read one cell; arrays as of ``__getitems__``."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, NDArray]:
        """Read the cells asked for, trimmed to the longest (rounded up to a multiple of 64)."""
        cells, split = np.asarray(indices, dtype=np.int64), self.split
        t = padded_length(int(split.lengths[cells].max(initial=1)), split.token_ids.shape[1])
        return {
            "token_ids": split.token_ids[cells, :t],
            "counts": split.counts[cells, :t],
            "library_size": split.library_size[cells],
            "labels": split.labels[cells],
            "cell_index": cells,
        }


def collate(rows: dict[str, NDArray]) -> Batch:
    """Make tensors of what ``NpyDataset`` read, without copying or widening."""
    return {name: torch.from_numpy(array) for name, array in rows.items()}  # type: ignore[return-value]


def padded_length(longest: int, row_length: int) -> int:
    """Round up beyond 64 tokens: few different shapes, which allocators and compilers like."""
    if longest > PAD_MULTIPLE:
        longest = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
    return min(longest, row_length)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch and only then widen its 16-bit rows: token ids to int64, counts to float32."""
    return {
        "token_ids": batch["token_ids"].to(device, non_blocking=True).long(),
        "counts": batch["counts"].to(device, non_blocking=True).float(),
        "library_size": batch["library_size"].to(device, non_blocking=True),
        "labels": batch["labels"].to(device, non_blocking=True),
        "cell_index": batch["cell_index"].to(device, non_blocking=True),
    }


class LengthBucketSampler(Sampler[list[int]]):
    """Batches of cells of like length, so that little is computed on padding.

    To train, the cells are shuffled, cut into pools of 50 batches, sorted by length in each pool
    and cut into batches, whose order is shuffled again. To evaluate (``shuffle=False``), all cells
    are sorted by length. Either way the batches follow from ``(lengths, batch_size, seed, epoch)``
    alone: with several ranks each takes its slice of every batch, so the cells that make up an
    update do not depend on the number of processes. Every cell comes exactly once; slices differ
    by one cell at most, and a rank whose slice of the last batch is empty gets an empty list.

    Parameters
    ----------
    lengths
        Tokens of each cell, ``(n_cells,)``.
    batch_size
        Cells in a batch over all ranks.
    seed, epoch
        Of the shuffle.
    rank, world_size
        This process and how many there are.
    shuffle
        False: in the order of length, for evaluation.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer],
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        shuffle: bool = True,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        if batch_size < world_size:
            raise ValueError(
                f"batch_size {batch_size} is below the number of processes ({world_size}): every "
                "process needs a cell of each batch"
            )
        self.lengths, self.batch_size = np.asarray(lengths), batch_size
        self.seed, self.epoch, self.shuffle = seed, epoch, shuffle
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew; an epoch always gives the same batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            edges = np.linspace(0, len(batch), self.world_size + 1).astype(int)
            yield batch[edges[self.rank] : edges[self.rank + 1]].tolist()

    def global_batches(self) -> list[NDArray[np.int64]]:
        """Return the batches of all ranks together."""
        n, size = len(self.lengths), self.batch_size
        if not self.shuffle:
            return _cut(np.argsort(self.lengths, kind="stable"), size)
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(n)
        batches = []
        for pool in _cut(shuffled, size * POOL_BATCHES):
            batches += _cut(pool[np.argsort(self.lengths[pool], kind="stable")], size)
        return [batches[i] for i in rng.permutation(len(batches))]


def _cut(cells: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [cells[start : start + size] for start in range(0, len(cells), size)]
