"""Bins and other values of genes, against numpy's quantiles; the same through encode and 02."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from dataset.batches import BatchReader, EncodedCells, to_device
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.store.csr_file import Rows
from dataset.store.encoded_folder import EncodedFolder
from dataset.tokenizers.gene_values import GeneValuesConfig, admissible_bins
from dataset.tokenizers.tokenizer import CellCounts
from dataset.vocabulary import CLS, N_SPECIALS, PAD
from training.augment import augment

N_GENES = 40
VARIABLE = np.arange(N_GENES) % 3 > 0


@pytest.fixture
def counts(rng) -> np.ndarray:
    """Twelve cells, shallow and deep; one has a single gene, one has none."""
    depth = np.geomspace(0.2, 20, 12)[:, None]
    counts = rng.poisson(rng.gamma(0.6, 1.0, (12, N_GENES)) * depth)
    counts[3] = 0
    counts[4] = 0
    counts[4, 7] = 5
    return counts.astype(np.uint16)


def encoded(counts: np.ndarray, **settings) -> EncodedCells:
    config = GeneValuesConfig(**{"n_top_genes": 30} | settings)
    library_size = counts.sum(1).astype(np.float64)
    cells = CellCounts(Rows.from_csr(csr_matrix(counts)), library_size)
    dtypes = config.arrays(N_GENES, np.dtype(np.uint16))
    learned = {} if config.n_top_genes is None else {"is_variable": VARIABLE}
    tokens = config.encode([cells], learned, dtypes)
    assert {name: array.dtype for name, array in tokens.arrays.items()} == dtypes
    n = len(counts)
    return EncodedCells(
        tokens.arrays, tokens.lengths, library_size[:, None].astype(np.float32),
        np.zeros(n, dtype=np.int64), np.zeros((n, 0), dtype=np.int64),
    )  # fmt: skip


def bins_by_quantiles(values: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest bin of each value of one cell: edges as exact fractions."""
    ordered, edges = sorted(int(v) for v in values), []
    for k in range(n_bins - 1):
        where = Fraction(k * (len(ordered) - 1), n_bins - 2)
        low = int(where)
        high = min(low + 1, len(ordered) - 1)
        edges.append(ordered[low] + (where - low) * (ordered[high] - ordered[low]))
    highest = [sum(edge <= value for edge in edges) for value in map(int, values)]
    lowest = [sum(edge < value for edge in edges) + 1 for value in map(int, values)]
    return np.minimum(lowest, highest), np.array(highest)


@pytest.mark.parametrize("n_bins", [3, 5, 51, 300])
def test_admissible_bins_are_those_of_the_quantiles_of_each_cell(counts, n_bins):
    cell, gene = np.nonzero(counts)
    values = counts[cell, gene]
    lowest, highest = admissible_bins(values, cell, n_bins=n_bins)
    for one in np.unique(cell):
        expected = bins_by_quantiles(values[cell == one], n_bins)
        np.testing.assert_array_equal((lowest[cell == one], highest[cell == one]), expected)
    # And of floating-point quantiles, which the original takes, but for rounding at an edge.
    for one in np.unique(cell):
        of_cell = values[cell == one].astype(float)
        edges = np.quantile(of_cell, np.linspace(0, 1, n_bins - 1)).round(9)
        assert (np.digitize(of_cell, edges) == highest[cell == one]).all()
    assert lowest.min() >= 1
    assert highest.max() == n_bins - 1


@pytest.mark.parametrize("n_bins", [5, 51, 300])
def test_rows_are_the_variable_genes_with_their_bins(counts, n_bins):
    cells = encoded(counts, n_bins=n_bins)
    assert cells.arrays["values"].dtype == (np.uint8 if n_bins < 256 else np.uint16)
    for row, of_cell in enumerate(counts):
        genes = np.flatnonzero((of_cell > 0) & VARIABLE)
        n = cells.lengths[row]
        token_ids, at_tokens, values = (a[row] for a in cells.arrays.values())
        assert token_ids[:n].tolist() == [CLS, *(N_SPECIALS + genes)]
        assert at_tokens[:n].tolist() == [0, *of_cell[genes]]
        assert not any(a[row, n:].any() for a in cells.arrays.values())
        if len(genes):
            lowest, highest = bins_by_quantiles(of_cell[genes], n_bins)
            np.testing.assert_array_equal(values[1:n], (lowest + highest) // 2)
            assert values[1:n].min() >= 1
        assert values[0] == 0


def test_equal_counts_share_a_bin_and_it_is_the_middle_one(counts):
    cells = encoded(counts)
    for at_tokens, values in zip(cells.arrays["counts"], cells.arrays["values"], strict=True):
        for count in np.unique(at_tokens):
            assert len(np.unique(values[at_tokens == count])) == 1
    one = encoded(np.where(VARIABLE, 1, 0).astype(np.uint16)[None])
    assert np.unique(one.arrays["values"]).tolist() == [0, 25]  # every edge is 1: bins 1 to 50


def test_the_originals_rule_spreads_equal_counts_and_still_follows_from_the_cell(counts):
    many = np.where(VARIABLE, 1, 0).astype(np.uint16)[None]
    spread = encoded(np.repeat(many, 2, axis=0), values="random_bins").arrays["values"]
    np.testing.assert_array_equal(spread[0], spread[1])
    assert len(np.unique(spread[0])) > 15
    cells, middle = encoded(counts, values="random_bins"), encoded(counts)
    alone = [encoded(counts[[i]], values="random_bins").arrays["values"] for i in range(12)]
    np.testing.assert_array_equal(cells.arrays["values"], np.concatenate(alone))
    found = cells.arrays["counts"] > 0
    cell, _ = np.nonzero(found)
    bounds = admissible_bins(cells.arrays["counts"][found], cell, n_bins=51)
    drawn = cells.arrays["values"][found]
    assert ((bounds[0] <= drawn) & (drawn <= bounds[1])).all()
    assert abs(drawn.mean() - middle.arrays["values"][found].mean()) < 3


def test_continuous_values_are_log_counts_per_10_000(counts):
    cells = encoded(counts, values="log1p")
    expected = np.log1p(cells.arrays["counts"] * 1e4 / np.maximum(cells.library_size, 1))
    np.testing.assert_allclose(cells.arrays["values"], expected, rtol=1e-6)


def test_bins_do_not_change_with_the_depth_of_a_cell(counts):
    np.testing.assert_array_equal(
        encoded(counts).arrays["values"], encoded(7 * counts).arrays["values"]
    )


@pytest.mark.parametrize("values", ["bins", "random_bins", "log1p"])
def test_with_zeros_every_variable_gene_is_a_token(counts, values):
    without, cells = (
        encoded(counts, values=values),
        encoded(counts, values=values, include_zeros=True),
    )
    assert (cells.lengths == 1 + VARIABLE.sum()).all()
    genes = N_SPECIALS + np.flatnonzero(VARIABLE)
    for row in range(len(counts)):
        found = cells.arrays["counts"][row] > 0
        n = cells.lengths[row]
        assert cells.arrays["token_ids"][row, :n].tolist() == [CLS, *genes]
        assert not cells.arrays["token_ids"][row, n:].any()
        for name, array in cells.arrays.items():
            assert (array[row, found] == without.arrays[name][row, 1 : without.lengths[row]]).all()
        assert not cells.arrays["values"][row, ~found].any()


@pytest.mark.parametrize("include_zeros", [False, True])
@pytest.mark.parametrize("values", ["bins", "random_bins", "log1p"])
def test_thinned_cells_are_encoded_again(counts, values, include_zeros):
    settings = {"values": values, "include_zeros": include_zeros}
    config = GeneValuesConfig(n_top_genes=30, **settings)
    batch = to_device(BatchReader(encoded(counts, **settings)).read(np.arange(12)), "cpu")
    thinned = augment(batch, lambda b: config.reorder(b, {}), key=3, count_thinning=0.8)
    assert thinned["counts"].sum() < batch["counts"].sum()
    again = np.zeros_like(counts)
    offsets = thinned["offsets"].tolist()
    for row in range(12):
        here = slice(offsets[row] + 1, offsets[row + 1])
        genes = (thinned["token_ids"][here] - N_SPECIALS).numpy()
        again[row, genes] = thinned["counts"][here].numpy()
    expected = encoded(again, **settings)
    library_size = thinned["library_size"][:, 0].numpy()
    lengths = np.array(thinned["lengths"])
    np.testing.assert_array_equal(lengths, expected.lengths)
    for name, array in expected.arrays.items():
        for row in range(12):
            found = thinned[name][offsets[row] : offsets[row + 1]].numpy()
            wanted = array[row, : lengths[row]]
            if name == "values" and values == "log1p":
                wanted = np.log1p(expected.arrays["counts"][row, : lengths[row]] * 1e4
                                  / np.maximum(library_size[row], 1))  # fmt: skip
                np.testing.assert_allclose(found, wanted, rtol=1e-5)
            else:
                np.testing.assert_array_equal(found, wanted, err_msg=name)


def test_all_genes_are_tokens_and_of_too_many_those_of_the_highest_counts(counts):
    cells = encoded(counts, n_top_genes=None, n_tokens=15)
    assert cells.arrays["token_ids"].shape == (12, 16)
    assert (np.count_nonzero(counts, axis=1) > 15).sum() > 3
    for row, of_cell in enumerate(counts):
        genes = sorted(np.flatnonzero(of_cell), key=lambda g: (-int(of_cell[g]), g))[:15]
        genes = np.sort(genes).astype(int)
        n = cells.lengths[row]
        assert cells.arrays["token_ids"][row, :n].tolist() == [CLS, *(N_SPECIALS + genes)]
        assert cells.arrays["counts"][row, 1:n].tolist() == of_cell[genes].tolist()
        if len(genes):
            lowest, highest = bins_by_quantiles(of_cell[genes], 51)
            np.testing.assert_array_equal(
                cells.arrays["values"][row, 1:n], (lowest + highest) // 2
            )
    whole = encoded(counts, n_top_genes=None)
    assert (whole.lengths == 1 + np.count_nonzero(counts, axis=1)).all()
    assert GeneValuesConfig(n_top_genes=30, n_tokens=15).row_length == 16


@pytest.mark.parametrize("n_top_genes", [None, 31])
def test_with_zeros_a_row_must_hold_every_gene(n_top_genes):
    with pytest.raises(ValueError, match=r"at most n_tokens, 30; .*; say n_top_genes: 30"):
        GeneValuesConfig(n_top_genes=n_top_genes, n_tokens=30, include_zeros=True)


def test_no_cells_and_no_genes(counts):
    assert encoded(counts[:0]).lengths.shape == (0,)
    assert encoded(counts[[3]]).lengths.tolist() == [1]
    assert encoded(counts[[3]]).arrays["token_ids"][0].tolist() == [CLS] + [PAD] * 30


def test_genes_are_chosen_on_train_alone(cells_adata, tmp_path):
    folders = []
    for name, factor in (("one", 1), ("other", 5)):
        adata = cells_adata.copy()
        is_train = ~adata.obs["donor"].isin(["donor_1", "donor_2"]).to_numpy()
        last = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
        last[~is_train, ::7] *= factor
        adata.X = csr_matrix(last)
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        config = PreprocessConfig(
            name=name, input=str(tmp_path / f"{name}.h5ad"), label_key="cell_type",
            quality_control={"min_genes": 5}, data_dir=str(tmp_path),
            split={"key": "donor", "val": ["donor_1"], "test": ["donor_2"]},
            tokenizer={"kind": "gene_values", "n_top_genes": 20}, condition_keys=["donor"],
        )  # fmt: skip
        folders.append(EncodedFolder(encode(config, progress=False)))
    one, other = folders
    chosen = one.facts.learned["is_variable"]
    assert chosen.sum() == 20
    np.testing.assert_array_equal(chosen, other.facts.learned["is_variable"])
    for name in ("token_ids", "values"):
        a, b = (f.split("train").arrays[name] for f in folders)
        np.testing.assert_array_equal(a, b)
    assert one.facts.tokenizer["n_bins"] == 51
    assert json.loads((one.path / "meta.json").read_text())["arrays"]["values"] == "uint8"
    batch = BatchReader(one.split("train")).read(np.arange(3))
    assert to_device(batch, "cpu")["values"].dtype == torch.int64
