import json
import shutil

import numpy as np
import pytest

from dataset.encoded_folder import EncodedFolder, EncodedFolderError


@pytest.fixture
def copy(encoded_folder, tmp_path):
    """Return a copy of the encoded folder, to be damaged."""
    return shutil.copytree(encoded_folder, tmp_path / "copy")


def test_what_is_in_it(encoded_folder):
    folder = EncodedFolder(encoded_folder)
    assert folder.class_names == ["type_0", "type_1", "type_2", "type_3"]
    assert folder.gene_medians.dtype == np.float32
    assert folder.vocabulary.n_genes == len(folder.gene_medians)
    assert sum(folder.n_cells.values()) == len(folder.cells) == 300
    donors = {}
    for name in ("train", "val", "test"):
        split = folder.split(name)
        assert len(split) == folder.n_cells[name]
        assert isinstance(split.token_ids, np.memmap)
        counts, library_size = folder.expression(name)
        assert counts.shape == (len(split), folder.vocabulary.n_genes)
        assert counts.dtype == np.float32
        np.testing.assert_array_equal(library_size, split.library_size[:, 0])
        assert (counts.sum(axis=1).A1 if hasattr(counts, "A1") else counts.sum(axis=1)).all()
        names = [folder.class_names[label] for label in split.labels]
        assert names == split.cells["label"].tolist()
        assert split.cell_names.dtype.kind == split.batches.dtype.kind == "U"
        donors[name] = set(split.batches)
    assert not donors["train"] & donors["val"]
    assert not donors["train"] & donors["test"]
    assert not donors["val"] & donors["test"]


def test_the_counts_at_the_tokens_are_the_expression(encoded_folder):
    folder = EncodedFolder(encoded_folder)
    split = folder.split("val")
    counts, _ = folder.expression("val")
    for row in range(len(split)):
        n = split.lengths[row]
        genes = split.token_ids[row, 1:n].astype(int) - 4
        np.testing.assert_array_equal(counts[row].toarray()[0, genes], split.counts[row, 1:n])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(EncodedFolderError, match="no such encoded folder"):
        EncodedFolder(tmp_path / "nothing")


FILES = [
    "meta.json", "vocabulary.json", "gene_medians.npy", "class_names.json", "cells.csv",
    "expression/indptr.npy", "expression/gene_index.npy", "expression/counts.npy",
    "expression/library_size.npy", "train/token_ids.npy", "val/counts.npy", "test/lengths.npy",
    "train/labels.npy", "val/rows.npy", "test/library_size.npy",
]  # fmt: skip


def use(path):
    folder = EncodedFolder(path)
    for name in ("train", "val", "test"):
        folder.expression(name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "a folder"])
def test_damage_is_one_clear_sentence(copy, name, damage):
    path = copy / name
    content = path.read_bytes()
    path.unlink()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif damage == "garbage":
        path.write_bytes(b"\x93garbage\xff" * 50)
    elif damage == "a folder":
        path.mkdir()
    with pytest.raises(EncodedFolderError) as caught:
        use(copy)
    assert str(path) in str(caught.value)
    assert "preprocess again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".npy")])
@pytest.mark.parametrize("change", ["dtype", "shape", "pickle"])
def test_an_array_of_another_type_or_shape_is_refused(copy, name, change):
    array = np.load(copy / name)
    changed = {
        "dtype": lambda: array.astype(np.float16),
        "shape": lambda: array[:-1],
        "pickle": lambda: np.array([{"a": 1}], dtype=object),
    }[change]()
    np.save(copy / name, changed)
    with pytest.raises(EncodedFolderError, match="damaged"):
        use(copy)


@pytest.mark.parametrize(
    ("name", "value"),
    [("train/labels.npy", 4), ("train/rows.npy", 300), ("train/lengths.npy", 98),
     ("gene_medians.npy", 0), ("expression/gene_index.npy", 60_000)],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(copy, name, value):
    array = np.load(copy / name)
    array[3] = value
    np.save(copy / name, array)
    with pytest.raises(EncodedFolderError, match="damaged"):
        use(copy)


def test_another_format_is_refused(copy):
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(meta | {"schema_version": 99}))
    with pytest.raises(EncodedFolderError, match="format 99, this code reads 1"):
        EncodedFolder(copy)
