"""Encoded cells for PyTorch: rows straight from the memory map, batches of cells of like length.

A batch is ragged: the tokens of its cells stand end to end, without padding, from here to
attention. On the disk rows are padded to one length.

Rows stay 16 bits wide until they are on the device. Worker processes would cost more than the
reading: use ``num_workers=0``.

Legend: ``b`` cells, ``n`` tokens of all of them, ``s`` segments, ``k`` conditions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dataset.vocabulary import CLS, N_SPECIALS, SEP

if TYPE_CHECKING:
    from dataset.store.encoded_folder import EncodedSplit

POOL_BATCHES = 50
PER_CELL = {"offsets", "lengths", "library_size", "labels", "conditions", "cell_index"}


class Batch(TypedDict):
    """A minibatch. Whatever else the tokenizer wrote per token stands here too, by its name."""

    token_ids: Tensor  # (n,)
    counts: Tensor  # (n,), the count behind every token, 0 at special ones
    offsets: Tensor  # (b + 1,) int32: cell i has the tokens from offsets[i] up to offsets[i + 1]
    lengths: list[int]  # tokens of each cell, on the host: nobody asks the device for them
    library_size: Tensor  # (b, s) float32
    labels: Tensor  # (b,) int64, -1: unlabeled
    conditions: Tensor  # (b, k) int64, codes of the obs columns that were kept
    cell_index: Tensor  # (b,) int64, place of the cell in its split


@dataclass(frozen=True)
class EncodedCells:
    """Cells that a tokenizer has encoded in memory; they are read like an ``EncodedSplit``."""

    arrays: dict[str, NDArray]  # by name, each (n_cells, t)
    lengths: NDArray[np.int32]  # (n_cells,)
    library_size: NDArray[np.float32]  # (n_cells, s)
    labels: NDArray[np.int64]  # (n_cells,)
    conditions: NDArray[np.int64]  # (n_cells, k)

    def __len__(self) -> int:
        return len(self.labels)


class NpyDataset(Dataset):
    """The cells of a split, read a list at a time; ``collate`` makes a ``Batch`` of them."""

    def __init__(self, split: "EncodedSplit | EncodedCells") -> None:
        # The same memory on the disk, without what np.memmap does at each slice of it.
        self.per_token = {name: np.ascontiguousarray(a) for name, a in split.arrays.items()}
        self.row_length = self.per_token["token_ids"].shape[1]
        self.lengths = np.asarray(split.lengths)
        self.per_cell: dict[str, NDArray] = {
            "library_size": np.asarray(split.library_size),
            "labels": np.asarray(split.labels),
            "conditions": np.asarray(split.conditions),
        }

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, NDArray]:
        """Read one cell; arrays as of ``__getitems__``."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray]:
        """Read the cells asked for: their tokens end to end, ``(n,)``, and one row a cell."""
        cells = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[cells]
        start = cells * self.row_length
        ends = (start + lengths).tolist()
        places = [slice(*edges) for edges in zip(start.tolist(), ends, strict=True)]
        read = {name: _join(array, places) for name, array in self.per_token.items()}
        read |= {name: array[cells] for name, array in self.per_cell.items()}
        return read | {"lengths": lengths, "cell_index": cells}


def _join(array: NDArray, places: list[slice]) -> NDArray:
    """Return these slices of the flattened array end to end.

    As bytes: numpy takes 1.6 times as long to join its slices, and 8 times to gather from a list
    of all places.
    """
    content = array.reshape(-1).data
    return np.frombuffer(bytearray().join([content[i] for i in places]), dtype=array.dtype)


def collate(rows: dict[str, NDArray]) -> Batch:
    """Make tensors of what ``NpyDataset`` read, without copying or widening."""
    lengths = rows["lengths"]
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    tensors = {name: torch.from_numpy(array) for name, array in rows.items()}
    return cast(
        Batch, {**tensors, "offsets": torch.from_numpy(offsets), "lengths": lengths.tolist()}
    )


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch, and only then widen its tokens: counts to float32, integers to int64."""
    to_cuda = torch.device(device).type == "cuda"
    moved: dict[str, Any] = {"lengths": batch["lengths"]}
    for name, array in batch.items():
        if isinstance(array, Tensor):
            # From pinned memory the copy runs beside the card's work, and nobody waits for it.
            array = (array.pin_memory() if to_cuda else array).to(device, non_blocking=True)
            if name not in PER_CELL:
                is_float = name == "counts" or array.is_floating_point()
                array = array.float() if is_float else array.long()
            moved[name] = array
    return cast(Batch, moved)


def cell_of_token(batch: Batch) -> Tensor:
    """Return which of the batch's cells each token belongs to, ``(n,)``."""
    offsets = batch["offsets"]
    n = len(batch["token_ids"])  # known, so that repeat_interleave need not ask the device
    cells = torch.arange(len(offsets) - 1, device=offsets.device)
    return cells.repeat_interleave(offsets.diff(), output_size=n)


def openings(token_ids: Tensor) -> Tensor:
    """Return where the segment of each token begins: the place of its ``<cls>`` or ``<sep>``."""
    place = torch.arange(len(token_ids), device=token_ids.device)
    is_opening = (token_ids == CLS) | (token_ids == SEP)
    return torch.where(is_opening, place, 0).cummax(dim=0).values


def keep_tokens(batch: Batch, keep: Tensor, lengths: list[int] | None = None) -> Batch:
    """Leave tokens out, in every array that has one number for each.

    Parameters
    ----------
    batch
        Cells as ``to_device`` gives them.
    keep
        Which tokens stay, ``(n,)``.
    lengths
        How many of each cell stay, where the host knows it; otherwise it waits for the device.
    """
    kept_before = torch.nn.functional.pad(keep.cumsum(dim=0, dtype=torch.int32), (1, 0))
    offsets = kept_before[batch["offsets"]]
    if lengths is None:
        lengths = offsets.diff().tolist()
    # Each kept token says where it comes from; of the others the last place is the bin.
    n = sum(lengths)
    place = torch.where(keep, kept_before[:-1], n).long()
    source = place.new_zeros(n + 1)
    source = source.scatter(0, place, torch.arange(len(place), device=place.device))[:n]
    return cast(Batch, {**_take(batch, source), "offsets": offsets, "lengths": lengths})


def sort_segments(batch: Batch, value: Tensor) -> Batch:
    """Sort the genes of each segment by falling ``value``, ``(n,)``, ties by token id.

    The special tokens stay in front. Stable sorts, from the last key to the first.
    """
    token_ids = batch["token_ids"]
    value = torch.where(token_ids >= N_SPECIALS, value, torch.inf)
    order = token_ids.argsort(stable=True)
    order = order[value[order].argsort(descending=True, stable=True)]
    order = order[openings(token_ids)[order].argsort(stable=True)]
    return _take(batch, order)


def _take(batch: Batch, source: Tensor) -> Batch:
    per_token = [name for name in batch if name not in PER_CELL]
    return cast(Batch, {**batch, **{name: batch[name][source] for name in per_token}})  # type: ignore[literal-required]


def cut_to_budget(
    cells: NDArray[np.int64], split: "EncodedSplit | EncodedCells", tokens_per_batch: int
) -> list[NDArray[np.int64]]:
    """Cut cells, in the order of length, into batches that a device can hold.

    Parameters
    ----------
    cells
        Places in the split, ``(n,)``.
    split
        Where the cells are.
    tokens_per_batch
        Most tokens of a batch. A cell that is longer by itself makes a batch alone.

    Returns
    -------
    Every cell once; for no cells one empty batch.
    """
    cells = cells[np.argsort(split.lengths[cells], kind="stable")]
    n_tokens, cuts = 0, []
    for i, length in enumerate(split.lengths[cells].tolist()):
        n_tokens += length
        if i > 0 and n_tokens > tokens_per_batch:
            cuts.append(i)
            n_tokens = length
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
    sampler: "LengthBucketSampler", split: "EncodedSplit", tokens_per_batch: int | None
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
    """Batches of cells of like length, which attention computes together.

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
        if self.world_size == 1:
            return [batch]
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
