"""obs and var as anndata stores them: columns one by one, whatever their encoding.

anndata's own reader knows every encoding of its version, old and new, and is asked for all but
two: arrays of strings, plain (``string-array``) or with a mask of the missing ones
(``nullable-string-array``, how anndata 0.13 writes names and text). A million of those as Python
objects are what takes memory, so they are read here, a range at a time.
"""

import logging
import warnings
from importlib import metadata
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dataset.reading.cell_file import (
    CellFileError,
    ColumnError,
    DamagedError,
    EncodingError,
    named_errors,
)
from dataset.reading.cell_url import CellPath, CellUrl
from dataset.reading.missing_chunks import check_column_chunks

logger = logging.getLogger(__name__)

CHUNK = 16_384  # names or strings held at once
# The arrays of strings read here; an array of older files says nothing of its encoding.
STRINGS = (("string-array", "0.2.0"), ("array", "0.2.0"), ("", ""))
MASKED_STRINGS = ("nullable-string-array", "0.1.0")
TABLE = ("dataframe", "0.2.0")  # since anndata 0.7; older ones are read whole
LENGTH_OF = {"categorical": "codes"}  # of a group the part with one entry a row; else "values"


def is_by_column(node: Any) -> bool:
    """Return whether the columns of this obs or var can be read one by one."""
    return not hasattr(node, "dtype") and _encoding(node) == TABLE


def index_of(node: Any) -> Any:
    """Return the stored names of the rows of a table that is read by column."""
    return node[as_text(node.attrs["_index"])]


def check_index(node: Any) -> int:
    """Return how many rows a table that is read by column has; raise if names are not whole."""
    index = index_of(node)
    texts = index["values"] if _encoding(index) == MASKED_STRINGS else index
    check_column_chunks(index, zeros_possible=True)
    check_column_chunks(texts, zeros_possible=not _holds_strings(texts))
    return n_rows(index)


def column_names(node: Any) -> tuple[str, ...]:
    """Return the names of the columns, in order."""
    order = node.attrs["column-order"]
    names = () if isinstance(order, h5py.Empty) else tuple(map(as_text, np.atleast_1d(order)))
    if lacking := [name for name in names if name not in node]:
        raise DamagedError(f"no column {lacking[0]!r}")
    return names


def n_rows(column: Any) -> int:
    """Return the length of a stored column without reading it, if its encoding tells."""
    kind, _ = _encoding(column)
    if not hasattr(column, "dtype"):
        part = LENGTH_OF.get(kind, "values")
        if part not in column:
            return len(_by_anndata(column))
        column = column[part]
    if len(column.shape) != 1:
        raise DamagedError(f"an array of shape {tuple(column.shape)}, expected one value a row")
    return int(column.shape[0])


def read_texts(column: Any, start: int, stop: int) -> NDArray[np.object_]:
    """Read entries ``start`` to ``stop`` as strings, ``(n,)``; None where one is missing."""
    if _encoding(column) == MASKED_STRINGS:
        texts = _strings(column["values"], start, stop)
        missing = np.asarray(column["mask"][start:stop], dtype=bool)
        if missing.shape != texts.shape:
            raise DamagedError(f"a mask of {len(missing)} values for {len(texts)} strings")
        texts[missing] = None
        return texts
    if _holds_strings(column):
        return _strings(column, start, stop)
    values = pd.Series(_by_anndata(column))[start:stop]
    return np.array([None if pd.isna(v) else as_text(v) for v in values], dtype=object)


def read_values(column: Any) -> Any:
    """Read a whole column, ``(n,)``; equal strings are one object, a missing one is NaN."""
    if _encoding(column) != MASKED_STRINGS and not _holds_strings(column):
        values = _by_anndata(column)
        if getattr(values, "ndim", 0) != 1 or not hasattr(values, "dtype"):
            raise EncodingError(f"holds a {type(values).__name__}, expected one value a row")
        known = ("string", "empty", "boolean", "mixed-integer", "integer", "floating")
        if values.dtype.kind == "V" or (
            values.dtype == object and pd.api.types.infer_dtype(values, skipna=True) not in known
        ):
            raise EncodingError("holds values of several parts, expected a number or a text")
        return values
    number_of: dict[str, int] = {}
    codes = np.empty(n_rows(column), dtype=np.int32)
    for start in range(0, len(codes), CHUNK):
        texts = read_texts(column, start, min(start + CHUNK, len(codes)))
        part, distinct = pd.factorize(texts)  # -1 where one is missing
        numbers = [number_of.setdefault(text, len(number_of)) for text in distinct]
        codes[start : start + len(part)] = np.array([*numbers, -1], dtype=np.int32)[part]
    return np.array([*number_of, np.nan], dtype=object)[codes]


def read_table(root: Any, key: str, path: CellPath) -> pd.DataFrame:
    """Read ``obs``, ``var`` or ``raw/var``, its index as text.

    A column whose encoding is not known here is left out, and that is logged.

    Raises
    ------
    CellFileError
        If there is no such table, it is damaged, or a row has no name.
    """
    if key not in root:
        parts = sorted(map(str, root))
        raise CellFileError(
            f"{path}: no {key!r} in the file (it has {parts}); expected what anndata's "
            "write_h5ad writes"
        )
    with named_errors(path, f"reading {key}"):
        node = root[key]
        if not is_by_column(node):
            try:
                table = _old_table(root, key, path)
            except EncodingError as error:
                raise CellFileError(f"{path}: {key} {error}") from error
            table.index = _named(table.index.to_numpy(dtype=object), 0, key)
            return table
        names = _named(read_texts(index_of(node), 0, check_index(node)), 0, key)
        stored = column_names(node)
    columns = {}
    for name in stored:
        try:
            columns[name] = read_column(node, name, len(names), key, path)
        except ColumnError as error:
            logger.warning("%s; it is left out", error)
    table = pd.DataFrame(columns, index=range(len(names)))
    table.index = names
    return table


def read_column(table: Any, name: str, n: int, key: str, path: CellPath) -> pd.Series:
    """Read a column of ``n`` values of an open table that is called ``key``.

    Raises
    ------
    ColumnError
        If its encoding is not known here.
    CellFileError
        If it is damaged.
    """
    with named_errors(path, f"reading {key} {name!r}"):
        check_column_chunks(table[name], zeros_possible=True)
        try:
            values = read_values(table[name])
        except EncodingError as error:
            raise ColumnError(f"{path}: {key} column {name!r} {error}") from error
        if len(values) != n:
            raise DamagedError(f"{len(values)} values for {n} rows")
    is_strings = isinstance(values, np.ndarray) and values.dtype == object
    return pd.Series(values, dtype=object) if is_strings else pd.Series(values)


def as_text(value: Any) -> str:
    """Return a stored name as text, bytes decoded."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _named(names: NDArray[np.object_], first: int, key: str) -> pd.Index:
    missing = pd.isna(names)
    if missing.any():
        row = first + int(missing.argmax())
        raise EncodingError(
            f"{key}: the name of row {row:,} is missing (and of {int(missing.sum()):,} rows in "
            "all): give every row a name and write the file anew"
        )
    return pd.Index(names, dtype=object)


def read_names(table: Any, start: int, stop: int, key: str) -> NDArray[np.object_]:
    """Read the names of rows ``start`` to ``stop`` of an open table that is read by column."""
    return _named(read_texts(index_of(table), start, stop), start, key).to_numpy(dtype=object)


def _encoding(node: Any) -> tuple[str, str]:
    attributes = node.attrs
    kind, version = (attributes.get(f"encoding-{part}", "") for part in ("type", "version"))
    return as_text(kind), as_text(version)


def _holds_strings(node: Any) -> bool:
    """Return whether this is a plain array of strings (no numbers, categories, mask)."""
    if not hasattr(node, "dtype") or _encoding(node) not in STRINGS or len(node.shape) != 1:
        return False
    if isinstance(node, h5py.Dataset):
        return h5py.check_string_dtype(node.dtype) is not None
    return node.dtype.kind in "OSTU"


def _strings(node: Any, start: int, stop: int) -> NDArray[np.object_]:
    if isinstance(node, h5py.Dataset):
        return np.asarray(node.asstr("utf-8")[start:stop], dtype=object)
    return np.array([as_text(value) for value in np.asarray(node[start:stop])], dtype=object)


def _by_anndata(node: Any) -> Any:
    """Read with anndata; EncodingError if that does not know how."""
    with warnings.catch_warnings():
        # anndata warns about old encodings and odd column names; they are read all the same.
        warnings.simplefilter("ignore")
        try:
            return ad.io.read_elem(node)
        except Exception as error:
            if type(error).__name__ != "IORegistryError":  # not public, so known by its name
                raise
            kind, version = _unknown_encoding(node)
            raise EncodingError(
                f"has the encoding {kind!r} {version or 'without a version'}, which anndata "
                f"{metadata.version('anndata')} does not read: upgrade anndata, or leave it out"
            ) from error


def _unknown_encoding(node: Any) -> tuple[str, str]:
    """Return the encoding that is not known: of this node, or of a part of it."""
    if not hasattr(node, "dtype"):
        for part in node.values() if isinstance(node, h5py.Group) else (node[k] for k in node):
            try:
                ad.io.read_elem(part)
            except Exception as error:
                if type(error).__name__ != "IORegistryError":
                    raise
                return _unknown_encoding(part)
    return _encoding(node)


def _old_table(root: Any, key: str, path: CellPath) -> pd.DataFrame:
    node = root[key]
    check_column_chunks(node, zeros_possible=True)
    if not hasattr(node, "dtype"):
        table = _by_anndata(node)
        if not isinstance(table, pd.DataFrame):
            raise EncodingError(
                f"is a {type(table).__name__}, expected a table: write the file anew with anndata"
            )
        return table.copy()
    # Before anndata 0.7 a table was one compound array.
    if not getattr(node.dtype, "names", None):
        raise EncodingError("is an array, expected a table: write the file anew with anndata")
    if isinstance(path, CellUrl):
        raise CellFileError(
            f"{path}: written before anndata 0.7, and such a file is read from a disk alone: "
            "download it and give its path"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = ad.read_h5ad(path, backed="r")
        table = old.raw.var if key == "raw/var" else getattr(old, key)
        old.file.close()
    return table.copy()
