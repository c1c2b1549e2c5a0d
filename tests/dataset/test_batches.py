import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataset.batches import (
    LengthBucketSampler,
    NpyDataset,
    collate,
    cut_to_budget,
    deal_updates,
    even_rounds,
    padded_length,
    to_device,
)
from dataset.store.encoded_folder import EncodedFolder
from dataset.vocabulary import PAD


@pytest.fixture
def cells(encoded_folder):
    return EncodedFolder(encoded_folder).split("train")


@pytest.fixture
def lengths(rng):
    return rng.integers(5, 500, size=1000)


def batches_of(lengths, size, **settings):
    return list(LengthBucketSampler(lengths, size, **settings))


def test_a_batch_holds_the_rows_asked_for(cells):
    rows = [5, 0, 17]
    batch = collate(NpyDataset(cells).__getitems__(rows))
    t = batch["token_ids"].shape[1]
    assert batch["token_ids"].dtype == batch["counts"].dtype == torch.uint16
    np.testing.assert_array_equal(batch["token_ids"].numpy(), cells.arrays["token_ids"][rows, :t])
    np.testing.assert_array_equal(batch["counts"].numpy(), cells.arrays["counts"][rows, :t])
    assert batch["labels"].tolist() == cells.labels[rows].tolist()
    assert batch["cell_index"].tolist() == rows
    assert batch["library_size"].shape == (3, 1)


def test_rows_widen_on_the_device(cells):
    batch = to_device(collate(NpyDataset(cells).__getitems__([1, 2])), "cpu")
    assert batch["token_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["counts"].dtype == batch["library_size"].dtype == torch.float32
    np.testing.assert_array_equal(
        batch["counts"].numpy(), cells.arrays["counts"][[1, 2], : batch["counts"].shape[1]]
    )


def test_only_padding_is_trimmed(cells):
    for batch in DataLoader(
        NpyDataset(cells),
        batch_sampler=LengthBucketSampler(cells.lengths, 16),
        collate_fn=collate,
    ):
        rows = batch["cell_index"].numpy()
        n_tokens = (batch["token_ids"].numpy() != PAD).sum(axis=1)
        np.testing.assert_array_equal(n_tokens, cells.lengths[rows])


@pytest.mark.parametrize(
    ("longest", "row", "expected"),
    [(1, 2049, 1), (63, 2049, 63), (64, 2049, 64), (65, 2049, 128), (2000, 2049, 2048),
     (2049, 2049, 2049), (90, 97, 97)],
)  # fmt: skip
def test_lengths_are_rounded_up_to_multiples_of_64(longest, row, expected):
    assert padded_length(longest, row) == expected


def test_an_empty_share_of_a_batch_is_an_empty_batch(cells):
    assert collate(NpyDataset(cells).__getitems__([]))["token_ids"].shape[0] == 0


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("size", [7, 64])
def test_every_cell_comes_once_and_ranks_share_each_batch(lengths, world_size, size):
    whole = batches_of(lengths, size, seed=4, epoch=2)
    assert sorted(sum(whole, [])) == list(range(1000))
    assert len(whole) == len(LengthBucketSampler(lengths, size))
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


def test_impossible_shares_are_refused(lengths):
    with pytest.raises(ValueError, match="rank 2"):
        LengthBucketSampler(lengths, 8, rank=2, world_size=2)
    with pytest.raises(ValueError, match="batch_size 1"):
        LengthBucketSampler(lengths, 1, rank=0, world_size=2)


@pytest.mark.parametrize("budget", [100, 300, 100_000])
def test_batches_keep_to_the_budget_of_tokens(cells, budget):
    asked = np.random.default_rng(0).permutation(len(cells))[:90]
    batches = cut_to_budget(asked, cells, budget)
    assert sorted(np.concatenate(batches)) == sorted(asked)
    sizes = [
        collate(NpyDataset(cells).__getitems__(batch))["token_ids"].numel() for batch in batches
    ]
    assert max(sizes) <= budget
    # No two neighbours would have fitted together.
    row = cells.arrays["token_ids"].shape[1]
    for a, b in zip(batches, batches[1:], strict=False):
        longest = padded_length(int(cells.lengths[b[0]]), row)
        assert (len(a) + 1) * longest > budget


def test_a_cell_beyond_the_budget_makes_a_batch_alone(cells):
    assert [len(batch) for batch in cut_to_budget(np.arange(4), cells, 1)] == [1, 1, 1, 1]
    assert [len(batch) for batch in cut_to_budget(np.arange(0), cells, 1)] == [0]


def test_every_process_has_as_many_batches():
    batches = [[np.arange(3)], [np.arange(2), np.arange(1), np.arange(4)]]
    assert [len(b) for b in even_rounds(batches, 0)] == [3, 0, 0]
    assert even_rounds(batches, 1) == batches[1]


@pytest.mark.parametrize("budget", [None, 200])
def test_an_update_is_dealt_whole(cells, budget):
    n = len(cells)
    dealt = [
        list(deal_updates(LengthBucketSampler(cells.lengths, 50, 1, 2, rank, 3), cells, budget))
        for rank in range(3)
    ]
    batches = LengthBucketSampler(cells.lengths, 50, 1, 2).global_batches()
    assert sum(update.n_cells for update in dealt[0]) == n
    for whole, *shares in zip(batches, *dealt, strict=True):
        assert {share.n_cells for share in shares} == {len(whole)}
        assert len({len(share.batches) for share in shares}) == 1
        found = np.concatenate([cells for share in shares for cells in share.batches])
        assert sorted(found) == sorted(whole)
