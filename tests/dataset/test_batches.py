from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataset.batches import (
    EncodedCells,
    LengthBucketSampler,
    NpyDataset,
    collate,
    cut_to_budget,
    deal_updates,
    even_rounds,
    keep_tokens,
    openings,
    sort_segments,
    to_device,
)
from dataset.store.encoded_folder import EncodedFolder
from dataset.vocabulary import CLS, PAD, SEP


@pytest.fixture
def cells(encoded_folder):
    return EncodedFolder(encoded_folder).split("train")


@pytest.fixture
def lengths(rng):
    return rng.integers(5, 500, size=1000)


def batches_of(lengths, size, **settings):
    return list(LengthBucketSampler(lengths, size, **settings))


def in_memory(cells, **more):
    """Read a split whole, with more arrays per token."""
    return EncodedCells(
        arrays={**cells.arrays, **more},
        lengths=cells.lengths,
        library_size=cells.library_size,
        labels=cells.labels,
        conditions=np.zeros((len(cells), 0), dtype=np.int64),
    )


def read(cells, rows):
    return collate(NpyDataset(cells).__getitems__(rows))


def test_a_batch_holds_the_rows_asked_for_end_to_end(cells):
    rows = [5, 0, 17]
    batch = read(cells, rows)
    assert batch["token_ids"].dtype == batch["counts"].dtype == torch.uint16
    for name, array in cells.arrays.items():
        expected = np.concatenate([array[row, : cells.lengths[row]] for row in rows])
        np.testing.assert_array_equal(batch[name].numpy(), expected)
    assert batch["lengths"] == cells.lengths[rows].tolist()
    assert batch["offsets"].tolist() == [0, *np.cumsum(batch["lengths"])]
    assert batch["offsets"].dtype == torch.int32
    assert batch["labels"].tolist() == cells.labels[rows].tolist()
    assert batch["cell_index"].tolist() == rows
    assert batch["library_size"].shape == (3, 1)
    assert batch["conditions"].shape == (3, 0)


def test_rows_widen_on_the_device(cells):
    rows = read(cells, [1, 2])
    batch = to_device(rows, "cpu")
    assert batch["token_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["counts"].dtype == batch["library_size"].dtype == torch.float32
    assert batch["counts"].tolist() == rows["counts"].tolist()
    assert isinstance(batch["lengths"], list)  # of numbers: nobody asks the device for them


def test_whatever_the_tokenizer_wrote_arrives_on_the_device(cells):
    token_ids, counts = cells.arrays["token_ids"], cells.arrays["counts"]
    bins = np.where(token_ids == PAD, 0, np.arange(token_ids.shape[1]) % 7)
    more = {"bins": bins.astype(np.uint16), "values": np.sqrt(counts).astype(np.float16)}
    conditions = np.arange(2 * len(cells)).reshape(-1, 2)
    rows = [3, 1]
    batch = to_device(read(replace(in_memory(cells, **more), conditions=conditions), rows), "cpu")
    for name, dtype in (("bins", torch.int64), ("values", torch.float32)):
        expected = np.concatenate([more[name][row, : cells.lengths[row]] for row in rows])
        assert batch[name].dtype == dtype
        np.testing.assert_array_equal(batch[name].numpy(), expected)
    assert batch["conditions"].tolist() == [[6, 7], [2, 3]]


def test_no_padding_is_read(cells):
    for batch in DataLoader(
        NpyDataset(cells),
        batch_sampler=LengthBucketSampler(cells.lengths, 16),
        collate_fn=collate,
    ):
        assert (batch["token_ids"].numpy() != PAD).all()
        np.testing.assert_array_equal(batch["lengths"], cells.lengths[batch["cell_index"]])


def test_an_empty_share_of_a_batch_is_an_empty_batch(cells):
    for batch in (read(cells, []), to_device(read(cells, []), "cpu")):
        assert batch["token_ids"].shape == batch["counts"].shape == batch["labels"].shape == (0,)
        assert batch["lengths"] == []
        assert batch["offsets"].tolist() == [0]


@pytest.mark.parametrize("known", [False, True])
def test_tokens_are_left_out_of_every_array(cells, rng, known):
    batch = to_device(read(in_memory(cells, bins=cells.arrays["counts"] + 1), [4, 0, 9]), "cpu")
    keep = torch.from_numpy(rng.random(len(batch["token_ids"])) < 0.5)
    rows = keep.split(batch["lengths"])
    lengths = [int(row.sum()) for row in rows]
    kept = keep_tokens(batch, keep, lengths if known else None)
    assert kept["lengths"] == lengths
    assert kept["offsets"].tolist() == [0, *np.cumsum(lengths)]
    for name in ("token_ids", "counts", "bins"):
        assert torch.equal(kept[name], batch[name][keep])
    assert torch.equal(kept["labels"], batch["labels"])
    nothing = keep_tokens(batch, torch.zeros_like(keep))
    assert nothing["lengths"] == [0, 0, 0]
    assert len(nothing["counts"]) == 0


def test_segments_are_sorted_each_by_itself():
    token_ids = torch.tensor([CLS, 9, 7, 8, SEP, 5, 6, CLS, 7, 4, SEP])
    batch = {
        "token_ids": token_ids,
        "counts": torch.arange(11.0),
        "offsets": torch.tensor([0, 7, 11], dtype=torch.int32),
        "lengths": [7, 4],
    }
    assert openings(token_ids).tolist() == [0, 0, 0, 0, 4, 4, 4, 7, 7, 7, 10]
    value = torch.tensor([0.0, 1, 2, 2, 0, 1, 3, 0, 1, 5, 0])
    found = sort_segments(batch, value)
    assert found["token_ids"].tolist() == [CLS, 7, 8, 9, SEP, 6, 5, CLS, 4, 7, SEP]
    assert found["counts"].tolist() == [0, 2, 3, 1, 4, 6, 5, 7, 9, 8, 10]
    assert found["lengths"] == batch["lengths"]


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
    sizes = [len(read(cells, batch)["token_ids"]) for batch in batches]
    assert max(sizes) <= budget
    # The next cell would not have fitted: what counts is its tokens, and padding does not.
    for size, after in zip(sizes, batches[1:], strict=False):
        assert size + cells.lengths[after[0]] > budget


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
