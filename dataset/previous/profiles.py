"""Where each cell's profile at the time point before comes from: a layer, or its ancestors."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.previous.history import History
from dataset.store.csr_file import CsrFile, Rows, open_npy


@dataclass(frozen=True)
class PreviousProfiles:
    """Gives any cells their previous profiles; all it needs is on the disk.

    ``folder`` holds ``index.npy``: the cell whose history each cell gets, which is its own but for
    the shuffled control. With a ``history``, profiles are worked out from ``expression/`` and
    ``time.npy``; without, the folder holds the counts and ``library_size.npy`` of a layer.
    """

    folder: Path
    counts_dtype: np.dtype
    n_genes: int
    expression: Path | None = None
    history: Path | None = None

    def of(self, rows: NDArray[np.integer]) -> tuple[Rows, NDArray[np.float64]]:
        """Return the previous counts and library sizes of cells that stay, by their index."""
        index = open_npy(self.folder / "index.npy")[rows]
        if self.history is None or self.expression is None:
            library = open_npy(self.folder / "library_size.npy")
            return CsrFile(self.folder).take(index), library[index]
        counts = CsrFile(self.expression).take(index).to_csr(self.n_genes)
        library = open_npy(self.expression / "library_size.npy")[index]
        time = open_npy(self.folder / "time.npy")[index]
        previous, library = _load(self.history).profiles(counts, library, time)
        indptr = previous.indptr.astype(np.int64)
        return Rows(indptr, previous.indices, previous.data), library


@lru_cache(maxsize=1)
def _load(folder: Path) -> History:
    return History.load(folder)
