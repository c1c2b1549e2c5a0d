import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from dataset.config import QualityControlConfig
from dataset.doublets import drop_doublets, score_doublets
from dataset.reasons import Reasons
from dataset.sources import synthetic_cells
from tests.made_up import store_of

ALL = np.ones(170, dtype=bool)
TRAIN = np.zeros(170, dtype=np.int8)


@pytest.fixture
def adata():
    """Return 170 cells: 80 of donor a, 80 of b, 10 of c."""
    adata = synthetic_cells(np.random.default_rng(0), n_cells=170, n_donors=2)
    adata.obs["donor"] = ["a"] * 80 + ["b"] * 80 + ["c"] * 10
    return adata


@pytest.fixture
def donors(adata):
    return pd.Categorical(adata.obs["donor"])


@pytest.fixture
def write(tmp_path):
    def write(adata, name="cells"):
        return store_of(adata, tmp_path / name)

    return write


def test_doublets_are_scored_within_a_batch_and_repeatably(adata, donors, write):
    cells = write(adata)
    scores, messages = score_doublets(cells, ALL, TRAIN, donors)
    again, _ = score_doublets(cells, ALL, TRAIN, donors)
    np.testing.assert_array_equal(scores, again)
    assert ((scores[:160] >= 0) & (scores[:160] <= 1)).all()
    assert np.isnan(scores[160:]).all()
    assert messages == [
        "no doublet scores for batches of fewer than 50 cells, which Scrublet needs: c (train)"
    ]
    alone, _ = score_doublets(write(adata[:80].copy(), "first"), ALL[:80], TRAIN[:80])
    np.testing.assert_array_equal(alone, scores[:80])


def test_cells_of_one_batch_in_two_splits_are_scored_apart(adata, write):
    split = np.repeat(np.array([0, 2, -1], dtype=np.int8), [90, 60, 20])
    before, _ = score_doublets(write(adata), ALL, split)
    adata.X = csr_matrix(np.vstack([adata.X[:90].toarray(), adata.X[90:].toarray()[:, ::-1] * 2]))
    after, _ = score_doublets(write(adata, "changed"), ALL, split)
    np.testing.assert_array_equal(after[:90], before[:90])
    assert (after[90:150] != before[90:150]).any()
    assert np.isnan(before[150:]).all()


def test_a_cell_that_is_not_wanted_is_neither_scored_nor_beside_others(adata, write):
    few = np.arange(170) < 100
    scores, _ = score_doublets(write(adata), few, TRAIN)
    expected, _ = score_doublets(write(adata[:100].copy(), "few"), ALL[:100], TRAIN[:100])
    np.testing.assert_array_equal(scores[:100], expected)
    assert np.isnan(scores[100:]).all()


@pytest.mark.parametrize("n_genes", [2, 5, 20, 30])
def test_too_few_genes_are_said_and_the_rest_goes_on(adata, write, n_genes):
    cells = write(adata[:, :n_genes].copy())
    scores, messages = score_doublets(cells, ALL, TRAIN)
    assert np.isnan(scores).all()
    (message,) = messages
    assert "too few for Scrublet" in message
    assert f"all cells (train), 170 cells x {n_genes} genes" in message
    assert "\n" not in message


def test_the_threshold_drops_what_lies_above_it_and_no_cell_without_a_score():
    scores = np.array([0.1, 0.3, 0.31, np.nan, 0.9])
    reasons = Reasons(5)
    drop_doublets(reasons, scores, QualityControlConfig(scrublet=True))
    assert reasons.kept.all()
    drop_doublets(reasons, scores, QualityControlConfig(scrublet=True, max_doublet_score=0.3))
    assert reasons.kept.tolist() == [True, True, False, True, False]
    assert reasons.count() == {"doublet score above 0.3": 2}


def test_a_threshold_without_any_score_drops_nobody():
    reasons = Reasons(3)
    config = QualityControlConfig(scrublet=True, max_doublet_score=0.3)
    drop_doublets(reasons, np.full(3, np.nan), config)
    assert reasons.kept.all()
