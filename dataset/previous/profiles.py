"""Profiles of cells at the time point before: of a layer, or of their ancestors."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.previous.history import History
from dataset.store.csr_file import Rows, open_npy
from dataset.store.expression import Expression


@dataclass(frozen=True)
class PreviousProfiles:
    """Gives any cells their previous profiles; all it needs is on the disk.

    ``work`` holds ``index.npy``: the cell whose history each cell gets, which is its own but for
    the shuffled control. Its previous counts are those of a layer, or with a ``history`` worked
    out from its own and ``time.npy``.
    """

    folder: Path  # whose counts are read: the encoded one, or one with those of the layer
    work: Path
    counts_dtype: np.dtype
    n_genes: int
    history: Path | None = None

    def of(self, cells: NDArray[np.integer]) -> tuple[Rows, NDArray[np.float64]]:
        """Return the previous counts and library sizes of cells that stay, by their index."""
        index = open_npy(self.work / "index.npy")[cells]
        expression = Expression.open(self.folder)
        rows, library = expression.take(index), expression.library_size[index]
        if self.history is None:
            return rows, library
        time = open_npy(self.work / "time.npy")[index]
        counts = rows.to_csr(self.n_genes)
        previous, library = _load(self.history).profiles(counts, library, time)
        indptr = previous.indptr.astype(np.int64)
        return Rows(indptr, previous.indices, previous.data), library


@lru_cache(maxsize=1)
def _load(folder: Path) -> History:
    return History.load(folder)
