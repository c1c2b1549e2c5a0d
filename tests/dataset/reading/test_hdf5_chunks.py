"""A chunk is inflated to the size that its data set declares, and no further."""

import tracemalloc
import zlib

import h5py
import numpy as np
import pytest

from dataset.reading.cell_file import CellFileError
from dataset.reading.cells import open_cells
from dataset.reading.hdf5_chunks import GzipArray, fast_array

HELD_BYTES = 50_000_000  # a megabyte of which is stored; the arrays of the tests are small
CHUNK = {"X": (40, 30), "X/data": (50,), "X/indices": (50,), "X/indptr": (60,)}


def plant_bomb(path, place):
    """Replace the second chunk of an array by one that inflates to ``HELD_BYTES``."""
    with h5py.File(path, "r+") as file:
        old = file[place]
        values, dtype, attributes = old[()], old.dtype, dict(old.attrs)
        chunks = CHUNK.get(place, (min(50, len(values)),))
        del file[place]
        new = file.create_dataset(place, values.shape, dtype, chunks=chunks, compression="gzip")
        new[...] = values
        new.attrs.update(attributes)
        at = tuple(0 if size >= n else size for size, n in zip(chunks, values.shape, strict=True))
        new.id.write_direct_chunk(at, zlib.compress(bytes(HELD_BYTES), 9))


@pytest.mark.parametrize(
    "place",
    ["X/data", "X/indices", "X/indptr", "X", "obs/time", "obs/donor/codes", "obs/donor/categories"]
    + ["obs/index", "var/gene_symbol"],
)
def test_a_bomb_is_refused_before_it_is_inflated(cells_adata, tmp_path, place):
    path = tmp_path / "cells.h5ad"
    if place == "X":
        cells_adata.X = cells_adata.X.toarray()
    cells_adata.write_h5ad(path)
    with h5py.File(path) as file:
        if place == "obs/index":
            place = f"obs/{file['obs'].attrs['_index']}"
        if isinstance(file[place], h5py.Group):
            place = f"{place}/values"
    plant_bomb(path, place)

    def read():
        return [open_cells(path).column(key) for key in ("time", "donor")]

    tracemalloc.start()
    try:
        with pytest.raises(CellFileError, match=r"chunk holds more than its [\d,]+ bytes.*damag"):
            read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < HELD_BYTES / 5


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("chunks", [(10, 7), (64, 40), (1, 40), (100, 1)])
def test_a_gzip_matrix_is_read_as_hdf5_reads_it(tmp_path, shuffle, chunks):
    values = np.random.default_rng(0).poisson(1.0, (100, 40)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=chunks, compression="gzip", shuffle=shuffle)
    with h5py.File(tmp_path / "x.h5") as file:
        array = fast_array(file["x"])
        assert isinstance(array, GzipArray)
        for start, stop in ((0, 100), (3, 5), (5, 64), (64, 64), (60, 200)):
            np.testing.assert_array_equal(array[start:stop], values[start:stop])
    with h5py.File(tmp_path / "x.h5", "r+") as file:  # a chunk stored as it is, for HDF5 to read
        stored_as_it_is = 0b11 if shuffle else 0b1
        ones = np.ones(chunks, np.float32).tobytes()
        file["x"].id.write_direct_chunk((0, 0), ones, stored_as_it_is)
        values[: chunks[0], : chunks[1]] = 1
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(fast_array(file["x"])[0:100], values)
