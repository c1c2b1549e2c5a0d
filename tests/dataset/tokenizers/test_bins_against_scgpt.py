"""Bins of values, against the file of scGPT that makes them, given the same draws."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from dataset.store.csr_file import Rows
from dataset.tokenizers import gene_values
from dataset.tokenizers.gene_values import GeneValuesConfig, admissible_bins
from dataset.tokenizers.tokenizer import CellCounts
from tests.originals import original

N_BINS = pytest.mark.parametrize("n_bins", [3, 10, 51])


@pytest.fixture
def cells(rng) -> np.ndarray:
    """Return the counts of cells with many equal ones, and of one with a single gene.

    No cell has a multiple of seven values and one more: one of the 50 edges of 51 bins would be a
    value of the cell, and which side of it scGPT's lies on would be a matter of rounding.
    """
    depth = np.geomspace(0.2, 20, 40)[:, None]
    counts = rng.poisson(rng.gamma(0.6, 1.0, (40, 60)) * depth)
    counts[0] = 0
    counts[0, 7] = 5
    n_values = (counts > 0).sum(axis=1)
    return counts[(n_values == 1) | ((n_values > 1) & ((n_values - 1) % 7 > 0))]


@N_BINS
def test_the_bins_that_a_value_may_be_in_are_the_ends_of_scgpts_draw(cells, n_bins, monkeypatch):
    scgpt = original("scgpt", "scgpt.preprocess")
    cell, gene = np.nonzero(cells)
    lowest, highest = admissible_bins(cells[cell, gene], cell, n_bins=n_bins)
    assert (lowest < highest).any()
    for drawn, ours in ((0.0, highest), (1 - 1e-9, lowest)):
        monkeypatch.setattr(np.random, "rand", lambda n, drawn=drawn: np.full(n, drawn))
        theirs = np.stack([scgpt.binning(row, n_bins) for row in cells])
        np.testing.assert_array_equal(ours, theirs[cell, gene])


@N_BINS
def test_random_bins_are_scgpts_of_log_expression_by_the_same_draws(cells, n_bins, monkeypatch):
    scgpt = original("scgpt", "scgpt.preprocess")
    drawn = np.random.default_rng(0).random(cells.shape)
    monkeypatch.setattr(gene_values, "_draw", lambda counts, cell: 1 - drawn[cells > 0])

    library_size = cells.sum(axis=1).astype(np.float64)
    log_expression = np.log1p(cells * (1e4 / library_size[:, None]))
    theirs = np.zeros(cells.shape, dtype=np.int64)
    for row, values, of_row in zip(theirs, log_expression, drawn, strict=True):
        monkeypatch.setattr(np.random, "rand", lambda n, of=of_row[values > 0]: of)
        row[:] = scgpt.binning(values, n_bins)

    config = GeneValuesConfig(values="random_bins", n_bins=n_bins, n_tokens=60)
    given = CellCounts(Rows.from_csr(csr_matrix(cells.astype(np.uint16))), library_size)
    tokens = config.encode([given], {}, config.arrays(60, np.dtype(np.uint16)))
    ours = [row[1:n] for row, n in zip(tokens.arrays["values"], tokens.lengths, strict=True)]
    np.testing.assert_array_equal(np.concatenate(ours), theirs[cells > 0])
