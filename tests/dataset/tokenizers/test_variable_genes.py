"""Highly variable genes, against a dense formula."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from dataset.store.csr_file import Rows
from dataset.tokenizers.tokenizer import CellCounts
from dataset.tokenizers.variable_genes import highly_variable, standardized_variance
from dataset.workers import start_workers

N_CELLS, N_GENES = 400, 60


@pytest.fixture
def counts(rng) -> np.ndarray:
    """Poisson counts of many means; the first three genes are on in a tenth of the cells only."""
    mean = rng.gamma(1.0, 3.0, N_GENES) + 0.2
    counts = rng.poisson(mean, (N_CELLS, N_GENES))
    counts[:, :3] = rng.poisson(2.0, (N_CELLS, 3))
    counts[: N_CELLS // 10, :3] += rng.poisson(25.0, (N_CELLS // 10, 3))
    counts[:, 10] = 0
    counts[:, 11] = 4
    return counts


def groups_of(counts: np.ndarray, n_groups: int):
    parts = [Rows.from_csr(csr_matrix(part)) for part in np.array_split(counts, n_groups)]
    return [lambda p=part: [CellCounts(p, np.ones(len(p.indptr) - 1))] for part in parts]


def variance_of(counts: np.ndarray, n_groups: int = 3) -> np.ndarray:
    with start_workers(2) as workers:
        return standardized_variance(workers, groups_of(counts, n_groups), *counts.shape)


def test_the_variance_is_that_of_standardized_and_clipped_counts(counts):
    counts[0, 20] = 10_000  # clipped
    mean, variance = counts.mean(0), counts.var(0, ddof=1)
    varies = variance > 0
    x, y = np.log10(mean[varies]), np.log10(variance[varies])
    powers = np.stack([x**2, x, x**0], axis=1)
    usual = powers @ np.linalg.lstsq(powers, y, rcond=None)[0]
    deviation = np.sqrt(10**usual)
    clipped = np.minimum(counts[:, varies], mean[varies] + deviation * np.sqrt(N_CELLS))
    standardized = (clipped - mean[varies]) / deviation
    expected = np.zeros(N_GENES)
    expected[varies] = (standardized**2).sum(0) / (N_CELLS - 1)
    np.testing.assert_allclose(variance_of(counts), expected, rtol=1e-7)
    assert (np.asarray(clipped)[0, varies[:20].sum()]) < 10_000


def test_genes_of_a_tenth_of_the_cells_are_found(counts):
    with start_workers(1) as workers:
        groups = groups_of(counts, 1)
        chosen = highly_variable(workers, groups, N_CELLS, N_GENES, n_top_genes=3)
        assert np.flatnonzero(chosen).tolist() == [0, 1, 2]
        everything = highly_variable(workers, groups, N_CELLS, N_GENES, n_top_genes=1000)
    assert np.flatnonzero(~everything).tolist() == [10, 11]  # constant ones tell nothing


def test_how_cells_are_divided_changes_no_bit(counts):
    expected = variance_of(counts, 1)
    for n_groups in (2, 7, 50):
        assert np.array_equal(variance_of(counts, n_groups), expected)


def test_few_genes_have_no_usual_variance():
    assert variance_of(np.array([[1, 0], [2, 0], [5, 0]]), 1).tolist() == [1.0, 0.0]
