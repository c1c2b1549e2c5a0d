"""``Batch``, read straight from the memory map of an encoded folder, and what is done to one.

A batch is ragged: the tokens of its cells stand end to end, without padding, from here to
attention. On the disk rows are padded to one length.

Tokens stay as narrow as on the disk until they are on the device. They are read where they are
used: to send a batch from a worker process would take longer than to read it.

Legend: ``b`` cells, ``n`` tokens of all of them, ``s`` segments, ``k`` conditions, ``m`` sets.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataset.compiled import compiled
from dataset.vocabulary import CLS, N_SPECIALS, SEP

if TYPE_CHECKING:
    from dataset.store.encoded_folder import EncodedSplit

NOT_PER_TOKEN = {
    "offsets", "lengths", "library_size", "original_library_size", "labels", "conditions",
    "cell_index", "positions", "sets",
}  # fmt: skip
# Cells of a split that are computed at once, by their index in it: (b,), or whole sets of them.
BatchRows = NDArray[np.int64] | list[NDArray[np.int64]]


class Batch(TypedDict):
    """A minibatch. Whatever else the tokenizer wrote per token stands here too, by its name."""

    token_ids: Tensor  # (n,)
    counts: Tensor  # (n,), the count behind every token, 0 at special ones
    offsets: Tensor  # (b + 1,) int32: cell i has the tokens from offsets[i] up to offsets[i + 1]
    lengths: list[int]  # tokens of each cell, on the host: nobody asks the device for them
    library_size: Tensor  # (b, s) float32
    labels: Tensor  # (b,) int64, -1: unlabeled
    conditions: Tensor  # (b, k) int64, codes of the obs columns that were kept, -1: unknown
    cell_index: Tensor  # (b,) int64, of the cell in its split
    values: NotRequired[Tensor]  # (n,), of a tokenizer that gives each token a value beside it
    positions: NotRequired[Tensor]  # (b, 2) float32, coordinates where the folder has them
    sets: NotRequired[Tensor]  # (m + 1,) int64: set i has the cells from sets[i] to sets[i + 1]


@dataclass(frozen=True)
class EncodedCells:
    """Cells that a tokenizer has encoded in memory; they are read like an ``EncodedSplit``."""

    arrays: dict[str, NDArray]  # by name, each (n_cells, t)
    lengths: NDArray[np.int32]  # (n_cells,)
    library_size: NDArray[np.float32]  # (n_cells, s)
    labels: NDArray[np.int64]  # (n_cells,)
    conditions: NDArray[np.int64]  # (n_cells, k)
    positions: NDArray[np.float32] | None = None  # (n_cells, 2)

    def __len__(self) -> int:
        return len(self.labels)


class BatchReader:
    """Reads batches of a split's cells."""

    def __init__(self, split: "EncodedSplit | EncodedCells") -> None:
        self.dtypes = {name: array.dtype for name, array in split.arrays.items()}
        # The same memory on the disk, as the bits that are copied, whatever they mean.
        self.per_token = {
            name: np.ascontiguousarray(array).view(f"u{array.itemsize}")
            for name, array in split.arrays.items()
        }
        self.lengths = np.asarray(split.lengths)
        self.per_cell: dict[str, NDArray] = {
            "library_size": np.asarray(split.library_size),
            "labels": np.asarray(split.labels),
            "conditions": np.maximum(split.conditions, -1),  # whatever the unknown value is
        }
        if split.positions is not None:
            self.per_cell["positions"] = np.asarray(split.positions)

    def read(self, rows: BatchRows) -> Batch:
        """Read cells, or sets of cells one behind the other, on the CPU and not widened."""
        sets = None
        if isinstance(rows, list):
            sets = _offsets([len(of_set) for of_set in rows], np.int64)
            rows = flat(rows)
        lengths = self.lengths[rows]
        offsets = _offsets(lengths, np.int32)
        arrays: dict[str, NDArray] = {"offsets": offsets, "cell_index": rows}
        arrays |= {} if sets is None else {"sets": sets}
        arrays |= {name: array[rows] for name, array in self.per_cell.items()}
        for name, array in self.per_token.items():
            joined = np.empty(offsets[-1], dtype=array.dtype)
            _join_rows(array, rows, lengths, joined)
            arrays[name] = joined.view(self.dtypes[name])
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cast(Batch, {**tensors, "lengths": lengths.tolist()})


def flat(rows: BatchRows) -> NDArray[np.int64]:
    """Return the cells, ``(b,)``, those of sets one set behind the other."""
    if isinstance(rows, list):
        return np.concatenate([np.empty(0, dtype=np.int64), *rows])
    return rows


def _offsets(lengths: NDArray[np.integer] | list[int], dtype: type[np.integer]) -> NDArray:
    offsets = np.zeros(len(lengths) + 1, dtype=dtype)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@compiled
def _join_rows(array, rows, lengths, joined):
    """Write the first ``lengths`` entries of these rows end to end."""
    start = 0
    for row, length in zip(rows, lengths):  # noqa: B905 - numba knows no strict
        source, target = array[row, :length], joined[start : start + length]
        for i in range(length):  # twice as fast as numba's own copy of a slice
            target[i] = source[i]
        start += length


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Move a batch, and only then widen its tokens: counts to float32, integers to int64."""
    to_cuda = torch.device(device).type == "cuda"
    moved: dict[str, Any] = {"lengths": batch["lengths"]}
    for name, array in batch.items():
        if isinstance(array, Tensor):
            # From pinned memory the copy runs beside the card's work, and nobody waits for it.
            array = (array.pin_memory() if to_cuda else array).to(device, non_blocking=True)
            if name not in NOT_PER_TOKEN:
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
    """Return where the segment of each token begins: the index of its ``<cls>`` or ``<sep>``."""
    index = torch.arange(len(token_ids), device=token_ids.device)
    is_opening = (token_ids == CLS) | (token_ids == SEP)
    return torch.where(is_opening, index, 0).cummax(dim=0).values


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
    # Each kept token says where it comes from; the others all write to one entry behind the last.
    n = sum(lengths)
    target = torch.where(keep, kept_before[:-1], n).long()
    source = target.new_zeros(n + 1)
    source = source.scatter(0, target, torch.arange(len(target), device=target.device))[:n]
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
    per_token = [name for name in batch if name not in NOT_PER_TOKEN]
    return cast(Batch, {**batch, **{name: batch[name][source] for name in per_token}})  # type: ignore[literal-required]
