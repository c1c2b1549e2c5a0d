"""A chunk that was never written is no zeros."""

import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.sparse import csr_matrix

from dataset.previous.layer import of_layer
from dataset.reading.cell_file import CellFileError
from dataset.reading.cells import open_cells
from tests.made_up import counts_of


@pytest.fixture
def adata():
    """Return 3,000 cells x 40 genes, of which the last 1,000 have no counts."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, (3000, 40)).astype(np.float32)
    counts[2000:] = 0
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type_{i % 3}" for i in range(3000)]),
            "donor": pd.Categorical([f"donor_{i // 1500}" for i in range(3000)]),
            "note": [f"note {i}" for i in range(3000)],
            "time": np.arange(3000) // 1000,
        },
        index=[f"cell_{i}" for i in range(3000)],
    )
    return ad.AnnData(csr_matrix(counts), obs=obs)


def punch(path, place):
    """Write an array again in chunks of 100, all but the third, as an interrupted writer does."""
    with h5py.File(path, "r+") as file:
        old = file[place]
        values, dtype, attributes = old[()], old.dtype, dict(old.attrs)
        del file[place]
        chunks = (min(100, len(values)), *values.shape[1:])
        new = file.create_dataset(place, values.shape, dtype, chunks=chunks, compression="gzip")
        new.attrs.update(attributes)
        for start in range(0, len(values), 100):
            if start != 200:
                new[start : start + 100] = values[start : start + 100]
    return path


def first_array(path, *places):
    """Return the first of these places that is an array."""
    with h5py.File(path) as file:
        return next(p for p in places if isinstance(file.get(p), h5py.Dataset))


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_a_hole_in_a_sparse_matrix_is_damage(adata, tmp_path, part):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    punch(tmp_path / "cells.h5ad", f"X/{part}")
    with pytest.raises(
        CellFileError, match=rf"cells\.h5ad: reading X.*{part}: 1 chunks missing.*damaged or inc"
    ):
        open_cells(tmp_path / "cells.h5ad")


def test_a_hole_in_a_dense_matrix_is_damage(adata, tmp_path):
    adata.X = adata.X.toarray()
    adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    assert open_cells(tmp_path / "cells.h5ad").n_cells == 3000  # zeros that were written are right
    punch(tmp_path / "cells.h5ad", "X")
    with pytest.raises(CellFileError, match="X: 1 chunks missing"):
        open_cells(tmp_path / "cells.h5ad")


def test_a_hole_in_a_layer_of_previous_profiles_is_damage(adata, tmp_path):
    adata.layers["previous"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_cells(punch(tmp_path / "cells.h5ad", "layers/previous/data"))
    with pytest.raises(CellFileError, match="data: 1 chunks missing"):
        of_layer(cells, "previous")


@pytest.mark.parametrize("column", ["cell_type", "donor", "note", "time"])
def test_a_hole_in_a_column_is_damage(adata, tmp_path, column):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    place = f"obs/{column}"
    punch(path, first_array(path, place, f"{place}/codes", f"{place}/values"))
    cells = open_cells(path)
    assert len(cells.column("donor" if column != "donor" else "time")) == 3000
    with pytest.raises(CellFileError, match=rf"reading obs '{column}'.*1 chunks missing"):
        cells.column(column)


@pytest.mark.parametrize("table", ["obs", "var"])
def test_a_hole_in_the_names_is_damage(adata, tmp_path, table):
    path = tmp_path / "cells.h5ad"
    (adata if table == "obs" else adata.T.copy()).write_h5ad(path)
    with h5py.File(path) as file:
        place = f"{table}/{file[table].attrs['_index']}"
    punch(path, first_array(path, place, f"{place}/values"))
    with pytest.raises(CellFileError, match=rf"reading {table}.*1 chunks missing"):
        open_cells(path)


def test_an_array_never_written_at_all_is_damage(adata, tmp_path):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["X/indices"]
        file.create_dataset("X/indices", file["X/data"].shape, "i4")  # in one piece, not chunks
    with pytest.raises(CellFileError, match="indices: 1 chunks missing"):
        open_cells(path)


@pytest.fixture(params=[2, 3])
def zarr_folder(request, adata, tmp_path):
    path = tmp_path / "cells.zarr"
    adata.X.data[-500:] += 1
    adata.layers["zeros"] = csr_matrix(adata.shape, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of writing, about versions to come
        root = zarr.open_group(path, mode="w", zarr_format=request.param)
        ad.io.write_elem(root, "/", adata, dataset_kwargs={"chunks": (500,)})
        dense = {"chunks": (500, 40)}
        ad.io.write_elem(root["layers"], "dense", adata.X.toarray(), dataset_kwargs=dense)
        zarr.consolidate_metadata(path)
    return path


def remove_chunk(folder):
    """Remove the first chunk of a zarr array."""
    for name in ("0", "c"):
        if (chunk := folder / name).exists():
            shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()


def test_zarr_leaves_out_chunks_of_zeros_and_that_is_no_damage(zarr_folder):
    cells = open_cells(zarr_folder)
    assert list(cells.column("donor").unique()) == ["donor_0", "donor_1"]
    assert (cells.column("time") == np.arange(3000) // 1000).all()
    _, block = next(open_cells(zarr_folder, counts="dense").blocks(3000))
    assert (block != counts_of(cells)).nnz == 0


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_a_chunk_that_zarr_lost_is_damage(zarr_folder, part):
    remove_chunk(zarr_folder / "X" / part)
    with pytest.raises(CellFileError, match=rf"{part}: \d+ chunks missing"):
        open_cells(zarr_folder)


def test_names_that_zarr_lost_are_damage(zarr_folder):
    index = zarr.open_group(zarr_folder, mode="r")["obs"].attrs["_index"]
    for place in (zarr_folder / "obs" / index, zarr_folder / "obs" / index / "values"):
        remove_chunk(place)
    with pytest.raises(CellFileError, match=r"reading obs.*chunks missing"):
        open_cells(zarr_folder)
