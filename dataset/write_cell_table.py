"""obs and var of all files in one ``cells.h5ad``, a column at a time."""

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

from dataset.choose_cells import categories
from dataset.reading.cell_file import CellFileError, ColumnError
from dataset.reading.cells import Cells
from dataset.reading.stored_table import CHUNK
from dataset.store.blocks import cut


class UnreadColumns(NamedTuple):
    """Why columns are not in the table, or not with an order, by name."""

    left_out: dict[str, str]
    without_order: dict[str, str]


def write_cell_table(path: Path, source: Cells) -> UnreadColumns:
    """Write names, obs and genes as anndata does; there is no ``X`` in the file.

    Texts become categories. A column that cannot be read is left out: most are never asked for.
    """
    left_out: dict[str, str] = {}
    without_order: dict[str, str] = {}
    written: list[str] = []
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        obs = file.create_group("obs")
        names = obs.create_dataset("_index", (source.n_cells,), h5py.string_dtype())
        names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        for start, stop in cut(0, source.n_cells, CHUNK):
            names[start:stop] = source.names(start, stop)
        for key in source.columns:
            try:
                try:
                    column = source.stored_column(key, needs_order=True)
                except ColumnError as error:
                    column = source.stored_column(key)
                    without_order[key] = str(error)
                write_elem(obs, key, _storable(column))
                written.append(key)
            except (CellFileError, TypeError, ValueError) as error:
                left_out[key] = f"obs column {key!r} cannot be used ({error})"
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
        obs.attrs["_index"] = "_index"
        obs.attrs["column-order"] = np.array(written, dtype=h5py.string_dtype())
        genes = pd.DataFrame({"gene_symbol": source.gene_symbols}, index=source.gene_ids)
        write_elem(file, "var", genes.astype(object))
    return UnreadColumns(left_out, without_order)


def _storable(column: pd.Series) -> object:
    """Return the values as anndata writes them: numbers as they are, all else as categories."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        kinds = {type(name) for name in column.cat.categories}
        return column.array if len(kinds) <= 1 else categories(column)
    if pd.api.types.is_numeric_dtype(column.dtype):  # and bool
        return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array
    return categories(column)
