import json
import shutil

import numpy as np
import pytest

from dataset.config import SplitConfig
from dataset.encode import encode
from dataset.store.atomic import FolderError
from dataset.store.checksums import write_checksums
from dataset.store.encoded_folder import EncodedFolder, EncodedFolderError
from dataset.store.layout import FILES, check_replaceable, tokenizer_files
from dataset.vocabulary import Vocabulary


@pytest.fixture
def copy(encoded_folder, tmp_path):
    """Return a copy of the encoded folder, to be damaged."""
    return shutil.copytree(encoded_folder, tmp_path / "copy")


def test_what_is_in_it(encoded_folder):
    folder = EncodedFolder(encoded_folder)
    assert folder.class_names == ["type_0", "type_1", "type_2", "type_3"]
    assert folder.facts.learned["medians"].dtype == np.float32
    assert folder.vocabulary.n_genes == len(folder.facts.learned["medians"])
    assert sum(folder.n_cells.values()) == len(folder.cells) == 300
    donors = {}
    for name in ("train", "val", "test"):
        split = folder.split(name)
        assert len(split) == folder.n_cells[name]
        assert isinstance(split.arrays["token_ids"], np.memmap)
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
        genes = split.arrays["token_ids"][row, 1:n].astype(int) - 4
        np.testing.assert_array_equal(
            counts[row].toarray()[0, genes], split.arrays["counts"][row, 1:n]
        )


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(EncodedFolderError, match="no such encoded folder"):
        EncodedFolder(tmp_path / "nothing")


DAMAGED = [
    "meta.json", "vocabulary.json", "learned/medians.npy", "class_names.json", "cells.csv",
    "conditions.json", "val/conditions.npy",
    "counts/indptr.npy", "counts/gene_index.npy", "counts/counts.npy", "counts/cells.h5ad",
    "counts/store.json", "expression/rows.npy", "expression/columns.npy",
    "expression/library_size.npy", "train/token_ids.npy", "val/counts.npy", "test/lengths.npy",
    "train/labels.npy", "val/rows.npy", "test/library_size.npy",
]  # fmt: skip


def use(path):
    folder = EncodedFolder(path)
    for name in ("train", "val", "test"):
        folder.expression(name)


@pytest.mark.parametrize("name", DAMAGED)
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
    assert "encode again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in DAMAGED if name.endswith(".npy")])
@pytest.mark.parametrize("change", ["dtype", "shape", "pickle"])
def test_an_array_of_another_type_or_shape_is_refused(copy, name, change):
    array = np.load(copy / name)
    changed = {
        "dtype": lambda: array.astype(np.float16),
        "shape": lambda: array[:-1],
        "pickle": lambda: np.array([{"a": 1}], dtype=object),
    }[change]()
    np.save(copy / name, changed)
    write_checksums(copy)
    with pytest.raises(EncodedFolderError, match="damaged"):
        use(copy)


@pytest.mark.parametrize(
    ("name", "value"),
    [("train/labels.npy", 4), ("train/rows.npy", 300), ("train/lengths.npy", 98),
     ("learned/medians.npy", 0), ("counts/gene_index.npy", 60_000),
     ("expression/rows.npy", 300), ("expression/columns.npy", 7)],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(copy, name, value):
    array = np.load(copy / name)
    array[3] = value
    np.save(copy / name, array)
    write_checksums(copy)
    with pytest.raises(EncodedFolderError, match="damaged"):
        use(copy)


def test_another_format_is_refused(copy):
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(meta | {"schema_version": 99}))
    with pytest.raises(EncodedFolderError, match=r"format 99, this code reads 4\); encode again"):
        EncodedFolder(copy)


def test_a_folder_from_before_there_were_checksums_is_refused(copy):
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(meta | {"schema_version": 1}))
    (copy / "checksums.json").unlink()
    with pytest.raises(EncodedFolderError, match=r"format 1, this code reads 4\); encode again"):
        EncodedFolder(copy)


# ---------------------------------------------------------------- what it holds is what it held


def permute(name):
    def change(folder):
        array = np.load(folder / name)
        order = np.random.default_rng(0).permutation(len(array))
        assert (array[order] != array).any()
        np.save(folder / name, array[order])

    return change


def reverse(name, key=None):
    def change(folder):
        content = json.loads((folder / name).read_text())
        if key is None:
            content.reverse()
        else:
            content[key].reverse()
        (folder / name).write_text(json.dumps(content))

    return change


def a_token_beyond_the_vocabulary(folder):
    array = np.load(folder / "train/token_ids.npy")
    array[3, 2] = 60_000
    np.save(folder / "train/token_ids.npy", array)


def two_cells_of_the_table(folder):
    lines = (folder / "cells.csv").read_text().splitlines()
    lines[1:] = lines[:0:-1]
    (folder / "cells.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vocabulary.json", reverse("vocabulary.json", "gene_ids")),
        ("class_names.json", reverse("class_names.json")),
        ("train/token_ids.npy", a_token_beyond_the_vocabulary),
        ("cells.csv", two_cells_of_the_table),
    ]
    + [
        (name, permute(name))
        for name in ("train/labels.npy", "val/rows.npy", "test/library_size.npy",
                     "learned/medians.npy", "train/counts.npy", "counts/counts.npy",
                     "expression/rows.npy", "expression/library_size.npy")
    ],
)  # fmt: skip
def test_content_that_was_changed_is_refused(copy, name, change):
    EncodedFolder(copy)
    change(copy)
    with pytest.raises(EncodedFolderError) as caught:
        EncodedFolder(copy)
    assert f"{copy / name}: its content is not what was written; encode again" in str(caught.value)


@pytest.mark.parametrize("name", ["meta.json", "class_names.json", "vocabulary.json",
                                  "checksums.json"])  # fmt: skip
@pytest.mark.parametrize("content", ["null", "7", '"text"', "[]", "{}", "[[1]]", '{"a": 1}',
                                     "[" * 100_000])  # fmt: skip
@pytest.mark.parametrize("sealed", [False, True])
def test_json_of_another_type_is_a_sentence(copy, name, content, sealed):
    (copy / name).write_text(content)
    if sealed and name != "checksums.json":
        write_checksums(copy)
    with pytest.raises(EncodedFolderError, match=r"encode again") as caught:
        EncodedFolder(copy)
    assert "\n" not in str(caught.value)


META_KEYS = [
    "name", "source", "label_key", "batch_key", "time_key", "organism", "tokenizer", "n_tokens",
    "learned", "arrays", "condition_keys", "position_keys",
    "n_segments", "n_cells", "dropped", "messages", "data_sha256", "split_sha256", "git_commit",
]  # fmt: skip


@pytest.mark.parametrize("key", META_KEYS)
@pytest.mark.parametrize("value", [1.5, [3], {"train": "3"}, "absent"])
def test_a_value_of_another_type_in_meta_is_a_sentence(copy, key, value):
    meta = json.loads((copy / "meta.json").read_text())
    meta[key] = value
    if value == "absent":
        del meta[key]
    (copy / "meta.json").write_text(json.dumps(meta))
    write_checksums(copy)
    if key == "tokenizer" and isinstance(value, dict):
        EncodedFolder(copy)  # a table is a table: its fields are its reader's to check
        return
    with pytest.raises(EncodedFolderError, match=rf"meta\.json: damaged \({key}"):
        EncodedFolder(copy)


def test_a_file_without_a_checksum_is_refused(copy):
    sums = json.loads((copy / "checksums.json").read_text())
    del sums["train/labels.npy"]
    (copy / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(EncodedFolderError, match=r"train/labels\.npy: its content is not"):
        EncodedFolder(copy)


# ------------------------------------------------------------------- encoded again meanwhile


@pytest.fixture
def replaced(preprocess_config, tmp_path):
    """Open a folder, encode other cells under its name, and return what was opened before."""
    config = preprocess_config.model_copy(update={"data_dir": str(tmp_path)})
    opened = EncodedFolder(encode(config, progress=False))
    other = config.model_copy(update={"split": SplitConfig(key=None, seed=5)})
    encode(other, overwrite=True, progress=False)
    return opened


def test_an_open_folder_keeps_to_what_it_opened(replaced, encoded_folder):
    expected, now = EncodedFolder(encoded_folder), EncodedFolder(replaced.path)
    assert now.n_cells != expected.n_cells
    for name in ("train", "val", "test"):
        split, whole = replaced.split(name), expected.split(name)
        assert split.cell_names.tolist() == whole.cell_names.tolist()
        assert split.batches.tolist() == whole.batches.tolist()
        assert split.cells.equals(whole.cells)
        for array in ("lengths", "labels", "rows", "library_size", "conditions"):
            np.testing.assert_array_equal(getattr(split, array), getattr(whole, array))
        assert list(split.arrays) == list(whole.arrays) == ["counts", "token_ids"]
        for array in split.arrays:
            np.testing.assert_array_equal(split.arrays[array], whole.arrays[array])
        counts, library_size = replaced.expression(name)
        np.testing.assert_array_equal(counts.toarray(), expected.expression(name)[0].toarray())
        np.testing.assert_array_equal(library_size, expected.expression(name)[1])


def test_who_takes_files_from_the_path_can_ask_whether_they_are_the_same(replaced):
    EncodedFolder(replaced.path).check_unchanged()
    with pytest.raises(EncodedFolderError, match="encoded again meanwhile; start again"):
        replaced.check_unchanged()


def test_a_folder_that_is_replaced_while_it_is_opened_is_refused(
    preprocess_config, tmp_path, monkeypatch
):
    config = preprocess_config.model_copy(update={"data_dir": str(tmp_path)})
    path = encode(config, progress=False)
    load = Vocabulary.load

    def meanwhile(vocabulary):
        monkeypatch.undo()
        other = config.model_copy(update={"min_cells_per_class": 4})
        encode(other, overwrite=True, progress=False)
        return load(vocabulary)

    monkeypatch.setattr(Vocabulary, "load", meanwhile)
    with pytest.raises(EncodedFolderError, match="encoded again meanwhile"):
        EncodedFolder(path)


# --------------------------------------------------------------------- whose folder it is


def test_the_layout_is_what_encode_writes(copy):
    written = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    meta = EncodedFolder(copy).meta
    assert written == {*FILES, *tokenizer_files(meta), "checksums.json"}
    check_replaceable(copy)


@pytest.mark.parametrize("lost", ["train/labels.npy", "meta.json", "checksums.json"])
def test_a_damaged_folder_of_ours_may_be_replaced(copy, lost):
    (copy / lost).unlink()
    check_replaceable(copy)


def test_a_folder_of_the_format_before_may_be_replaced(copy):
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(meta | {"schema_version": 1}))
    (copy / "checksums.json").unlink()
    check_replaceable(copy)


@pytest.mark.parametrize("name", ["notes.txt", "train/notes.txt", "history/notes.txt", "a/b/c"])
def test_a_folder_with_a_file_of_somebody_else_is_not_ours(copy, name):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_text("years of work")
    with pytest.raises(FolderError, match=f"encode does not write \\({name}\\)"):
        check_replaceable(copy)


def test_a_link_out_of_the_folder_is_not_ours(copy, tmp_path):
    (tmp_path / "thesis").mkdir()
    (copy / "link").symlink_to(tmp_path / "thesis")
    with pytest.raises(FolderError, match="link"):
        check_replaceable(copy)


def test_many_files_of_somebody_else_are_counted(copy):
    for i in range(50):
        (copy / f"{i:02d}.txt").write_text("")
    with pytest.raises(FolderError, match=r"\(00\.txt, 01\.txt, 02\.txt and 47 more\)"):
        check_replaceable(copy)


@pytest.mark.parametrize("content", ["{}", "[]", '{"n_cells": 3}', "no JSON"])
def test_a_meta_json_of_somebody_else_is_not_ours(tmp_path, content):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(FolderError, match="something else"):
        check_replaceable(tmp_path)
