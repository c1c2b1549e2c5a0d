from collections import Counter

import numpy as np
import pytest
import torch

from dataset.batches import BatchReader, flat
from dataset.store.encoded_folder import EncodedFolder
from training.distributed import Ranks
from training.updates import (
    Samples,
    cut_to_budget,
    pad_with_empty_batches,
    rows_of_updates,
    shard_updates,
)


@pytest.fixture
def cells(encoded_folder):
    return EncodedFolder(encoded_folder).split("train")


@pytest.fixture
def lengths(rng):
    return rng.integers(5, 500, size=1000)


@pytest.fixture
def samples(rng):
    """1,000 cells of five samples, one of which is smaller than a set."""
    return Samples(rng.choice([-3, -2, 0, 1, 4], size=1000, p=[0.4, 0.2, 0.2, 0.19, 0.01]), 30)


def ranks(rank, world_size):
    return Ranks(rank, world_size, torch.device("cpu"))


def batches_of(lengths, size, rank=0, world_size=1, **settings):
    """Return what one process computes of each update."""
    updates = rows_of_updates(lengths, size, **settings)
    sharded = shard_updates(updates, lengths, None, ranks(rank, world_size))
    return [flat(rows).tolist() for update in sharded for rows in update.batches]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("size", [7, 64])
def test_every_cell_comes_once_and_ranks_share_each_batch(lengths, world_size, size):
    whole = batches_of(lengths, size, seed=4, epoch=2)
    assert sorted(sum(whole, [])) == list(range(1000))
    assert len(whole) == -(-1000 // size)
    ranks = [
        batches_of(lengths, size, seed=4, epoch=2, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert sum(shares, []) == batch
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_order_follows_from_seed_and_epoch(lengths):
    first = batches_of(lengths, 32, seed=1, epoch=5)
    assert batches_of(lengths, 32, seed=1, epoch=5) == first
    assert batches_of(lengths, 32, seed=1, epoch=6) != first
    assert batches_of(lengths, 32, seed=2, epoch=5) != first


def test_cells_of_a_batch_are_of_like_length(lengths):
    def padding(batches):
        return sum(lengths[b].max() * len(b) - lengths[b].sum() for b in batches)

    shuffled = np.random.default_rng(0).permutation(1000)
    at_random = [shuffled[i : i + 16].tolist() for i in range(0, 1000, 16)]
    assert padding(batches_of(lengths, 16)) < 0.15 * padding(at_random)


@pytest.mark.parametrize("budget", [100, 300, 100_000])
def test_batches_keep_to_the_budget_of_tokens(cells, budget):
    asked = np.random.default_rng(0).permutation(len(cells))[:90]
    asked = asked[np.argsort(cells.lengths[asked])]
    batches = cut_to_budget(asked, cells.lengths, budget)
    assert sorted(np.concatenate(batches)) == sorted(asked)
    sizes = [len(BatchReader(cells).read(batch)["token_ids"]) for batch in batches]
    assert max(sizes) <= budget
    # The next cell would not have fitted: what counts is its tokens, and padding does not.
    for size, after in zip(sizes, batches[1:], strict=False):
        assert size + cells.lengths[after[0]] > budget


def test_a_cell_beyond_the_budget_makes_a_batch_alone(cells):
    assert [len(batch) for batch in cut_to_budget(np.arange(4), cells.lengths, 1)] == [1, 1, 1, 1]
    assert [len(batch) for batch in cut_to_budget(np.arange(0), cells.lengths, 1)] == [0]


def test_every_process_has_as_many_batches():
    batches = [[np.arange(3)], [np.arange(2), np.arange(1), np.arange(4)]]
    assert [len(b) for b in pad_with_empty_batches(batches, 0)] == [3, 0, 0]
    assert pad_with_empty_batches(batches, 1) == batches[1]


@pytest.mark.parametrize("budget", [None, 200])
def test_an_update_is_sharded_whole(cells, budget):
    n = len(cells)
    batches = rows_of_updates(cells.lengths, 50, seed=1, epoch=2)
    sharded = [
        list(shard_updates(batches, cells.lengths, budget, ranks(rank, 3))) for rank in range(3)
    ]
    assert sum(update.n_cells for update in sharded[0]) == n
    for whole, *shares in zip(batches, *sharded, strict=True):
        assert {share.n_cells for share in shares} == {len(whole)}
        assert len({len(share.batches) for share in shares}) == 1
        found = np.concatenate([cells for share in shares for cells in share.batches])
        assert sorted(found) == sorted(whole)


# ------------------------------------------------------------------------------- sets of cells


def as_tuples(updates):
    return [[tuple(of_set.tolist()) for of_set in update] for update in updates]


@pytest.mark.parametrize("size", [10, 100, 2000])
def test_every_cell_comes_once_in_a_set_of_its_sample(lengths, samples, size):
    updates = rows_of_updates(lengths, size, samples=samples)
    sets = [of_set for update in updates for of_set in update]
    assert sorted(np.concatenate(sets)) == list(range(1000))
    n_sets = Counter()
    for of_set in sets:
        (sample,) = set(samples.of_cell[of_set].tolist())
        n_sets[sample] += 1
        n_cells = (samples.of_cell == sample).sum()
        assert n_cells // -(-n_cells // 30) <= len(of_set) <= 30  # of equal size
    for sample, n in Counter(samples.of_cell.tolist()).items():
        assert n_sets[sample] == -(-n // 30)
    n_cells = [len(flat(update)) for update in updates]
    assert len(updates) == 1 or 0.5 * min(size, 1000) < np.mean(n_cells[:-1]) <= max(size, 30) + 30


def test_sets_follow_from_seed_and_epoch_alone(lengths, samples):
    def updates(**how):
        return as_tuples(rows_of_updates(lengths, 100, samples=samples, **how))

    first = updates(seed=1, epoch=5)
    rows_of_updates(lengths, 7, seed=3)
    assert updates(seed=1, epoch=5) == first
    for other in (updates(seed=1, epoch=6), updates(seed=2, epoch=5)):
        assert len(other) == len(first)  # what the learning rate follows from
        assert not {s for update in first for s in update} & {s for u in other for s in u}


@pytest.mark.parametrize("budget", [None, 1, 20_000])
@pytest.mark.parametrize("world_size", [1, 3])
def test_sets_are_never_divided(lengths, samples, budget, world_size):
    whole = rows_of_updates(lengths, 200, samples=samples)
    sharded = [
        list(shard_updates(whole, lengths, budget, ranks(rank, world_size)))
        for rank in range(world_size)
    ]
    for update, *shards in zip(as_tuples(whole), *sharded, strict=True):
        found = [of_set for s in shards for batch in as_tuples(s.batches) for of_set in batch]
        assert sorted(found) == sorted(update)
        assert {s.n_cells for s in shards} == {sum(map(len, update))}
        assert len({len(s.batches) for s in shards}) == 1
        for batch in (batch for s in shards for batch in s.batches):
            tokens = [int(lengths[of_set].sum()) for of_set in batch]
            assert budget is None or len(batch) <= 1 or sum(tokens) <= budget
            if budget == 1:  # each set is larger
                assert len(batch) <= 1


def test_sets_to_predict_are_the_same_each_time_whatever_their_codes(samples):
    first, again = as_tuples([samples.sets(), samples.sets()])
    assert first == again
    other = Samples(-samples.of_cell, 30)
    assert {tuple(s.tolist()) for s in other.sets()} == set(first)
    in_file_order = Samples(np.zeros(100, dtype=int), 30).sets(np.arange(100))
    assert [s.tolist() for s in in_file_order] == np.arange(100).reshape(4, 25).tolist()


def test_a_batch_says_where_its_sets_are(cells):
    reader = BatchReader(cells)
    batch = reader.read([np.array([5, 2, 9]), np.array([7])])
    assert batch["sets"].tolist() == [0, 3, 4]
    assert batch["cell_index"].tolist() == [5, 2, 9, 7]
    assert "sets" not in reader.read(np.array([5, 2]))
    assert reader.read([])["sets"].tolist() == [0]
    assert reader.read([])["lengths"] == []
