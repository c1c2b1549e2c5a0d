"""Tables in the encodings of every anndata, whichever is installed here."""

import gzip
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr.dtype

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.reading.cell_file import CellFileError
from dataset.reading.cells import open_cells
from dataset.store.encoded_folder import EncodedFolder
from tests.made_up import counts_of

FILES = Path(__file__).parent / "files"  # the same 12 cells, saved by the anndata in the name
NAMES = [f"cell_{i}" for i in range(12)]
TEXT = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
MASKED = {"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"}


def add_array(group, name, values, attributes):
    """Write an array as anndata does, into HDF5 or zarr."""
    strings, chunks = np.asarray(values).dtype.kind in "OU", (min(5, len(values)),)
    if isinstance(group, h5py.Group):
        dtype = h5py.string_dtype() if strings else None
        array = group.create_dataset(name, data=values, dtype=dtype, chunks=chunks)
    else:
        values = np.asarray(values, dtype=object) if strings else np.asarray(values)
        dtype = zarr.dtype.VariableLengthUTF8() if strings else values.dtype
        array = group.create_array(name, shape=values.shape, dtype=dtype, chunks=chunks)
        array[:] = values
    array.attrs.update(attributes)


def add_masked(group, name, values, mask):
    """Write an array of strings of which some are missing, as anndata 0.13 does."""
    if name in group:
        del group[name]
    part = group.create_group(name)
    part.attrs.update(MASKED | {"na-value": "NaN"})
    add_array(part, "values", values, TEXT)
    add_array(part, "mask", mask, {"encoding-type": "array", "encoding-version": "0.2.0"})


@pytest.fixture(params=["0.12", "0.13"])
def saved(request, tmp_path):
    """Return a file as that anndata saved it."""
    path = tmp_path / "cells.h5ad"
    path.write_bytes(gzip.decompress((FILES / f"anndata_{request.param}.h5ad.gz").read_bytes()))
    return path


def test_a_file_of_either_anndata_is_read_alike(saved):
    cells = open_cells(saved)
    assert list(cells.names(0, 12)) == NAMES
    assert list(cells.names(3, 5)) == ["cell_3", "cell_4"]
    assert list(cells.gene_ids) == [f"GENE{i}" for i in range(6)]
    expected = {
        "cell_type": ["T cell", "B cell", "NK"] * 4,
        "donor": [f"donor_{i // 6}" for i in range(12)],
        "note": [f"note {i}" for i in range(12)],
        "n_genes": list(range(12)),
        "is_kept": [True, None] + [False] * 10,
        "passage": [None, *range(1, 12)],
    }
    for key, values in expected.items():
        column = cells.column(key)
        assert [None if pd.isna(value) else value for value in column] == values
    assert list(cells.column("stage").cat.categories) == ["zygote", "larva", "adult"]
    assert cells.column("stage").cat.ordered
    symbols = open_cells(saved, gene_symbol_key="gene_symbol").gene_symbols
    assert list(symbols) == [f"S{i}" for i in range(6)]
    counts = counts_of(cells).toarray()
    np.testing.assert_array_equal(counts, np.arange(72).reshape(12, 6) % 5)


def test_it_is_encoded(saved, tmp_path):
    config = PreprocessConfig(
        name="set",
        input=str(saved),
        label_key="cell_type",
        time_key="stage",
        batch_key="note",
        min_cells_per_class=2,
        quality_control={"min_genes": 1},
        split={"val_fraction": 0.25, "test_fraction": 0.25},
        tokenizer={"kind": "rank", "n_tokens": 8},
        data_dir=str(tmp_path / "data"),
    )
    folder = EncodedFolder(encode(config, progress=False))
    assert folder.class_names == ["B cell", "NK", "T cell"]
    assert set(folder.cells["cell_name"]) <= set(NAMES)


@pytest.fixture(params=["h5ad", "zarr 2", "zarr 3"])
def stored(request, cells_adata, tmp_path):
    """Return the path of 120 cells, and a function that opens it to be edited."""
    kind, *version = request.param.split()
    path = tmp_path / f"cells.{kind}"
    if kind == "h5ad":
        cells_adata.write_h5ad(path)
        return path, lambda: h5py.File(path, "r+")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of writing, about versions to come
        root = zarr.open_group(path, mode="w", zarr_format=int(version[0]))
        ad.io.write_elem(root, "/", cells_adata)

    class Opened:
        def __enter__(self):
            return zarr.open_group(path, mode="r+", use_consolidated=False)

        def __exit__(self, *_):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                zarr.consolidate_metadata(path)

    return path, Opened


def test_text_with_a_mask_in_the_index_and_in_columns(stored):
    path, edit = stored
    names = [f"new_{i}" for i in range(120)]
    texts = [f"text {i}" for i in range(120)]
    missing = np.arange(120) % 7 == 3
    with edit() as root:
        table = root["obs"]
        add_masked(table, table.attrs["_index"], names, np.zeros(120, bool))
        add_masked(table, "donor", texts, missing)
        add_masked(table["cell_type"], "categories", ["a", "b", "c"], np.zeros(3, bool))
        genes = root["var"]
        add_masked(genes, genes.attrs["_index"], [f"G{i}" for i in range(60)], np.zeros(60, bool))
    cells = open_cells(path)
    assert list(cells.names(0, 120)) == names
    assert list(cells.names(50, 53)) == names[50:53]
    assert list(cells.gene_ids) == [f"G{i}" for i in range(60)]
    donor = cells.column("donor")
    np.testing.assert_array_equal(donor.isna(), missing)
    assert [value for value in donor if not pd.isna(value)] == [
        text for text, gone in zip(texts, missing, strict=True) if not gone
    ]
    assert list(cells.column("cell_type").astype(str).head(4)) == ["a", "b", "c", "a"]
    assert cells.column("donor").isna().sum() == missing.sum()


def test_a_cell_without_a_name_is_said(stored):
    path, edit = stored
    with edit() as root:
        table = root["obs"]
        add_masked(table, table.attrs["_index"], NAMES * 10, np.arange(120) == 17)
    with pytest.raises(CellFileError, match=r"obs: the name of row 17 is missing.*give every row"):
        open_cells(path)


def test_a_column_of_unknown_encoding_stops_only_who_asks_for_it(stored, caplog):
    path, edit = stored
    with edit() as root:
        for table in ("obs", "var"):
            order = [*root[table].attrs["column-order"], "strange"]
            root[table].attrs["column-order"] = order
            part = root[table].create_group("strange")
            part.attrs.update({"encoding-type": "rope-array", "encoding-version": "0.7.0"})
    cells = open_cells(path)
    assert "var column 'strange' has the encoding 'rope-array' 0.7.0" in caplog.text
    assert cells.n_cells == 120
    assert cells.columns == ["cell_type", "donor", "time", "strange"]
    assert len(cells.column("donor")) == 120
    with pytest.raises(
        CellFileError,
        match=r"obs column 'strange' has the encoding 'rope-array' 0\.7\.0, which anndata \S+ "
        "does not read: upgrade anndata",
    ) as error:
        cells.column("strange")
    assert "damaged" not in str(error.value)


def test_an_unknown_encoding_inside_a_column_is_named(stored):
    path, edit = stored
    with edit() as root:
        root["obs/cell_type/categories"].attrs["encoding-version"] = "0.9.0"
    with pytest.raises(CellFileError, match=r"'string-array' 0\.9\.0, which anndata"):
        open_cells(path).column("cell_type")


@pytest.mark.parametrize("table", ["obs", "var"])
def test_a_table_of_unknown_encoding_is_not_called_damaged(stored, table):
    path, edit = stored
    with edit() as root:
        root[table].attrs["encoding-version"] = "9.0.0"
    with pytest.raises(CellFileError, match=r"'dataframe' 9\.0\.0.*upgrade anndata") as error:
        open_cells(path)
    assert "damaged" not in str(error.value)
