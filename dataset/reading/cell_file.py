"""One file of cells: opened, fingerprinted, hashed, and its faults put in one sentence.

A ``.h5ad`` is HDF5 and a ``.zarr`` is a folder, on a disk or at an address; all show the same tree
of groups and arrays, so what reads one reads the other. ``open_store`` is the only place that
knows which it is, and the place to add another kind of storage.
"""

import errno
import hashlib
import re
import tempfile
import traceback
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the zstd, lz4 and blosc filters with HDF5
import zarr
from zarr.storage import FsspecStore

from configs.user_error import UserError
from dataset.reading.cell_url import CellPath, CellUrl

# What h5py, zarr and anndata raise on a file that is damaged or cut short.
STORAGE_ERRORS = (
    OSError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    OverflowError,
    zlib.error,
)
# Parts of a file that are read.
READ_PARTS = ("X", "layers", "obs", "raw", "var")
# How HDF5 and zarr say that they do not know a filter, a codec or a version.
UNKNOWN_FORMAT = re.compile(
    r"filter .* not (registered|available)|can't open directory|plugin|codec|zarr_format|version"
)
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class CellFileError(UserError):
    """A file of cells cannot be used; the message names it and says what to do."""


class ColumnError(CellFileError):
    """A column of obs or var cannot be used; the rest of the file can."""


class DamagedError(ValueError):
    """Parts of a file do not fit together; ``named_errors`` makes it a ``CellFileError``."""


class EncodingError(ValueError):
    """Something whole is stored in a way not known here; the message says what to do."""


@contextmanager
def named_errors(path: CellPath, doing: str) -> Iterator[None]:
    """Turn what the storage libraries raise into one ``CellFileError`` that names the file.

    A file that is not understood is not thereby damaged: an encoding not known here says so by
    itself, and what our own code raises is a fault of ours, to be seen with its traceback.
    """
    try:
        yield
    except CellFileError:
        raise
    except EncodingError as error:
        raise CellFileError(f"{path}: {error}") from error
    except Exception as error:
        if _is_ours(error):
            raise
        detail = str(error).strip().splitlines()[0] if str(error).strip() else "no detail"
        if isinstance(path, CellUrl):  # each of fsspec's file systems has errors of its own
            said = CellFileError(
                path.hide_secrets(f"{path}: {_fault_of_url(doing, error, detail)}")
            )
            raise said from None if path.has_secrets else error  # it may quote the address
        if not isinstance(error, STORAGE_ERRORS):
            raise
        if isinstance(error, UnicodeError):
            raise CellFileError(
                f"{path}: {doing} found text that is not UTF-8 ({detail}): it was written in "
                "another encoding, or the file is damaged; write it anew with anndata"
            ) from error
        if UNKNOWN_FORMAT.search(detail):
            raise CellFileError(
                f"{path}: {doing} needs a compression or a format that is not known here "
                f"({detail}), if the file is not damaged: write it anew with anndata and gzip"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CellFileError(
                f"{path}: {doing} needs room in {tempfile.gettempdir()}, and the disk is full: "
                "free some, or set TMPDIR to a folder on another disk"
            ) from error
        raise CellFileError(
            f"{path}: {doing} failed ({type(error).__name__}: {detail}). The file is damaged or "
            "incomplete: copy or download it again, or write it anew with anndata"
        ) from error


def _is_ours(error: Exception) -> bool:
    """Return whether our code raised this, and not a library on a file that it cannot read."""
    if isinstance(error, OSError | UnicodeError | DamagedError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] in ("dataset", "evaluation")


def _fault_of_url(doing: str, error: Exception, detail: str) -> str:
    if isinstance(error, ImportError):
        return (
            f"such an address needs a package that is not here ({detail}): install it with pip, "
            "or download the file and give its path"
        )
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__  # over HTTP, this is also what a refusal and silence come as
        if isinstance(cause, OSError):
            return f"no such file, or no answer ({cause})"
        status = getattr(cause, "status", 404)
        return "no such file" if status == 404 else f"the server refuses it (status {status})"
    return (
        f"{doing} failed ({type(error).__name__}: {detail}). The address or the right to read it "
        "is wrong, the connection broke, or the file is damaged: check them and start again, or "
        "download the file and give its path"
    )


@contextmanager
def open_store(path: CellPath) -> Iterator[Any]:
    """Open the file for reading and yield its root group, an HDF5 or a zarr one."""
    if isinstance(path, Path) and not path.exists():
        raise CellFileError(f"{path}: no such file")
    with ExitStack() as stack:
        with named_errors(path, "opening it"):
            if path.is_dir():
                root = _open_zarr(path)
            else:
                file = path.open_shared() if isinstance(path, CellUrl) else path
                root = stack.enter_context(_open_hdf5(path, file))
        with named_errors(path, "reading it"):
            yield root


def _open_zarr(path: CellPath) -> Any:
    if isinstance(path, CellUrl):
        return zarr.open_group(FsspecStore.from_url(path.url, read_only=True), mode="r")
    if not any((path / name).exists() for name in (".zgroup", "zarr.json")):
        raise CellFileError(f"{path}: a folder, and not a zarr store; expected .h5ad or .zarr")
    return zarr.open_group(path, mode="r")


def _open_hdf5(path: CellPath, file: Any) -> h5py.File:
    try:
        return h5py.File(file, "r", locking="best-effort")  # network disks may not lock
    except OSError as error:
        with path.open("rb") as content:
            head = content.read(len(HDF5_SIGNATURE))
        if not head:
            reason = "the file is empty (0 bytes): copy or download it again"
        elif head != HDF5_SIGNATURE:
            reason = "not an HDF5 file, so not a .h5ad; expected what anndata's write_h5ad writes"
        elif "truncated" in str(error):
            reason = "the file is cut short (truncated): copy or download it again"
        else:
            reason = f"cannot be opened: {str(error).splitlines()[0]}"
        raise CellFileError(f"{path}: {reason}") from error


def fingerprint(path: CellPath) -> tuple:
    """Return what changes when the file is rewritten: size, time of change and inode."""
    if isinstance(path, CellUrl):
        with named_errors(path, "looking at it"):
            return path.fingerprint()
    try:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
        stat = path.stat()
    except FileNotFoundError:
        return ("gone",)
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino)


def file_sha256(path: CellPath) -> str:
    """Hash a file, read in pieces; of a zarr folder, the names and hashes of its files."""
    digest = hashlib.sha256()
    with named_errors(path, "reading it"):
        if path.is_dir():
            for name, part in _parts(path):
                digest.update(f"{name}\t{file_sha256(part)}\n".encode())
            return digest.hexdigest()
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _parts(folder: CellPath) -> Iterable[tuple[str, CellPath]]:
    if isinstance(folder, CellUrl):
        return folder.parts()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path) for path in files]


def refuse_external_links(root: Any, path: CellPath) -> None:
    """Raise if what is read of an open file, or written to, lies in another file.

    An HDF5 file may point at others: by external links, or by data sets whose values are kept in
    other files. Following them would read, and with annotations write, files that nobody named.
    Links inside the file are followed. A zarr store has no such links.

    Raises
    ------
    CellFileError
        Names the file, the place in it, and where it leads.
    """
    if not isinstance(root, h5py.Group):
        return
    with named_errors(path, "looking for links"):
        _refuse_links(root, path, [name for name in READ_PARTS if name in root.keys()], set())


def _refuse_links(group: h5py.Group, path: CellPath, names: list[str], seen: set) -> None:
    for name in names:
        place = f"{group.name.rstrip('/')}/{name}"
        link = group.get(name, getlink=True)
        advice = "write the file anew with anndata, all of it in one file"
        if isinstance(link, h5py.ExternalLink):
            raise CellFileError(f"{path}: {place} is a link to another file: {advice}")
        node = group[name]
        info = h5py.h5o.get_info(node.id)
        if info.fileno != h5py.h5o.get_info(group.id).fileno:  # by way of a link that is inside
            raise CellFileError(f"{path}: {place} leads to another file: {advice}")
        if info.addr in seen:
            continue
        seen.add(info.addr)
        if isinstance(node, h5py.Group):
            _refuse_links(node, path, list(node), seen)
        elif not isinstance(node, h5py.Dataset):
            raise DamagedError(f"{place} is a type, expected values")
        elif node.external or node.is_virtual:
            raise CellFileError(f"{path}: the values of {place} are kept elsewhere: {advice}")
