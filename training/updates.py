"""Which cells an update of the weights is computed from, and which process computes which.

By length: cells of like length, which attention computes together. In sets: whole sets of cells of
one sample, for a network that looks across them (``NetworkConfig.cell_sets``).
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.batches import BatchRows, EncodedCells, flat
from dataset.store.encoded_folder import EncodedSplit
from models.learner import Learner
from models.network import CellSets
from training.distributed import Ranks

POOL_BATCHES = 50


class Samples(NamedTuple):
    """Which sample each cell is of, and how many cells of one a network looks at together."""

    of_cell: NDArray[np.int64]  # (n,)
    max_cells: int

    def sets(self, order: NDArray[np.int64] | None = None) -> list[NDArray[np.int64]]:
        """Cut each sample into the fewest sets that are small enough, of equal size.

        Parameters
        ----------
        order
            Of the cells, ``(n,)``; a set takes those of its sample that come one after the other.
            By default at random, and always the same: for predictions.
        """
        if order is None:
            order = np.random.default_rng(0).permutation(len(self.of_cell))
        order = order[np.argsort(self.of_cell[order], kind="stable")]
        _, starts = np.unique(self.of_cell[order], return_index=True)
        return [
            rows
            for sample in np.split(order, starts[1:])
            for rows in np.array_split(sample, -(-len(sample) // self.max_cells))
        ]


def samples_of(learner: Learner, cells: EncodedSplit | EncodedCells) -> Samples | None:
    """Return the samples of these cells; None if the network looks at each cell by itself."""
    if (sets := learner.config.cell_sets) is None:
        return None
    return read_samples(sets, list(learner.facts.conditions), np.asarray(cells.conditions))


def read_samples(
    sets: CellSets, condition_keys: list[str], conditions: NDArray[np.int64]
) -> Samples:
    """Return the samples of cells by their ``conditions``, ``(n, k)``, a column for each key."""
    if sets.condition is None:
        return Samples(np.zeros(len(conditions), dtype=np.int64), sets.max_cells)
    return Samples(conditions[:, condition_keys.index(sets.condition)], sets.max_cells)


def rows_of_updates(
    lengths: NDArray[np.integer],
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    samples: Samples | None = None,
) -> list[BatchRows]:
    """Return the cells of each update of an epoch; every cell comes exactly once.

    By length, the cells are shuffled, cut into pools of 50 updates, sorted by length in each pool
    and cut into updates, whose order is shuffled again. With samples, an update is as many sets as
    have ``batch_size`` cells on average, at least one. Both follow from the arguments alone: not
    from the number of processes, nor from what was computed before. There are as many updates in
    every epoch.

    Parameters
    ----------
    lengths
        Tokens of each cell, ``(n,)``.
    batch_size
        Cells of an update, on all processes.
    seed, epoch
        Of the shuffle.
    samples
        Of the cells, for a network that looks across them.
    """
    n, rng = len(lengths), np.random.default_rng([seed, epoch])
    order = rng.permutation(n)
    updates: list[BatchRows] = []
    if samples is None:
        for pool in _cut(order, batch_size * POOL_BATCHES):
            updates += _cut(pool[np.argsort(lengths[pool], kind="stable")], batch_size)
    else:
        sets = samples.sets(order)
        sets = [sets[i] for i in rng.permutation(len(sets))]
        updates += _cut(sets, max(1, batch_size * len(sets) // n))
    return [updates[i] for i in rng.permutation(len(updates))]


def _cut(rows: BatchRows, size: int) -> list[BatchRows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class Update(NamedTuple):
    """What one process computes of one update."""

    batches: list[BatchRows]  # as many on every process
    n_cells: int  # of the update, on all processes


def shard_updates(
    updates: Iterable[BatchRows],
    lengths: NDArray[np.integer],
    tokens_per_batch: int | None,
    ranks: Ranks,
) -> Iterator[Update]:
    """Shard each update over the processes, cut into what their devices can hold.

    Shards differ by one cell at most, or by one set; of the last update a shard may be empty.

    Parameters
    ----------
    updates, lengths
        As of ``rows_of_updates``.
    tokens_per_batch
        Most tokens of a batch; None: each process computes its shard at once.
    ranks
        Of which the shards of this process are returned.
    """
    for rows in updates:
        edges = [len(rows) * i // ranks.world_size for i in range(ranks.world_size + 1)]
        shards = [rows[start:stop] for start, stop in pairwise(edges)]
        if tokens_per_batch is None:
            yield Update([shards[ranks.rank]], len(flat(rows)))
        else:
            cut = [cut_to_budget(shard, lengths, tokens_per_batch) for shard in shards]
            yield Update(pad_with_empty_batches(cut, ranks.rank), len(flat(rows)))


def cut_to_budget(rows: BatchRows, costs: NDArray[np.integer], budget: int) -> list[BatchRows]:
    """Cut cells, in the order given, into batches that a device can hold.

    Parameters
    ----------
    rows
        Cells, or sets of cells, which are not divided.
    costs
        Of each cell of the split: its tokens, say.
    budget
        Most that the cells of a batch cost together. A cell or set beyond it makes a batch alone.

    Returns
    -------
    Every cell once; for no cells one empty batch.
    """
    if isinstance(rows, list):
        each = [int(costs[of_set].sum()) for of_set in rows]
    else:
        each = costs[rows].tolist()
    edges, total = [0], 0
    for i, cost in enumerate(each):
        total += cost
        if i > 0 and total > budget:
            edges.append(i)
            total = cost
    return [rows[start:stop] for start, stop in pairwise([*edges, len(rows)])]


def pad_with_empty_batches(batches: list[list[BatchRows]], rank: int) -> list[BatchRows]:
    """Return one process's batches, with empty ones to make as many as any process has.

    Parameters
    ----------
    batches
        Those of every process; at least one each.
    rank
        The process. Sharded networks are gathered by all processes together, for every batch.
    """
    most = max(len(of_one) for of_one in batches)
    return batches[rank] + [batches[rank][0][:0]] * (most - len(batches[rank]))
