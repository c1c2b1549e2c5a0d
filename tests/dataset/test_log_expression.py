"""log1p of counts per 10,000, as scanpy writes it."""

import anndata as ad
import numpy as np
import scanpy as sc
from scipy.sparse import csr_matrix

from dataset.log_expression import log_expression


def test_equals_scanpy(cells_adata):
    library_size = np.asarray(cells_adata.X.sum(axis=1)).ravel()
    expected = ad.AnnData(cells_adata.X.astype(np.float64))
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    found = log_expression(cells_adata.X, library_size)
    np.testing.assert_allclose(found.toarray(), expected.X.toarray(), rtol=1e-12)


def test_a_cell_without_counts_keeps_its_zeros_and_the_counts_stay():
    counts = csr_matrix(np.array([[0, 0], [1, 3]]))
    found = log_expression(counts, np.array([0, 4])).toarray()
    np.testing.assert_allclose(found, [[0, 0], [np.log1p(2500), np.log1p(7500)]])
    assert counts.toarray().tolist() == [[0, 0], [1, 3]]
