"""Chunks that were never written: a library reads them as zeros, and that would be believed.

A writer that was interrupted leaves HDF5 data sets of full length with holes in them, and a copy
of a zarr folder that was interrupted lacks files.
"""

from math import prod
from typing import Any

import h5py

from dataset.reading.cell_file import DamagedError
from dataset.reading.hdf5_chunks import check_inflated


def check_chunks(node: Any, *, zeros_possible: bool) -> None:
    """Raise if a chunk of a stored array, or of an array of a group, is missing.

    HDF5 keeps every chunk that was written, whatever it holds, so that a missing one is a hole. A
    zarr writer leaves out the chunks that hold nothing but zeros (or empty strings), which many
    may: the codes of a donor's cells, the mask of a column without missing values, a part of a
    dense matrix. There a missing chunk tells only where one of zeros cannot be: the values and
    column numbers of a sparse matrix, the starts of its rows, the names of cells and genes.

    Parameters
    ----------
    node
        Array or group, of HDF5 or zarr. Of a million cells this takes a few milliseconds.
    zeros_possible
        Whether a whole chunk of zeros or of empty strings may be right.

    Raises
    ------
    DamagedError
        Names the array.
    """
    if isinstance(node, h5py.Dataset):
        missing = _missing_hdf5(node)
    elif hasattr(node, "shape"):
        # Of an array in shards, a shard counts as all of its chunks, beyond the array's end too.
        missing = 0 if zeros_possible else max(0, node.nchunks - node.nchunks_initialized)
    else:
        for name in node:
            check_chunks(node[name], zeros_possible=zeros_possible)
        return
    if missing:
        name = node.name.rpartition("/")[2]
        raise DamagedError(f"{name}: {missing} chunks missing, which would be read as zeros")


def check_column_chunks(node: Any, *, zeros_possible: bool) -> None:
    """Raise if a chunk of a column of obs or var is missing, or holds more than it should."""
    check_chunks(node, zeros_possible=zeros_possible)
    if isinstance(node, h5py.Dataset):
        check_inflated(node)
    elif isinstance(node, h5py.Group):
        for part in node.values():
            check_column_chunks(part, zeros_possible=zeros_possible)


def check_matrix_chunks(node: Any) -> None:
    """Raise if a part of a matrix, as anndata stores it, is missing."""
    if hasattr(node, "shape"):
        check_chunks(node, zeros_possible=True)
        return
    if not all(part in node for part in ("data", "indices", "indptr")):
        return  # no matrix that is known here: open_matrix will say so
    for part in ("data", "indices", "indptr"):
        # Without a value, all rows start at 0.
        none_stored = part == "indptr" and 0 in getattr(node["data"], "shape", ())
        check_chunks(node[part], zeros_possible=none_stored)
    if isinstance(node["indptr"], h5py.Dataset):
        check_inflated(node["indptr"])


def _missing_hdf5(array: h5py.Dataset) -> int:
    if not array.shape or 0 in array.shape:
        return 0
    if array.chunks is None:
        layout = array.id.get_create_plist().get_layout()
        unwritten = array.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED
        return int(layout == h5py.h5d.CONTIGUOUS and unwritten)
    expected = prod(-(-n // size) for n, size in zip(array.shape, array.chunks, strict=True))
    return max(0, expected - array.id.get_num_chunks())
