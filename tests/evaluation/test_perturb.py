from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from dataset.vocabulary import Vocabulary
from evaluation.annotated_file import AnnotationError
from evaluation.matched_genes import detection_and_rank, matched_random
from evaluation.perturb import genes_of, look, main, perturb, perturb_counts, shifts
from evaluation.token_query import TokenQuery
from evaluation.trained_model import TrainedModel


def test_a_deleted_gene_is_gone_and_an_overexpressed_one_ranks_first():
    counts = csr_matrix(np.array([[4, 0, 6, 1], [0, 3, 0, 0], [0, 0, 0, 0]], dtype=np.int32))
    medians, size = np.array([1.0, 2.0, 4.0, 0.5]), np.array([11.0, 3.0, 0.0])
    deleted, kept = perturb_counts((counts, size), [0, 2], "delete", medians)
    np.testing.assert_array_equal(deleted.toarray(), [[0, 0, 0, 1], [0, 3, 0, 0], [0] * 4])
    assert deleted.nnz == 2
    assert kept is size
    raised, _ = perturb_counts((counts, size), [1, 2], "overexpress", medians)
    value = raised.toarray() / medians
    np.testing.assert_array_equal(raised.toarray()[:, [0, 3]], counts.toarray()[:, [0, 3]])
    assert (value[:, [1, 2]].min(axis=1) > value[:, [0, 3]].max(axis=1)).all()
    assert raised.has_sorted_indices
    assert counts[0, 0] == 4  # the cells that were given stay


def test_a_gene_that_already_ranks_first_is_not_lowered():
    counts = csr_matrix(np.array([[1000, 10, 5]], dtype=np.int32))
    rows = {(0,): [1000, 10, 5], (0, 2): [1000, 10, 11], (1,): [1000, 1001, 5]}
    for genes, expected in rows.items():
        raised, _ = perturb_counts((counts, np.array([1015.0])), genes, "overexpress", np.ones(3))
        assert raised.toarray().tolist() == [expected]


def test_random_genes_are_matched_and_drawn_once(rng):
    how_seen = np.stack([np.arange(50) / 10, np.zeros(50)], axis=1)
    how_seen[40:] = np.nan
    drawn = matched_random([20, 22], how_seen, 8, rng)
    assert len(drawn) == 8
    for a, b in drawn:
        assert a != b
        assert abs(a - 20) <= 6
        assert abs(b - 22) <= 6
        assert not {a, b} & {20, 22}
    assert sorted({a for a, _ in drawn}) == sorted(a for a, _ in drawn)
    least = matched_random([45], how_seen, 5, rng)  # seen in no cell
    assert sorted(g for (g,) in least) == [0, 1, 2, 3, 4]


def test_random_sets_have_as_many_genes_or_there_are_none(rng):
    how_seen = np.stack([np.arange(50) / 10, np.zeros(50)], axis=1)
    # the nearest one of both is 21
    (drawn,) = matched_random([20, 22], how_seen, 1, rng)
    assert len(set(drawn)) == 2
    many = list(range(25))
    assert {len(set(drawn)) for drawn in matched_random(many, how_seen, 3, rng)} == {25}
    with pytest.raises(AnnotationError, match="reads 24 genes of these cells beside the 26"):
        matched_random(range(26), how_seen, 3, rng)
    with pytest.raises(AnnotationError, match="reads 18 genes .* a comparison needs 19; take"):
        matched_random([0], how_seen[:19], 3, rng)


def test_ranks_are_of_counts_whatever_the_order_of_the_tokens():
    def seen(counts, **learned):
        facts = SimpleNamespace(learned=learned)
        genes = SimpleNamespace(n_genes=counts.shape[1])
        model = SimpleNamespace(facts=facts, vocabulary=genes)
        return detection_and_rank(model, (csr_matrix(counts), counts.sum(axis=1)))

    # as they stand in a row of gene_values, whose order means nothing
    counts = np.array([[1, 0, 9, 3, 0], [2, 0, 8, 2, 0], [1, 0, 7, 0, 4]])
    found = seen(counts)
    share, rank = np.array([1, 1, 2 / 3, 1 / 3]), np.array([17 / 6, 1, 2.25, 2])
    expected = np.stack([share / share.std(), rank / rank.std()], axis=1)
    np.testing.assert_allclose(found[[0, 2, 3, 4]], expected)
    assert np.isnan(found[1]).all()  # in no cell
    order = np.array([4, 2, 0, 1, 3])
    np.testing.assert_allclose(seen(counts[:, order]), found[order])
    medians = np.array([1, 1, 100, 1, 1], dtype=np.float32)
    assert seen(counts, medians=medians)[:, 1].argsort()[-2] == 2  # before the NaN: ranks last


def test_a_symbol_of_several_genes_is_refused():
    vocabulary = Vocabulary(("E1", "E2", "E3", "E4"), ("A", "B", "A", "E2"))
    assert genes_of(vocabulary, ["B", "E3", "E2", "E1"]) == (1, 2, 0)  # the id before the symbol
    with pytest.raises(AnnotationError, match="gene 'A': is the symbol of E1, E3; give one of"):
        genes_of(vocabulary, "A")


@pytest.fixture(scope="module")
def model(planted_run):
    return TrainedModel(planted_run, device="cpu")


@pytest.fixture(scope="module")
def profile(planted_cells, model):
    adata = ad.read_h5ad(planted_cells)[:10, list(model.vocabulary.gene_ids)]
    counts = csr_matrix(adata.X, dtype=np.int32)
    return counts, np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def test_how_genes_are_seen_is_counted(model, profile):
    found, dense = detection_and_rank(model, profile), profile[0].toarray()
    value = dense.astype(np.float32) / model.facts.learned["medians"]
    ranks = pd.DataFrame(value).where(dense > 0).rank(axis=1, ascending=False)  # 1: the highest
    rank = ranks.mean().to_numpy()
    share = (dense > 0).mean(axis=0)
    np.testing.assert_allclose(found, np.stack([share / share.std(), rank / rank.std()], axis=1))


def test_shifts_are_those_of_plain_loops(model, profile):
    gene, toward = 5, torch.nn.functional.normalize(torch.ones(32), dim=0)
    after = perturb_counts(profile, [gene], "delete", np.ones(profile[0].shape[1]))
    before = look(model, profile)
    found, change = shifts(model, profile, before, after, [gene], toward)
    n_genes = profile[0].shape[1]
    gene_shift, goal_shift, changes = [], [], []
    for cell in np.flatnonzero(profile[0].toarray()[:, gene]):
        states = []
        for counts, size in (profile, after):
            state = look(model, (counts[cell], size[cell : cell + 1]))
            states.append({int(k) % n_genes: s.double().numpy()
                           for k, s in zip(state.key, state.states, strict=True)})  # fmt: skip
            states.append(state.probabilities[0])
        old, p, new, q = states
        assert set(old) - set(new) == {gene}
        cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                  for a, b in ((old[g], new[g]) for g in new)]  # fmt: skip
        gene_shift.append(1 - np.mean(cosine))
        x, y = (np.mean([s[g] for g in new], axis=0) for s in (old, new))
        goal_shift.append((y / np.linalg.norm(y) - x / np.linalg.norm(x)) @ toward.numpy())
        changes.append(q - p)
    assert found["n_cells"] == len(changes)
    assert found["gene_shift"] == pytest.approx(np.mean(gene_shift), abs=1e-5)
    assert found["goal_shift"] == pytest.approx(np.mean(goal_shift), abs=1e-5)
    assert found["class_shift"] == pytest.approx(np.abs(changes).sum(1).mean() / 2, abs=1e-5)
    np.testing.assert_allclose(change, np.mean(changes, axis=0), atol=1e-5)


def test_a_planted_gene_moves_the_class_and_others_do_not(planted_run, planted_cells):
    settings = {"cells": ("cell_type", "a"), "goal": ("cell_type", "b"), "max_cells": 20}
    asked = ["G1", "G7", ("G7", "G8")]
    query = TokenQuery(planted_run, planted_cells)
    found = perturb(query, asked, mode="overexpress", n_null=50, **settings)
    table = found.table
    assert table.index.tolist() == ["G1", "G7", "G7+G8"]
    assert (table["n_cells"] == 20).all()
    assert found.classes["b"]["G1"] > 0.1
    assert abs(found.classes["b"][["G7", "G7+G8"]]).max() < 0.5 * found.classes["b"]["G1"]
    np.testing.assert_allclose(found.classes.sum(axis=1), 0, atol=1e-6)
    for statistic in ("class_shift", "goal_shift"):
        assert table[f"{statistic}_fdr"]["G1"] < 0.1
        assert table[f"{statistic}_p"]["G1"] == pytest.approx(1 / 51)  # none of the random ones
        assert table[f"{statistic}_p"]["G7"] > 0.05
    assert len(found.null) == 150
    assert found.messages == [
        "n_null: with 50 random perturbations beside each of 3, the FDR of a single one that "
        "shifts more than all random ones is 0.059; for 0.05 take n_null 60, or perturb fewer "
        "genes"
    ]


def test_a_whole_panel_is_screened_among_itself(told_donors, planted_cells):
    query = TokenQuery(told_donors, planted_cells)
    genes = query.model.vocabulary.gene_ids
    found = perturb(query, genes, max_cells=4)
    is_read = query.model.facts.learned["is_variable"]
    assert is_read.sum() == 40
    assert ((found.table["gene_shift"] > 1e-6) == is_read).all()
    # an effect is judged against others that the network reads, all but the gene's own
    assert (found.null["gene_shift"] > 1e-6).all()
    n_random = found.null.groupby(level=0, sort=False).size()
    assert n_random.tolist() == (40 - is_read).tolist()
    (message,) = found.messages
    assert message.endswith("is 1.500; for 0.05 perturb fewer genes: these cells have no others "
                            "that could be random ones")  # fmt: skip
    with pytest.raises(AnnotationError, match="n_null: found 4, 0; expected at least 1 of each"):
        perturb(query, genes, max_cells=4, n_null=0)


def test_one_call_writes_table_and_figure(planted_run, planted_cells, tmp_path, capsys):
    output = tmp_path / "shifts.csv"
    words = [str(planted_run), str(planted_cells), str(output)]
    few = ["--max-cells", "7", "--n-null", "20", "--seed", "1", "--device", "cpu"]
    assert main([*words, "--genes", "G0", "G0+G3", "--cells", "cell_type=a", *few]) == 0
    table = pd.read_csv(output, index_col=0)
    assert (table["n_cells"] == 7).all()
    assert table["gene_shift_p"].min() == pytest.approx(1 / 21)
    assert "the FDR of a single one that shifts more" in capsys.readouterr().out
    assert table["change of a"]["G0"] < 0
    assert output.with_suffix(".png").stat().st_size > 5000
    assert main([*words, "--genes", "G0", "NOPE"]) == 2
    assert "gene 'NOPE': is not in the run's vocabulary" in capsys.readouterr().err
    query = TokenQuery(planted_run, planted_cells)
    with pytest.raises(AnnotationError, match="no cell has 'c'"):
        perturb(query, ["G0"], cells=("cell_type", "c"))
    with pytest.raises(AnnotationError, match="mode: found 'remove'"):
        perturb(query, ["G0"], mode="remove")
