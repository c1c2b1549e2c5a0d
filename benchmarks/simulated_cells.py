"""Any number of cells for timing: real ones resampled and thinned, written in blocks."""

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from isal import isal_zlib
from scipy.sparse import csr_matrix

from dataset.compiled import compiled
from dataset.sources import resolve
from dataset.store.atomic import atomic_file

SOURCE = "baron_human_pancreas"
CHUNK = 65_536
BLOCK_CELLS = 1024


def write_cells(
    path: Path,
    n_cells: int,
    *,
    source: str = SOURCE,
    seed: int = 0,
    compression: str | None = "gzip",
) -> Path:
    """Write ``n_cells`` simulated cells to an ``.h5ad`` as public ones are: CSR, float32, gzip.

    Every cell is a real one (Baron et al. 2016, human pancreas, by default), drawn with
    replacement, of whose counts a random half or more is kept. Memory stays flat: cells are drawn,
    thinned and appended a thousand at a time. Does nothing if the file is there.

    Parameters
    ----------
    compression
        ``gzip`` as h5py writes it; ``fast gzip``: the same format three times as fast and a fifth
        larger, for a million cells; None.
    """
    path = Path(path)
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    (real,) = resolve(source)
    adata = ad.read_h5ad(real)
    counts = csr_matrix(adata.X, dtype=np.int32)
    picked = rng.integers(0, counts.shape[0], n_cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial, h5py.File(partial, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        x.attrs["shape"] = np.array([n_cells, counts.shape[1]])
        data = _Growing(x, "data", np.float32, compression)
        indices = _Growing(x, "indices", np.int32, compression)
        lengths = np.zeros(n_cells, np.int64)
        for start in range(0, n_cells, BLOCK_CELLS):
            block = counts[picked[start : start + BLOCK_CELLS]]
            _thin(block.indptr, block.data, rng.uniform(0.5, 1.0, block.shape[0]), rng)
            block.eliminate_zeros()
            lengths[start : start + block.shape[0]] = np.diff(block.indptr)
            data.append(block.data)
            indices.append(block.indices)
        data.close()
        indices.close()
        x.create_dataset("indptr", data=np.concatenate([[0], np.cumsum(lengths)]), chunks=True)
        obs = adata.obs.iloc[picked].set_axis([f"cell{i}" for i in range(n_cells)])
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=adata.var_names))
    return path


@compiled
def _thin(indptr, counts, kept_share, rng):
    """Keep each count of a cell with the same probability."""
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            kept = 0
            for _ in range(counts[i]):
                kept += rng.random() < kept_share[row]
            counts[i] = kept


class _Growing:
    """A one-dimensional HDF5 array that values are appended to."""

    def __init__(
        self, group: h5py.Group, name: str, dtype: type[np.generic], compression: str | None
    ) -> None:
        self.dtype, self.fast = dtype, compression == "fast gzip"
        self.array = group.create_dataset(
            name,
            shape=(0,),
            maxshape=(None,),
            chunks=(CHUNK,),
            dtype=dtype,
            compression="gzip" if self.fast else compression,
        )
        self.waiting = np.zeros(0, dtype)

    def append(self, values: np.ndarray) -> None:
        self.waiting = np.concatenate([self.waiting, values.astype(self.dtype)])
        whole = len(self.waiting) // CHUNK * CHUNK
        self._write(self.waiting[:whole])
        self.waiting = self.waiting[whole:]

    def close(self) -> None:
        self._write(self.waiting)

    def _write(self, values: np.ndarray) -> None:
        n = self.array.shape[0]
        self.array.resize(n + len(values), axis=0)
        if not self.fast:
            self.array[n:] = values
            return
        for start in range(0, len(values), CHUNK):
            chunk = np.zeros(CHUNK, self.dtype)
            chunk[: len(values) - start] = values[start : start + CHUNK]
            packed = isal_zlib.compress(chunk.tobytes(), 1)
            self.array.id.write_direct_chunk((n + start,), packed)
