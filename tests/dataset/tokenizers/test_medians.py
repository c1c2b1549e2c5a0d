from functools import partial

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from dataset.store.csr_file import Rows
from dataset.tokenizers.medians import gene_medians, gene_medians_of
from dataset.tokenizers.tokenizer import CellCounts
from dataset.workers import start_workers


def simulate(n_cells, n_genes, seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.3, 2, size=(1, n_genes)) * rng.gamma(2, 1, size=(n_cells, 1))
    return rng.poisson(rate)


def numpy_medians(counts, library_size):
    """Return numpy's midpoint medians, gene by gene, of the dense matrix."""
    medians = np.full(counts.shape[1], np.nan, dtype=np.float32)
    for gene, column in enumerate(counts.T):
        cells = column > 0
        values = (column[cells].astype(np.float64) * 1e4 / library_size[cells]).astype(np.float32)
        if len(values):
            medians[gene] = np.median(values)
    return medians


@pytest.mark.parametrize(("n_cells", "n_genes"), [(1, 3), (2, 3), (7, 50), (301, 40), (400, 200)])
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("block", [5, 1000])
def test_equal_to_numpys_midpoint_medians_to_the_bit(n_cells, n_genes, n_threads, block):
    counts = simulate(n_cells, n_genes)
    library_size = counts.sum(axis=1).astype(np.float64)
    matrix = csr_matrix(counts)

    parts = [slice(start, start + block) for start in range(0, n_cells, block)]

    def blocks(group):
        for part in group:
            yield CellCounts(Rows.from_csr(matrix[part]), library_size[part])

    groups = [partial(blocks, parts[i::n_threads]) for i in range(n_threads)]
    with start_workers(n_threads) as workers:
        medians = gene_medians(workers, groups, n_genes, largest_library=library_size.max())
    assert medians.dtype == np.float32
    np.testing.assert_array_equal(medians, numpy_medians(counts, library_size))


def test_two_values_far_apart_have_the_point_half_way():
    counts = csr_matrix(np.array([[1, 99_999], [5000, 5000]]))
    expected = (np.float32(0.1) + np.float32(5000)) / np.float32(2)
    assert gene_medians_of(counts)[0] == expected


def test_extreme_counts():
    counts = np.array([[1, 2_000_000_000], [3, 0], [0, 7]])
    library_size = counts.sum(axis=1).astype(np.float64)
    np.testing.assert_array_equal(
        gene_medians_of(csr_matrix(counts)), numpy_medians(counts, library_size)
    )


def test_zeros_do_not_count_even_when_stored():
    counts = csr_matrix(([4, 0, 4, 8], ([0, 1, 1, 2], [0, 0, 1, 0])), shape=(3, 2))
    library_size = np.full(3, 10.0)
    assert gene_medians_of(counts, library_size).tolist() == [6000.0, 4000.0]


def test_a_gene_nobody_has_has_no_median():
    medians = gene_medians_of(csr_matrix(np.array([[1, 0], [2, 0]])))
    assert medians[0] == 10_000
    assert np.isnan(medians[1])


def test_cells_with_library_size_0_are_left_out():
    counts = simulate(60, 20)
    library_size = counts.sum(axis=1).astype(np.float64)
    of_train = np.where(np.arange(60) % 3 > 0, library_size, 0)
    block = CellCounts(Rows.from_csr(csr_matrix(counts)), of_train)
    with start_workers(1) as workers:
        medians = gene_medians(workers, [lambda: [block]], 20, largest_library=of_train.max())
    train = of_train > 0
    np.testing.assert_array_equal(medians, numpy_medians(counts[train], library_size[train]))
