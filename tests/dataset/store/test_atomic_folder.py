import errno
import os

import pytest

from dataset.store.atomic_folder import FolderError, atomic_folder


def needs_marker(folder):
    if not (folder / "marker").exists():
        raise FolderError("has no marker")


def write(folder, text):
    with atomic_folder(folder, needs_marker) as aside:
        (aside / "marker").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_there_when_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "a" / "b", needs_marker) as aside:
        (aside / "marker").write_text("1")
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
    with atomic_folder(tmp_path / "b", needs_marker) as aside:
        with pytest.raises(FolderError, match="another process"):
            write(tmp_path / "b", "2")
        (aside / "marker").write_text("1")
    assert names(tmp_path) == [".bb.partial-other", "b"]
