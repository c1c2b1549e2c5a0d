import numpy as np
import pytest
from scipy.sparse import csr_matrix

from dataset.store.csr_file import Rows
from dataset.tokenizers.medians import gene_medians_of
from dataset.tokenizers.rank import RankConfig, rank_rows, rank_tokens, token_dtype
from dataset.vocabulary import CLS, N_SPECIALS, PAD, SEP


def dense_reference(counts, medians, n_tokens):
    """Rank dense rows with numpy's stable sort: the definition, slowly."""
    token_ids = np.zeros((len(counts), 1 + n_tokens), dtype=np.int64)
    token_ids[:, 0] = CLS
    behind = np.zeros_like(token_ids)
    for row, cell in enumerate(counts):
        genes = np.flatnonzero(cell)
        value = cell[genes].astype(np.float32) / medians[genes]
        genes = genes[np.argsort(-value, kind="stable")][:n_tokens]
        token_ids[row, 1 : 1 + len(genes)] = genes + N_SPECIALS
        behind[row, 1 : 1 + len(genes)] = cell[genes]
    return token_ids, behind


def simulate(n_cells=80, n_genes=300, seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.lognormal(-0.5, 1.5, n_genes) * rng.lognormal(0, 0.8, (n_cells, 1))
    return rng.poisson(rate)


def test_a_cell_of_five_genes_by_hand():
    # value / median: 6/2 = 3, 0, 4/1 = 4, 1/0.5 = 2, 9/3 = 3; genes 0 and 4 tie.
    counts = csr_matrix(np.array([[6, 0, 4, 1, 9]]))
    medians = np.array([2, 7, 1, 0.5, 3], dtype=np.float32)
    cells = rank_tokens(counts, medians, n_tokens=6)
    assert cells.token_ids.tolist() == [[CLS, 6, 4, 8, 7, PAD, PAD]]
    assert cells.counts.tolist() == [[0, 4, 6, 9, 1, 0, 0]]
    assert cells.lengths.tolist() == [5]
    assert cells.token_ids.dtype == cells.counts.dtype == np.uint16
    assert cells.lengths.dtype == np.int32


@pytest.mark.parametrize("n_tokens", [1, 50, 400])
def test_equal_to_a_stable_sort_of_the_dense_matrix(n_tokens):
    counts = simulate()
    medians = gene_medians_of(csr_matrix(counts))
    token_ids, behind = dense_reference(counts, medians, n_tokens)
    cells = rank_tokens(csr_matrix(counts), medians, n_tokens=n_tokens)
    np.testing.assert_array_equal(cells.token_ids, token_ids)
    np.testing.assert_array_equal(cells.counts, behind)
    np.testing.assert_array_equal(cells.lengths, (token_ids > 0).sum(axis=1))


def test_other_cells_change_nothing():
    counts = csr_matrix(simulate())
    medians = gene_medians_of(counts)
    whole = rank_tokens(counts, medians, n_tokens=100)
    for row in (0, 41, 79):
        alone = rank_tokens(counts[row], medians, n_tokens=100)
        np.testing.assert_array_equal(alone.token_ids[0], whole.token_ids[row])


def test_unsorted_rows_with_stored_zeros_and_duplicates():
    untidy = csr_matrix(([3, 0, 1, 2], [2, 1, 0, 2], [0, 4]), shape=(1, 3))
    cells = rank_tokens(untidy, np.ones(3, np.float32), n_tokens=3)
    assert cells.token_ids.tolist() == [[CLS, 2 + N_SPECIALS, N_SPECIALS, PAD]]
    assert cells.counts.tolist() == [[0, 5, 1, 0]]


def test_a_cell_without_counts_is_cls_alone():
    cells = rank_tokens(csr_matrix((2, 5), dtype=int), np.ones(5, np.float32), n_tokens=4)
    assert cells.token_ids.tolist() == [[CLS, PAD, PAD, PAD, PAD]] * 2
    assert cells.lengths.tolist() == [1, 1]


def test_ties_go_by_gene_index():
    cells = rank_tokens(csr_matrix(np.full((1, 500), 3)), np.ones(500, np.float32), n_tokens=500)
    np.testing.assert_array_equal(cells.token_ids[0, 1:], np.arange(500) + N_SPECIALS)


def test_a_gene_without_counts_never_fills_the_tail():
    counts = simulate()
    cells = rank_tokens(csr_matrix(counts), np.ones(300, np.float32), n_tokens=300)
    for row, cell in zip(cells.token_ids.astype(int), counts, strict=True):
        genes = row[row >= N_SPECIALS] - N_SPECIALS
        assert set(genes) == set(np.flatnonzero(cell))


def test_a_multiple_of_a_cell_has_its_tokens():
    counts = simulate()
    medians = gene_medians_of(csr_matrix(counts))
    once = rank_tokens(csr_matrix(counts), medians, n_tokens=300).token_ids.astype(int)
    for factor in (2, 8):
        more = rank_tokens(csr_matrix(counts * factor), medians, n_tokens=300)
        np.testing.assert_array_equal(more.token_ids, once)
    # By another factor, only genes whose float32 values are a rounding apart may change places.
    for factor in (3, 10):
        more = rank_tokens(csr_matrix(counts * factor), medians, n_tokens=300).token_ids
        more = more.astype(int)
        rows, places = np.nonzero(more != once)
        assert len(rows) < 0.01 * (once > 0).sum()
        one, other = (t[rows, places] - N_SPECIALS for t in (once, more))
        np.testing.assert_allclose(
            counts[rows, one] / medians[one], counts[rows, other] / medians[other], rtol=1e-6
        )


def test_counts_beyond_16_bits():
    cells = rank_tokens(csr_matrix([[70_000, 5]]), np.ones(2, np.float32), n_tokens=2)
    assert cells.counts.tolist() == [[0, 70_000, 5]]


def test_ids_widen_when_the_vocabulary_does():
    assert token_dtype(2**16 - N_SPECIALS) == np.uint16
    assert token_dtype(2**16 - N_SPECIALS + 1) == np.int32
    counts = csr_matrix(([1, 2], ([0, 0], [3, 69_999])), shape=(1, 70_000))
    cells = rank_tokens(counts, np.ones(70_000, np.float32), n_tokens=2)
    assert cells.token_ids.tolist() == [[CLS, 69_999 + N_SPECIALS, 3 + N_SPECIALS]]


def test_two_time_points_share_a_row():
    now, previous = simulate(seed=1), simulate(seed=2)
    previous[3] = 0
    medians = gene_medians_of(csr_matrix(now + previous))
    cells = rank_tokens(csr_matrix(now), medians, n_tokens=40, previous=csr_matrix(previous))
    assert cells.token_ids.shape == (80, 2 + 2 * 40)
    first, second = (dense_reference(half, medians, 40)[0] for half in (now, previous))
    second[:, 0] = SEP
    for row in range(80):
        expected = np.concatenate([first[row][first[row] > 0], second[row][second[row] > 0]])
        assert cells.lengths[row] == len(expected)
        np.testing.assert_array_equal(cells.token_ids[row, : len(expected)], expected)
        assert not cells.token_ids[row, len(expected) :].any()
    at = cells.token_ids == SEP
    assert (at.sum(axis=1) == 1).all()
    assert not cells.counts[at].any()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("half", ["now", "previous"])
def test_what_cannot_be_ranked_is_refused(value, half):
    good, bad = csr_matrix([[1.0, 2.0]]), csr_matrix([[1.0, value]])
    now, previous = (bad, None) if half == "now" else (good, bad)
    with pytest.raises(ValueError, match="negative or non-finite"):
        rank_tokens(now, np.ones(2, np.float32), n_tokens=2, previous=previous)


@pytest.mark.parametrize("median", [0, -1, np.nan, np.inf])
def test_a_median_that_is_none_is_refused(median):
    with pytest.raises(ValueError, match="gene_medians"):
        rank_tokens(csr_matrix([[1, 2]]), np.array([1, median], np.float32), n_tokens=2)


def test_shapes_have_to_agree():
    with pytest.raises(ValueError, match="2 genes but 3 medians"):
        rank_tokens(csr_matrix([[1, 2]]), np.ones(3, np.float32), n_tokens=2)
    with pytest.raises(ValueError, match="differ in number"):
        rank_tokens(
            csr_matrix([[1, 2]]),
            np.ones(2, np.float32),
            n_tokens=2,
            previous=csr_matrix((2, 2), dtype=int),
        )


def test_narrow_and_wide_inputs_give_the_same():
    counts = simulate()
    medians = gene_medians_of(csr_matrix(counts))
    rows = Rows.from_csr(csr_matrix(counts))
    narrow = Rows(rows.indptr, rows.gene_index.astype(np.uint16), rows.counts.astype(np.uint16))
    kinds = {"token_dtype": np.dtype(np.uint16), "counts_dtype": np.dtype(np.uint16)}
    results = [rank_rows([r], medians, n_tokens=60, **kinds) for r in (rows, narrow)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_row_lengths():
    assert RankConfig(n_tokens=2048).row_length == 2049
    two = RankConfig(n_tokens=1024, previous={"layer": "X_previous"})
    assert (two.row_length, two.n_segments) == (2050, 2)
