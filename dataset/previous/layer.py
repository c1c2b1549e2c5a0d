"""The profile of a cell at the time point before, from a layer of its own file."""

from dataclasses import fields, replace

import numpy as np
from scipy.sparse import csr_matrix

from dataset.nearest_names import nearest
from dataset.reading.cell_file import CellFileError, named_errors, open_store
from dataset.reading.cells import CellFile, Cells
from dataset.reading.matrix_rows import CscRows, Rows, open_matrix
from dataset.reading.missing_chunks import check_matrix_chunks

PSEUDO_TOTAL = 100_000


class LayerFile(CellFile):
    """A file whose counts are those of a layer, which need not be whole numbers.

    Such layers are often averages over ancestors, or normalized. Only the order of a cell's genes
    and their shares matter to a rank encoding, so a cell with fractions is scaled to 100,000
    counts and rounded, and what was above zero stays above zero. A cell of whole numbers is taken
    as it is. Logged values are not undone: put the counts, or their mean, in the layer.
    """

    def _block(self, rows: Rows, first_row: int, n_file_genes: int) -> csr_matrix:
        rows = Rows(rows.indptr, rows.indices, _whole_numbers(rows.indptr, rows.data))
        return super()._block(rows, first_row, n_file_genes)


def of_layer(cells: Cells, layer: str) -> Cells:
    """Return the same cells with the values of a layer, looked for in every file.

    Raises
    ------
    CellFileError
        If a file has no such layer.
    """
    files: list[CellFile] = []
    for file in cells.files:
        with open_store(file.path) as root:
            layers = sorted(map(str, root["layers"])) if "layers" in root else []
            if layer not in layers:
                raise CellFileError(
                    f"{file.path}: previous.layer: no layer {layer!r}"
                    f"{nearest(layer, layers, 'layers')}"
                )
            with named_errors(file.path, f"opening layers/{layer}"):
                check_matrix_chunks(root["layers"][layer])
                is_csc = isinstance(open_matrix(root["layers"][layer]), CscRows)
        settings = {entry.name: getattr(file, entry.name) for entry in fields(file)}
        matrix = {"counts_location": f"layers/{layer}", "is_csc": is_csc}
        files.append(LayerFile(**settings | matrix))
    return replace(cells, files=files, _transposed={})


def _whole_numbers(indptr: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Scale and round the cells that have fractions; leave what is no count to be refused."""
    if not np.issubdtype(values.dtype, np.floating):
        return values
    whole = values.astype(np.float64)
    for start, stop in zip(indptr[:-1], indptr[1:], strict=True):
        cell = whole[start:stop]
        if not np.isfinite(cell).all() or (cell < 0).any() or (cell == np.rint(cell)).all():
            continue
        scaled = np.rint(cell * (PSEUDO_TOTAL / cell.sum()))
        whole[start:stop] = np.where(cell > 0, np.maximum(scaled, 1), 0)
    return whole
