"""``Expression``: the counts of the cells of an encoded folder, in the genes of its vocabulary."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.store.csr_file import CsrFile, Rows, open_npy
from dataset.store.layout import OF_EXPRESSION


@dataclass(frozen=True)
class Expression:
    """A view of ``counts/``, memory-mapped: nothing is copied until it is asked for."""

    counts: CsrFile  # of all cells and genes of the files
    rows: NDArray[np.int64]  # (n,), rows of ``counts`` of the cells that stay, ascending
    columns: NDArray[np.int64]  # index of every gene in the vocabulary, ascending; -1: none
    library_size: NDArray[np.float64]  # (n,), counts of each cell over all genes

    @classmethod
    def open(cls, folder: Path) -> "Expression":
        """Open that of an encoded folder, finished or not."""
        arrays = (open_npy(folder / "expression" / f"{name}.npy") for name in OF_EXPRESSION)
        return cls(CsrFile(folder / "counts"), *arrays)

    @staticmethod
    def write(
        folder: Path,
        rows: NDArray[np.integer],
        columns: NDArray[np.int64],
        library_size: NDArray[np.float64],
    ) -> None:
        """Write what ``open`` reads beside ``counts/``."""
        (folder / "expression").mkdir()
        arrays = (rows.astype(np.int64), columns, library_size)
        for name, array in zip(OF_EXPRESSION, arrays, strict=True):
            np.save(folder / "expression" / f"{name}.npy", array)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, cells: NDArray[np.integer]) -> Rows:
        """Copy the counts of some of the cells, in any order, from the disk."""
        return self.counts.take(self.rows[cells], self.columns)
