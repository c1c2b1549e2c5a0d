"""obs of one file, a column or a stretch of names at a time.

A million cells have a gigabyte of obs as Python strings. What the pipeline needs of them is a few
columns, which are categories, and the names, which go by once; both come from the file when asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dataset.cell_file import CellFileError, named_errors, open_store, read_table
from dataset.cell_url import CellPath

CHUNK = 16_384  # names or strings held at once


@dataclass(frozen=True)
class CellTable:
    """obs of a file that is opened when something is asked and closed again."""

    path: CellPath
    n_cells: int
    columns: tuple[str, ...]

    @classmethod
    def look(cls, root: Any, path: CellPath) -> "CellTable":
        """Look at the obs of an open file.

        Raises
        ------
        CellFileError
            If there is none, or it is damaged.
        """
        if not _by_column(root, path):
            table = read_table(root, "obs", path)
            return cls(path, len(table), tuple(map(str, table.columns)))
        with named_errors(path, "reading obs"):
            node = root["obs"]
            columns = tuple(str(name) for name in node.attrs["column-order"])
            n_cells = int(node[node.attrs["_index"]].shape[0])
            if lacking := [name for name in columns if name not in node]:
                raise KeyError(f"no column {lacking[0]!r}")
        return cls(path, n_cells, columns)

    def names(self, start: int = 0, stop: int | None = None) -> NDArray[np.object_]:
        """Read the names of cells ``start`` to ``stop``, ``(n,)``."""
        stop = self.n_cells if stop is None else stop
        with self._open() as root:
            if not _by_column(root, self.path):
                return self._table(root).index.to_numpy(dtype=object)[start:stop]
            with named_errors(self.path, "reading the names of the cells"):
                return _texts(root["obs"][root["obs"].attrs["_index"]], start, stop)

    def column(self, key: str) -> pd.Series:
        """Read a column, ``(n,)``; equal strings are one object."""
        with self._open() as root:
            if not _by_column(root, self.path):
                return self._table(root)[key].reset_index(drop=True)
            with named_errors(self.path, f"reading obs {key!r}"):
                node = root["obs"][key]
                values = _shared(node) if _holds_strings(node) else ad.io.read_elem(node)
                if len(values) != self.n_cells:
                    raise ValueError(f"{len(values)} values for {self.n_cells} cells")
        return pd.Series(values)

    def read(self) -> pd.DataFrame:
        """Read the whole table, all of it in memory."""
        with self._open() as root:
            return self._table(root)

    def _table(self, root: Any) -> pd.DataFrame:
        return read_table(root, "obs", self.path)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with open_store(self.path) as root:
            yield root


def _by_column(root: Any, path: CellPath) -> bool:
    """Whether columns can be read one by one, as anndata writes them since 0.7."""
    if "obs" not in root:
        raise CellFileError(
            f"{path}: no 'obs' in the file (it has {sorted(root)}); expected what anndata's "
            "write_h5ad writes"
        )
    with named_errors(path, "reading obs"):
        return dict(root["obs"].attrs).get("encoding-version") == "0.2.0"


def _holds_strings(node: Any) -> bool:
    """Whether this is a plain array of strings (not numbers, categories or one with a mask)."""
    return hasattr(node, "dtype") and node.dtype.kind not in "biufc"


def _texts(node: Any, start: int, stop: int) -> NDArray[np.object_]:
    """Read strings of an HDF5 or a zarr array."""
    if not hasattr(node, "dtype"):  # categories, or values with a mask
        values = ad.io.read_elem(node)
    elif isinstance(node, h5py.Dataset) and h5py.check_string_dtype(node.dtype):
        values = node.asstr()
    else:
        values = node
    return np.array([str(value) for value in np.asarray(values[start:stop])], dtype=object)


def _shared(node: Any) -> NDArray[np.object_]:
    number_of: dict[str, int] = {}
    codes = np.empty(node.shape[0], dtype=np.int32)
    for start in range(0, len(codes), CHUNK):
        part, distinct = pd.factorize(_texts(node, start, min(start + CHUNK, len(codes))))
        numbers = [number_of.setdefault(text, len(number_of)) for text in distinct]
        codes[start : start + len(part)] = np.array(numbers, dtype=np.int32)[part]
    return np.array(list(number_of), dtype=object)[codes]
