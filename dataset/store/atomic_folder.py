"""``atomic_folder``: a folder is there whole, or not at all."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.user_error import UserError


class FolderError(UserError):
    """A folder cannot be written; the message says why, and nothing was kept."""


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
            fsync_folder(partial)
            if os.path.lexists(folder):
                check_replaceable(folder)
                retired = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
                folder.rename(retired / "old")
                partial.rename(folder)
                shutil.rmtree(retired)
            else:
                partial.rename(folder)
            _fsync(folder.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
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


def fsync_folder(folder: Path) -> None:
    """Wait until everything below the folder is on the disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
