"""log1p of counts per 10,000: expression as the field writes it, and the scale of every value."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

TARGET_SUM = 10_000.0  # counts a cell is scaled to


def log_expression(counts: csr_matrix, library_size: NDArray) -> csr_matrix:
    """Return log1p of the counts per 10,000; zeros stay zeros, so the matrix stays sparse.

    Parameters
    ----------
    counts
        Raw counts, ``(n_cells, n_genes)``.
    library_size
        Counts of each cell over all genes of its file, ``(n_cells,)``. A cell without counts has
        no expression to scale and keeps its zeros.

    Returns
    -------
    ``(n_cells, n_genes)``, float64.
    """
    scale = TARGET_SUM / np.maximum(np.asarray(library_size, dtype=np.float64), 1)
    values = csr_matrix(counts, dtype=np.float64, copy=True)
    values.data = np.log1p(values.data * np.repeat(scale, np.diff(values.indptr)))
    return values
