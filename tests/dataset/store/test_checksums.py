import json

import pytest

from dataset.store import checksums
from dataset.store.checksums import CHECKSUMS, changed_files, read_checksums, write_checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "sub" / "b.bin").write_bytes(bytes(range(100)))
    write_checksums(tmp_path)
    return tmp_path


def test_an_untouched_folder_has_no_changed_file(folder):
    sums = read_checksums(folder)
    assert set(sums) == {"a.txt", "sub/b.bin"}
    assert changed_files(folder, sums) == []
    write_checksums(folder)  # its own file never enters it
    assert read_checksums(folder) == sums


def test_a_changed_a_missing_and_an_unknown_file_are_named(folder):
    sums = read_checksums(folder)
    (folder / "a.txt").write_text("abd")
    (folder / "sub" / "b.bin").unlink()
    assert changed_files(folder, sums) == ["a.txt", "sub/b.bin"]
    assert changed_files(folder, sums, ["c.txt"]) == ["c.txt"]


def test_of_a_large_file_the_ends_the_size_and_a_sample_between_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "PIECE", 4)
    monkeypatch.setattr(checksums, "HASHED_BYTES", 16)
    file = tmp_path / "large"
    content = bytearray(range(100))
    file.write_bytes(content)
    whole = checksums.file_checksum(file)
    for position in (0, 33, 99):
        changed = content.copy()
        changed[position] ^= 1
        file.write_bytes(changed)
        assert checksums.file_checksum(file) != whole
    file.write_bytes(content + b"\0")
    assert checksums.file_checksum(file) != whole
    zeros = set()
    for size in (98, 99, 100):  # samples all alike
        file.write_bytes(bytes(size))
        zeros.add(checksums.file_checksum(file))
    assert len(zeros) == 3


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', "{"])
def test_checksums_that_are_no_table_are_an_error(tmp_path, text):
    (tmp_path / CHECKSUMS).write_text(text)
    with pytest.raises((ValueError, json.JSONDecodeError)):
        read_checksums(tmp_path)
