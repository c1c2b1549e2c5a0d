import errno
import os

import pytest

from dataset.store.atomic import (
    FolderError,
    WriteError,
    atomic_file,
    atomic_folder,
    write_atomically,
    write_text,
)


def needs_marker(folder):
    if not (folder / "marker").exists():
        raise FolderError("has no marker")


def write(folder, text):
    with atomic_folder(folder, needs_marker) as partial:
        (partial / "marker").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_there_when_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "a" / "b", needs_marker) as partial:
        (partial / "marker").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "marker").read_text() == "1"
    assert names(tmp_path / "a") == ["b"]


def test_a_folder_of_its_kind_is_replaced(tmp_path):
    write(tmp_path / "b", "1")
    write(tmp_path / "b", "2")
    assert (tmp_path / "b" / "marker").read_text() == "2"
    assert names(tmp_path) == ["b"]


def test_a_folder_of_another_kind_is_not(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(FolderError, match="has no marker"):
        write(tmp_path / "b", "1")
    assert names(tmp_path) == ["b"]


def test_what_came_into_the_folder_meanwhile_is_not_lost(tmp_path):
    write(tmp_path / "b", "1")
    with (
        pytest.raises(FolderError, match="has no marker"),
        atomic_folder(tmp_path / "b", needs_marker),
    ):
        (tmp_path / "b" / "marker").rename(tmp_path / "b" / "thesis")
    assert names(tmp_path) == ["b"]
    assert names(tmp_path / "b") == ["thesis"]


def test_after_an_error_the_old_folder_is_as_it_was(tmp_path):
    write(tmp_path / "b", "1")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "b", needs_marker):
        raise ZeroDivisionError
    assert (tmp_path / "b" / "marker").read_text() == "1"
    assert names(tmp_path) == ["b"]


def test_a_full_disk_is_said(tmp_path):
    with (
        pytest.raises(FolderError, match="disk is full"),
        atomic_folder(tmp_path / "b", needs_marker),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path):
    (tmp_path / ".b.partial-dead" / "train").mkdir(parents=True)
    (tmp_path / ".bb.partial-other").mkdir()
    with atomic_folder(tmp_path / "b", needs_marker) as partial:
        with pytest.raises(FolderError, match="another process"):
            write(tmp_path / "b", "2")
        (partial / "marker").write_text("1")
    assert names(tmp_path) == [".bb.partial-other", "b"]


# -------------------------------------------------------------------------------- files


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail(unfinished):
        unfinished.write_text("half of the n")
        raise error

    with pytest.raises(error):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WRITERS = {
    "text": lambda path: write_text(path, "text"),
    "bytes": lambda path: write_atomically(
        path, lambda unfinished: unfinished.write_bytes(bytes(10**6))
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path, kind):
    path = tmp_path / "x.bin"
    (tmp_path / f".x.bin.partial-{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(WriteError, match=f"{path}: .*the disk is full") as error:
        WRITERS[kind](path)
    assert isinstance(error.value, OSError)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_the_system_names_the_file_too(tmp_path):
    with pytest.raises(WriteError, match=r"nowhere/x.txt: cannot be written"):
        write_text(tmp_path / "nowhere" / "x.txt", "text")


def test_what_another_process_is_writing_is_not_mixed_with_ours(tmp_path):
    path = tmp_path / "x.txt"
    theirs = tmp_path / ".x.txt.partial-0"
    theirs.write_text("half")
    with atomic_file(path) as unfinished:
        unfinished.write_text("ours")
        assert not path.exists()
    assert path.read_text() == "ours"
    assert theirs.read_text() == "half"
