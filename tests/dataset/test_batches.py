from dataclasses import replace

import numpy as np
import pytest
import torch

from dataset.batches import (
    BatchReader,
    EncodedCells,
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
    return BatchReader(cells).read(np.array(rows, dtype=np.int64))


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
    reader = BatchReader(cells)
    for rows in np.array_split(np.random.default_rng(0).permutation(len(cells)), 9):
        batch = reader.read(rows)
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
