"""obs of one file, a column or a range of names at a time.

A million cells have a gigabyte of obs as Python strings. What the pipeline needs of them is a few
columns, which are categories, and the names, which go by once; both come from the file when asked.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dataset.reading.cell_file import CellFileError, named_errors, open_store
from dataset.reading.cell_url import CellPath
from dataset.reading.stored_table import (
    check_index,
    column_names,
    is_by_column,
    read_column,
    read_names,
    read_table,
)


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
            return cls(path, check_index(root["obs"]), column_names(root["obs"]))

    def names(self, start: int = 0, stop: int | None = None) -> NDArray[np.object_]:
        """Read the names of cells ``start`` to ``stop``, ``(n,)``."""
        stop = self.n_cells if stop is None else stop
        with open_store(self.path) as root:
            if not _by_column(root, self.path):
                table = read_table(root, "obs", self.path)
                return table.index.to_numpy(dtype=object)[start:stop]
            with named_errors(self.path, "reading the names of the cells"):
                return read_names(root["obs"], start, stop, "obs")

    def column(self, key: str) -> pd.Series:
        """Read a column, ``(n,)``; equal strings are one object."""
        with open_store(self.path) as root:
            if not _by_column(root, self.path):
                return read_table(root, "obs", self.path)[key].reset_index(drop=True)
            return read_column(root["obs"], key, self.n_cells, "obs", self.path)


def _by_column(root: Any, path: CellPath) -> bool:
    """Return whether columns can be read one by one, as anndata writes them since 0.7."""
    if "obs" not in root:
        parts = sorted(map(str, root))
        raise CellFileError(
            f"{path}: no 'obs' in the file (it has {parts}); expected what anndata's "
            "write_h5ad writes"
        )
    with named_errors(path, "reading obs"):
        return is_by_column(root["obs"])
