"""One file of cells on disk: opened, fingerprinted, hashed, and its faults put in one sentence.

A ``.h5ad`` is HDF5 and a ``.zarr`` is a folder; both show the same tree of groups and arrays, so
what reads one reads the other. ``open_store`` is the only place that knows which it is, and the
place to add another kind of storage.
"""

import errno
import hashlib
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import hdf5plugin  # noqa: F401  registers the zstd, lz4 and blosc filters with HDF5
import pandas as pd
import zarr

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


class CellFileError(ValueError):
    """A file of cells cannot be used; the message names it and says what to do."""


@contextmanager
def named_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what the storage libraries raise into one ``CellFileError`` that names the file."""
    try:
        yield
    except CellFileError:
        raise
    except STORAGE_ERRORS as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CellFileError(
                f"{path}: {doing} needs room in {tempfile.gettempdir()}, and the disk is full: "
                "free some, or set TMPDIR to a folder on another disk"
            ) from error
        detail = str(error).strip().splitlines()[0] if str(error).strip() else "no detail"
        raise CellFileError(
            f"{path}: {doing} failed ({type(error).__name__}: {detail}). The file is damaged or "
            "incomplete: copy or download it again, or write it anew with anndata"
        ) from error


@contextmanager
def open_store(path: Path) -> Iterator[Any]:
    """Open the file for reading and yield its root group, an HDF5 or a zarr one."""
    if not path.exists():
        raise CellFileError(f"{path}: no such file")
    if path.is_dir():
        if not any((path / name).exists() for name in (".zgroup", "zarr.json")):
            raise CellFileError(f"{path}: a folder, and not a zarr store; expected .h5ad or .zarr")
        with named_errors(path, "opening the zarr store"):
            root = zarr.open_group(path, mode="r")
        yield root
        return
    if path.stat().st_size == 0:
        raise CellFileError(f"{path}: the file is empty (0 bytes): copy or download it again")
    try:
        file = h5py.File(path, "r", locking="best-effort")  # network disks may not lock
    except OSError as error:
        if not h5py.is_hdf5(path):
            reason = "not an HDF5 file, so not a .h5ad; expected what anndata's write_h5ad writes"
        elif "truncated" in str(error):
            reason = "the file is cut short (truncated): copy or download it again"
        else:
            reason = f"cannot be opened: {str(error).splitlines()[0]}"
        raise CellFileError(f"{path}: {reason}") from error
    with file:
        yield file


def fingerprint(path: Path) -> tuple:
    """Return what changes when the file is rewritten: size, time of change and inode."""
    try:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            return tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
        stat = path.stat()
    except FileNotFoundError:
        return ("gone",)
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino)


def file_sha256(path: Path) -> str:
    """Hash a file, read in pieces; of a zarr folder, the names and hashes of its files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for part in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{part.relative_to(path).as_posix()}\t{file_sha256(part)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_table(root: Any, key: str, path: Path) -> pd.DataFrame:
    """Read ``obs``, ``var`` or ``raw/var``, its index as text."""
    if key not in root:
        raise CellFileError(
            f"{path}: no {key!r} in the file (it has {sorted(root)}); expected what anndata's "
            "write_h5ad writes"
        )
    with named_errors(path, f"reading {key}"), warnings.catch_warnings():
        # anndata warns about old encodings and odd column names; they are read all the same.
        warnings.simplefilter("ignore")
        node = root[key]
        if hasattr(node, "dtype"):  # before anndata 0.7 a table was one compound array
            old = ad.read_h5ad(path, backed="r")
            table = old.raw.var if key == "raw/var" else getattr(old, key)
            old.file.close()
        else:
            table = ad.io.read_elem(node)
        table = table.copy()
        table.index = table.index.astype(str)
    return table
