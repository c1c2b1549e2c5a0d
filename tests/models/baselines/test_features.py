"""Sparse features equal the dense ones they stand for."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from models.baselines.features import (
    PrincipalAxes,
    highly_variable,
    log_normalize,
    mean_and_std,
    standardize,
)


@pytest.fixture
def counts(rng):
    return csr_matrix(rng.poisson(0.8, size=(40, 70)).astype(np.float32))


@pytest.fixture
def expression(counts):
    return log_normalize(counts, np.asarray(counts.sum(axis=1)).ravel())


def test_log_normalize_is_log1p_of_counts_per_ten_thousand(counts):
    library_size = np.full(40, 250.0)  # not the sum: the file may have genes beyond these
    dense = np.log1p(counts.toarray() / 250 * 1e4)
    np.testing.assert_allclose(log_normalize(counts, library_size).toarray(), dense, rtol=1e-5)


def test_a_cell_without_counts_stays_finite():
    empty = log_normalize(csr_matrix((1, 5), dtype=np.float32), np.zeros(1))
    assert (empty.toarray() == 0).all()


def test_mean_and_std_are_numpys(expression):
    mean, std = mean_and_std(expression)
    np.testing.assert_allclose(mean, expression.toarray().mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(std, expression.toarray().std(axis=0), rtol=1e-4)


def test_axes_keep_all_distances_of_standardized_cells(expression, rng):
    dense = expression.toarray()
    dense = (dense - dense.mean(axis=0)) / dense.std(axis=0)
    axes = PrincipalAxes.fit(expression, standardize(expression), n_axes=100, rng=rng)
    coordinates = axes.coordinates(expression)
    np.testing.assert_allclose(coordinates @ coordinates.T, dense @ dense.T, atol=1e-2)
    assert np.abs(coordinates.mean(axis=0)).max() < 1e-3


@pytest.mark.parametrize("exact_cells", [100, 0], ids=["products", "lanczos"])
def test_leading_axes_are_those_of_pca_of_all_cells(expression, rng, exact_cells):
    axes = PrincipalAxes.fit(expression, np.ones(70), n_axes=5, rng=rng, exact_cells=exact_cells)
    theirs = PCA(5, svd_solver="full").fit_transform(expression.toarray())
    ours = axes.coordinates(expression)
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours * signs, theirs, atol=1e-3)


def test_new_cells_do_not_change_each_other(expression, rng):
    axes = PrincipalAxes.fit(expression[:30], np.ones(70), n_axes=5, rng=rng)
    together = axes.coordinates(expression[30:])
    alone = axes.coordinates(expression[35:36])
    np.testing.assert_allclose(together[5:6], alone, atol=1e-5)


def test_highly_variable_finds_the_gene_that_varies(rng):
    dense = rng.normal(2.0, 0.05, size=(50, 20)).astype(np.float32)
    dense[:25, 7] = 0
    assert 7 in highly_variable(csr_matrix(dense), 1)
    assert highly_variable(csr_matrix(dense), 99).tolist() == list(range(20))


def test_a_gene_of_one_cell_is_hardly_variable(rng):
    """One count in one cell is all dispersion, and says nothing of a cell type."""
    dense = rng.normal(2.0, 0.05, size=(50, 20)).astype(np.float32)
    dense[:, 3] = 0
    dense[0, 3] = 0.5
    assert highly_variable(csr_matrix(dense), 19).tolist() == [g for g in range(20) if g != 3]
