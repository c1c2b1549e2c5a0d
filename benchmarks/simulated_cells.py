"""Any number of cells for timing: real ones resampled and binomially thinned, written in blocks."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from dataset.read import open_cells
from dataset.sources import resolve

SOURCE = "baron_human_pancreas"


def write_cells(
    path: Path, n_cells: int, *, seed: int = 0, compression: str | None = "gzip"
) -> Path:
    """Write ``n_cells`` simulated cells to an ``.h5ad`` as public ones are: CSR, float32, gzip.

    Every cell is a real one (Baron et al. 2016, human pancreas), drawn with replacement, of whose
    counts a random half or more is kept. Memory stays flat: cells are drawn, thinned and appended
    a thousand at a time.
    """
    if path.exists():
        return path
    rng = np.random.default_rng(seed)
    real = open_cells(resolve(SOURCE))
    adata = real.to_anndata()
    counts = csr_matrix(adata.X)
    types = pd.Categorical(adata.obs["cell_type1"])
    donors = pd.Categorical(adata.obs["donor"])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    picked = rng.integers(0, counts.shape[0], n_cells)
    with h5py.File(partial, "w") as file:
        _attributes(file, "anndata", "0.1.0")
        x = file.create_group("X")
        _attributes(x, "csr_matrix", "0.1.0")
        x.attrs["shape"] = np.array([n_cells, counts.shape[1]])
        settings = {"maxshape": (None,), "chunks": (65_536,), "compression": compression}
        data = x.create_dataset("data", (0,), "f4", **settings)
        indices = x.create_dataset("indices", (0,), "i4", **settings)
        lengths = np.zeros(n_cells, np.int64)
        for start in range(0, n_cells, 1000):
            block = counts[picked[start : start + 1000]]
            kept = rng.binomial(
                block.data.astype(np.int64),
                np.repeat(rng.uniform(0.5, 1.0, block.shape[0]), np.diff(block.indptr)),
            )
            block.data = kept.astype(np.float32)
            block.eliminate_zeros()
            lengths[start : start + block.shape[0]] = np.diff(block.indptr)
            for dataset, values in ((data, block.data), (indices, block.indices)):
                dataset.resize(dataset.shape[0] + values.size, axis=0)
                dataset[dataset.shape[0] - values.size :] = values
        x.create_dataset("indptr", data=np.concatenate([[0], np.cumsum(lengths)]), chunks=True)
        index = np.array([f"cell{i}" for i in range(n_cells)], dtype=object)
        _frame(file, "obs", index, {"cell_type": types, "donor": donors}, picked)
        _frame(file, "var", np.asarray(real.gene_ids, dtype=object), {}, picked)
    partial.rename(path)
    return path


def _attributes(group: h5py.Group, kind: str, version: str) -> None:
    group.attrs["encoding-type"] = kind
    group.attrs["encoding-version"] = version


def _frame(file: h5py.File, name: str, index: np.ndarray, columns: dict, rows: np.ndarray) -> None:
    group = file.create_group(name)
    _attributes(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs["column-order"] = np.array(list(columns), dtype=h5py.string_dtype())
    _strings(group, "_index", index)
    for column, values in columns.items():
        category = group.create_group(column)
        _attributes(category, "categorical", "0.2.0")
        category.attrs["ordered"] = False
        _strings(category, "categories", np.asarray(values.categories, dtype=object))
        codes = category.create_dataset("codes", data=values.codes[rows])
        _attributes(codes, "array", "0.2.0")


def _strings(group: h5py.Group, name: str, values: np.ndarray) -> None:
    dataset = group.create_dataset(name, data=values, dtype=h5py.string_dtype())
    _attributes(dataset, "string-array", "0.2.0")
