"""The file that 04 writes: a copy of the query, and in the copy what was found.

The copy is made byte by byte and then added to, so that the query's matrices are never held in
memory. What is added is written here with h5py alone, in the encodings that anndata reads since
0.8: the file does not depend on which anndata is installed.
"""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from configs.user_error import UserError
from dataset.reading.cell_file import CellFileError
from dataset.reading.cell_url import CellPath
from dataset.reading.stored_table import as_text
from dataset.store.atomic import atomic_file

UNS_KEY = "nanocell"  # where the copy says what it was annotated with
TEXT = h5py.string_dtype()


class AnnotationError(UserError):
    """The query cannot be annotated with this run; nothing was written."""


def check_output(output: Path, query: CellPath) -> None:
    """Check that the output can be written before anything is computed.

    Raises
    ------
    AnnotationError
        If a file cannot be written there, or something else lies there.
    """
    if output.suffix != ".h5ad":
        raise AnnotationError(f"{output}: the output must end in .h5ad")
    if os.path.isdir(output):  # a name that is too long is none
        raise AnnotationError(f"{output}: is a folder; give the name of a file in it")
    if os.path.exists(output):
        if isinstance(query, Path) and query.exists() and output.samefile(query):
            raise AnnotationError(f"{output}: is the query itself; give another output")
        if not _was_written_here(output):
            raise AnnotationError(
                f"{output}: is there already, and this notebook did not write it; give another "
                "output, or move it away"
            )
    folder = next(folder for folder in output.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise AnnotationError(f"{output}: cannot be written: {folder} is no folder to write to")


def write_annotated(
    query: CellPath,
    output: Path,
    *,
    obs: pd.DataFrame,
    obsm: Mapping[str, np.ndarray],
    uns: Mapping[str, Any],
    check_unchanged: Callable[[], None],
) -> None:
    """Write the query again with more in it, or nothing at all.

    Parameters
    ----------
    query
        The file that is copied; one that anndata 0.7 or a later one wrote.
    output
        The file to write. It gets its name when it is whole.
    obs
        Columns: categories of text, numbers or booleans. One of the same name is replaced.
    obsm, uns
        Arrays of the cells by name, and what goes to ``uns["nanocell"]``.
    check_unchanged
        Raises if the query was rewritten since its cells were read.

    Raises
    ------
    AnnotationError, CellFileError
        If that cannot be done.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(output) as partial:
            with query.open("rb") as source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            check_unchanged()
            with h5py.File(partial, "r+") as file:
                _add_columns(file["obs"], obs)
                for key, values in obsm.items():
                    _write(_table_of(file, "obsm"), key, values)
                _write(_table_of(file, "uns"), UNS_KEY, uns)
    except (AnnotationError, CellFileError):
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise AnnotationError(f"{output}: {_fault(error)}; nothing was written") from error


def check_query(file: h5py.File, path: CellPath, columns: list[str]) -> None:
    """Refuse a query whose copy cannot be added to, before anything is computed."""
    for part in ("obs", "obsm", "uns"):
        link = file.get(part, getlink=True)
        if link is not None and (isinstance(link, h5py.ExternalLink) or _is_elsewhere(file, part)):
            raise AnnotationError(
                f"{path}: {part} is a link to another file, which would be written to; write the "
                "query anew with anndata, all of it in one file"
            )
        if link is not None and part != "obs" and not isinstance(file[part], h5py.Group):
            raise AnnotationError(f"{path}: {part} is no table; write the query anew with anndata")
    parts = [file[part] for part in ("obs", "obsm", "uns") if part in file]
    tables = [h5py.h5o.get_info(part.id).addr for part in parts]
    if len(set(tables)) < len(tables):
        raise AnnotationError(
            f"{path}: two of obs, obsm and uns are one table, by a link between them; write the "
            "query anew with anndata"
        )
    obs = file.get("obs")
    if obs is None:
        raise AnnotationError(f"{path}: has no obs; expected what anndata's write_h5ad writes")
    if not isinstance(obs, h5py.Group) or "column-order" not in obs.attrs:
        raise AnnotationError(
            f"{path}: its obs was written before anndata 0.7 and cannot be added to; read the "
            "file with anndata, write it again, and give the new one"
        )
    index = as_text(obs.attrs.get("_index", "_index"))
    if index in columns:
        raise AnnotationError(
            f"{path}: its obs index is named {index!r}, as a column that is written; "
            "give obs.index another name"
        )


def _is_elsewhere(file: h5py.File, part: str) -> bool:
    """Whether a link inside the file leads, by way of others, out of it."""
    target = h5py.h5o.get_info(file[part].id)
    return target.fileno != h5py.h5o.get_info(file.id).fileno


def _was_written_here(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return f"uns/{UNS_KEY}" in file
    except OSError:
        return False


def _fault(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
        return "the disk is full, or the file too large for it: free space or write elsewhere"
    lines = str(error).strip().splitlines() or ["no detail"]
    return f"cannot be written ({type(error).__name__}: {lines[0]})"


def _add_columns(obs: h5py.Group, columns: pd.DataFrame) -> None:
    order = [as_text(name) for name in np.atleast_1d(obs.attrs["column-order"])]
    for name in map(str, columns):
        values = columns[name].array
        if obs.attrs.get("encoding-version") == "0.1.0" and isinstance(values, pd.Categorical):
            _write_old_categories(obs, name, values)
        else:
            _write(obs, name, values)
    order += [name for name in map(str, columns) if name not in order]
    obs.attrs["column-order"] = np.array(order, dtype=TEXT)


def _write_old_categories(obs: h5py.Group, key: str, values: pd.Categorical) -> None:
    """Write categories as anndata 0.7 did: apart from their codes, which point to them."""
    _write(obs, key, values.codes)
    names = obs.require_group("__categories")
    _write(names, key, values.categories.to_numpy(dtype=object))
    names[key].attrs["ordered"] = False
    obs[key].attrs["categories"] = names[key].ref


def _table_of(file: h5py.File, key: str) -> h5py.Group:
    if key not in file:
        _encode(file.create_group(key), "dict", "0.1.0")
    return file[key]


def _write(group: h5py.Group, key: str, value: Any) -> None:
    """Write a value as anndata encodes it, in place of what is there."""
    if key in group:
        del group[key]
    if isinstance(value, Mapping):
        table = _encode(group.create_group(key), "dict", "0.1.0")
        for name, entry in value.items():
            _write(table, name, entry)
    elif isinstance(value, pd.Categorical):
        table = _encode(group.create_group(key), "categorical", "0.2.0")
        table.attrs["ordered"] = bool(value.ordered)
        _write(table, "codes", value.codes)
        _write(table, "categories", value.categories.to_numpy(dtype=object))
    elif isinstance(value, str):
        _encode(group.create_dataset(key, data=value, dtype=TEXT), "string", "0.2.0")
    elif isinstance(value, int | float):
        _encode(group.create_dataset(key, data=value), "numeric-scalar", "0.2.0")
    elif (array := np.asarray(value)).dtype == object:
        _encode(group.create_dataset(key, data=array, dtype=TEXT), "string-array", "0.2.0")
    else:
        _encode(group.create_dataset(key, data=array), "array", "0.2.0")


def _encode(node: Any, kind: str, version: str) -> Any:
    node.attrs["encoding-type"], node.attrs["encoding-version"] = kind, version
    return node
