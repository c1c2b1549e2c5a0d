"""Atomic writes: a file or a folder is there whole, or not at all.

Both are written under a hidden name beside the one they are to have, flushed to the disk and then
renamed: at no moment does anything incomplete have the name, and killed before the rename, what
was there stays.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from configs.user_error import UserError

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


class FolderError(UserError):
    """A folder cannot be written; the message says why, and nothing was kept."""


class WriteError(OSError):
    """A file cannot be written; the message names it."""


# -------------------------------------------------------------------------------- files


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it gets its name when all went well and is removed otherwise.

    Its name is this process's own: two that write one file do not mix, and the last one stays.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        flush_to_disk(partial)
        os.replace(partial, path)
    finally:  # Ctrl-C too
        partial.unlink(missing_ok=True)
    flush_to_disk(path.parent)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill an ``atomic_file``.

    Raises
    ------
    WriteError
        An OSError that names ``path``, on a full disk and otherwise.
    """
    with writing(path), atomic_file(path) as partial:
        write(partial)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let an error in writing name the file: the system's own often do not."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        text = " ".join(str(error).split())
        # safetensors gives the number in its text only.
        if getattr(error, "errno", None) in DISK_IS_FULL or any(
            f"os error {number})" in text for number in DISK_IS_FULL
        ):
            text = "the disk is full; free space, then run the same again"
        raise WriteError(f"{path}: cannot be written: {text}") from error


# ------------------------------------------------------------------------------ folders


@contextmanager
def atomic_folder(folder: Path, check_replaceable: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a folder to write to; it gets its name when all went well and is removed otherwise.

    A folder of this name that is there already is replaced, unless ``check_replaceable`` raises:
    it is asked before anything is written, and again before the folder goes.

    What an interrupted run left is removed first. A lock tells it from the folder of a run that
    is still at work; the system lets go of the lock when a process ends, however it ends.
    """
    if os.path.lexists(folder):
        check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.partial-"
    for left in folder.parent.glob(f"{prefix}*"):
        with locked(
            left, FolderError(f"{folder}: another process is writing it now; wait for it")
        ):
            shutil.rmtree(left)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        with locked(partial, FolderError(f"{partial}: is in use")):
            yield partial
            partial.chmod(0o755)
            flush_folder(partial)
            if os.path.lexists(folder):
                check_replaceable(folder)
                retired = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
                folder.rename(retired / "old")
                partial.rename(folder)
                shutil.rmtree(retired)
            else:
                partial.rename(folder)
            flush_to_disk(folder.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
            raise FolderError(
                f"{folder}: the disk is full: free space or write elsewhere; nothing was kept"
            ) from error
        raise


@contextmanager
def locked(folder: Path, otherwise: Exception) -> Iterator[None]:
    """Hold a folder for this process; raise ``otherwise`` where another one holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise otherwise from None
        yield
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------------- disk


def flush_folder(folder: Path) -> None:
    """Wait until everything below the folder is on the disk."""
    with ThreadPoolExecutor() as threads:  # the disk takes several files at once
        list(threads.map(flush_to_disk, [*folder.rglob("*"), folder]))


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
