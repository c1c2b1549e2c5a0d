"""Encoded cells for PyTorch: rows straight from the memory map, batches of cells of like length.

Rows stay 16 bits wide until they are on the device. Worker processes would cost more than the
reading: use ``num_workers=0``.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dataset.store.encoded_folder import EncodedSplit

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
        # The same memory on the disk, without what np.memmap does at each slice of it.
        self.token_ids, self.counts, self.lengths, self.library_size, self.labels = map(
            np.asarray,
            (
                split.arrays["token_ids"],
                split.arrays["counts"],
                split.lengths,
                split.library_size,
                split.labels,
            ),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, NDArray]:
        """Read one cell; arrays as of ``__getitems__``."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray]:
        """Read the cells asked for, trimmed to the longest (rounded up to a multiple of 64)."""
        cells = np.asarray(indices, dtype=np.int64)
        t = padded_length(int(self.lengths[cells].max(initial=1)), self.token_ids.shape[1])
        return {
            "token_ids": self.token_ids[cells, :t],
            "counts": self.counts[cells, :t],
            "library_size": self.library_size[cells],
            "labels": self.labels[cells],
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
    to_cuda = torch.device(device).type == "cuda"

    def move(rows: Tensor) -> Tensor:
        # From pinned memory the copy runs beside the card's work, and nobody waits for it.
        return (rows.pin_memory() if to_cuda else rows).to(device, non_blocking=True)

    return {
        "token_ids": move(batch["token_ids"]).long(),
        "counts": move(batch["counts"]).float(),
        "library_size": move(batch["library_size"]),
        "labels": move(batch["labels"]),
        "cell_index": move(batch["cell_index"]),
    }


def cut_to_budget(
    cells: NDArray[np.int64], split: EncodedSplit, tokens_per_batch: int
) -> list[NDArray[np.int64]]:
    """Cut cells, in the order of length, into batches that a device can hold.

    Parameters
    ----------
    cells
        Places in the split, ``(n,)``.
    split
        Where the cells are.
    tokens_per_batch
        Most tokens of a batch, padding included: its cells times its longest cell's length, as
        ``padded_length`` rounds it. A cell that is longer by itself makes a batch alone.

    Returns
    -------
    Every cell once; for no cells one empty batch.
    """
    cells = cells[np.argsort(split.lengths[cells], kind="stable")]
    row_length, start, cuts = split.arrays["token_ids"].shape[1], 0, []
    for i, length in enumerate(split.lengths[cells].tolist()):
        if i > start and (i + 1 - start) * padded_length(length, row_length) > tokens_per_batch:
            cuts.append(i)
            start = i
    return np.split(cells, cuts)


def even_rounds(batches: list[list[NDArray[np.int64]]], rank: int) -> list[NDArray[np.int64]]:
    """Return one process's batches, with empty ones to make as many as any process has.

    Parameters
    ----------
    batches
        Those of every process.
    rank
        The process. Sharded networks are gathered by all processes together, for every batch.
    """
    most = max(len(of_one) for of_one in batches)
    nothing = np.empty(0, dtype=np.int64)
    return batches[rank] + [nothing] * (most - len(batches[rank]))


class Update(NamedTuple):
    """What one process computes of one optimiser update."""

    batches: list[NDArray[np.int64]]  # places of the cells; as many batches on every process
    n_cells: int  # of the update, on all processes


def deal_updates(
    sampler: "LengthBucketSampler", split: EncodedSplit, tokens_per_batch: int | None
) -> Iterator[Update]:
    """Deal each batch of the sampler to the processes, cut into what their devices can hold.

    Parameters
    ----------
    sampler
        Its rank's part is returned.
    split
        Where the cells are.
    tokens_per_batch
        As of ``cut_to_budget``; None: each process takes its share at once.
    """
    for batch in sampler.global_batches():
        shares = sampler.shares(batch)
        if tokens_per_batch is None:
            yield Update([shares[sampler.rank]], len(batch))
        else:
            cut = [cut_to_budget(share, split, tokens_per_batch) for share in shares]
            yield Update(even_rounds(cut, sampler.rank), len(batch))


class LengthBucketSampler(Sampler[list[int]]):
    """Batches of cells of like length, so that little is computed on padding.

    The cells are shuffled, cut into pools of 50 batches, sorted by length in each pool and cut
    into batches, whose order is shuffled again. They follow from ``(lengths, batch_size, seed,
    epoch)`` alone: with several ranks each takes its slice of every batch, so the cells that make
    up an update do not depend on the number of processes. Every cell comes exactly once; slices
    differ by one cell at most, and a rank whose slice of the last batch is empty gets an empty
    list.

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
    """

    def __init__(
        self,
        lengths: NDArray[np.integer],
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        if batch_size < world_size:
            raise ValueError(
                f"batch_size {batch_size} is below the number of processes ({world_size}): every "
                "process needs a cell of each batch"
            )
        self.lengths, self.batch_size = np.asarray(lengths), batch_size
        self.seed, self.epoch = seed, epoch
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            yield self.shares(batch)[self.rank].tolist()

    def shares(self, batch: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut a batch of all ranks into each one's slice."""
        edges = np.linspace(0, len(batch), self.world_size + 1).astype(int)
        return np.split(batch, edges[1:-1])

    def global_batches(self) -> list[NDArray[np.int64]]:
        """Return the batches of all ranks together."""
        n, size = len(self.lengths), self.batch_size
        rng = np.random.default_rng([self.seed, self.epoch])
        shuffled = rng.permutation(n)
        batches = []
        for pool in _cut(shuffled, size * POOL_BATCHES):
            batches += _cut(pool[np.argsort(self.lengths[pool], kind="stable")], size)
        return [batches[i] for i in rng.permutation(len(batches))]


def _cut(cells: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [cells[start : start + size] for start in range(0, len(cells), size)]
