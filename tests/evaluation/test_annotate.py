"""New cells get names, and each cell its own, whoever stands beside it."""

import json
import warnings

import anndata as ad
import fsspec
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from dataset.encode import encode
from dataset.reading import cell_table
from dataset.reading.cells import Cells
from dataset.store.encoded_folder import EncodedFolder
from evaluation.annotate import AnnotationError, TrainedModel, annotate
from evaluation.calibration import apply_temperature
from training.runs import Run, RunFolderError


@pytest.mark.parametrize("run", ["network_run", "baseline_run"])
def test_types_are_right_and_the_file_keeps_what_it_had(
    run, request, query, tmp_path, synthetic_h5ad
):
    output = tmp_path / "annotated.h5ad"
    found = annotate(request.getfixturevalue(run), query(), output)
    written, truth = ad.read_h5ad(output), ad.read_h5ad(synthetic_h5ad)
    assert np.mean(written.obs["predicted_cell_type"] == truth.obs["cell_type"]) > 0.9
    assert (written.X != truth.X).nnz == 0
    assert list(written.obs_names) == list(truth.obs_names)
    assert "donor" in written.obs
    probabilities = written.obsm["class_probabilities"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(written.obs["confidence"], probabilities.max(axis=1))
    names = np.array(written.uns["nanocell"]["class_names"])[probabilities.argmax(axis=1)]
    assert (names == written.obs["predicted_cell_type"].astype(str)).all()
    assert ("X_nanocell" in written.obsm) == (run == "network_run")
    assert found.match.match_rate == 1


def test_same_answer_as_in_training(network_run, encoded_folder, query, tmp_path):
    found = annotate(network_run, query(), tmp_path / "annotated.h5ad")
    test = Run(network_run).predictions("test")
    expected = apply_temperature(test.probabilities, found.temperature)
    rows = found.cells.index.get_indexer(test.cell_names)
    np.testing.assert_allclose(found.probabilities[rows], expected, atol=2e-5)
    np.testing.assert_array_equal(
        test.labels, np.asarray(EncodedFolder(encoded_folder).split("test").labels)
    )


def test_a_query_at_an_address_gives_the_same_file(baseline_run, query, tmp_path):
    fsspec.filesystem("memory").pipe("/cells/query.h5ad", query().read_bytes())
    annotate(baseline_run, query(), tmp_path / "a.h5ad")
    annotate(baseline_run, "memory://cells/query.h5ad", tmp_path / "b.h5ad")
    one, other = (ad.read_h5ad(tmp_path / name) for name in ("a.h5ad", "b.h5ad"))
    assert one.obs.equals(other.obs)
    assert (one.X != other.X).nnz == 0


def test_a_cell_does_not_depend_on_the_others(network_run, query, tmp_path):
    order = np.random.default_rng(0).permutation(300)
    whole = annotate(network_run, query(), tmp_path / "a.h5ad", batch_size=64)
    alone = annotate(network_run, query(lambda a: a[order[:7]]), tmp_path / "b.h5ad", batch_size=1)
    mixed = annotate(network_run, query(lambda a: a[order]), tmp_path / "c.h5ad", batch_size=37)
    for part, rows in ((alone, order[:7]), (mixed, order)):
        np.testing.assert_allclose(part.probabilities, whole.probabilities[rows], atol=1e-5)
        np.testing.assert_allclose(part.embedding, whole.embedding[rows], atol=1e-4)


def test_the_order_of_the_genes_does_not_matter(network_run, query, tmp_path):
    genes = np.random.default_rng(0).permutation(200)
    whole = annotate(network_run, query(), tmp_path / "a.h5ad")
    moved = annotate(network_run, query(lambda a: a[:, genes]), tmp_path / "b.h5ad")
    np.testing.assert_allclose(moved.probabilities, whole.probabilities, atol=1e-5)


def test_cells_of_another_species_are_read_by_their_orthologs(network_run, query, tmp_path):
    def rename(adata):
        other = adata.copy()
        other.var_names = [f"m{name}" for name in adata.var_names]
        pairs = {"human": adata.var_names, "mouse": other.var_names}
        pd.DataFrame(pairs).to_csv(tmp_path / "genes.csv", index=False)
        return other

    own = annotate(network_run, query(), tmp_path / "a.h5ad")
    renamed = query(rename)
    with pytest.raises(AnnotationError, match="genes"):
        annotate(network_run, renamed, tmp_path / "b.h5ad")
    genes = tmp_path / "genes.csv"
    found = annotate(network_run, renamed, tmp_path / "b.h5ad", gene_map=genes)
    np.testing.assert_array_equal(found.probabilities, own.probabilities)
    assert "mGENE0" in ad.read_h5ad(tmp_path / "b.h5ad").var_names  # the file keeps its names


def test_a_run_that_knows_some_genes_gives_cells_the_library_size_of_these(
    preprocess_config, make_run, tmp_path
):
    cells = ad.read_h5ad(preprocess_config.input)
    some = cells.var_names[::2]
    pd.DataFrame({"a": some, "b": some}).to_csv(tmp_path / "genes.csv", index=False)
    settings = {"gene_map": str(tmp_path / "genes.csv"), "data_dir": str(tmp_path)}
    data = encode(preprocess_config.model_copy(update=settings), progress=False)
    run = make_run("some_genes", "logistic_regression_baron_human", data=data)
    expected = Run(run).predictions("test")
    cells[expected.cell_names].write_h5ad(tmp_path / "query.h5ad")  # with all its genes
    found = annotate(run, tmp_path / "query.h5ad", tmp_path / "annotated.h5ad")
    calibrated = apply_temperature(expected.probabilities, Run(run).metrics["temperature"])
    np.testing.assert_allclose(found.probabilities, calibrated, atol=1e-5)


def test_missing_genes_are_counted(network_run, query, tmp_path):
    genes = np.random.default_rng(0).permutation(200)[:150]
    part = annotate(network_run, query(lambda a: a[:, genes]), tmp_path / "b.h5ad")
    assert part.match.match_rate == pytest.approx(0.75, abs=0.01)
    assert len(part.match.missing) == 50
    assert np.isfinite(part.probabilities).all()


def test_other_genes_stop_it_with_their_names(network_run, query, tmp_path):
    def rename(adata):
        adata.var_names = [f"ZZZ{i}" for i in range(adata.n_vars)]
        adata.var = adata.var[[]]
        return adata

    with pytest.raises(AnnotationError, match=r"0\.0%.*GENE.*ZZZ0"):
        annotate(network_run, query(rename), tmp_path / "a.h5ad")
    assert not list(tmp_path.glob("*a.h5ad*"))


def test_normalized_values_are_refused(network_run, query, tmp_path):
    def normalize(adata):
        adata.X = adata.X.multiply(1.37).tocsr()
        return adata

    with pytest.raises(ValueError, match=r"query\.h5ad"):
        annotate(network_run, query(normalize), tmp_path / "a.h5ad")


def test_the_query_is_never_overwritten(network_run, query):
    path = query()
    with pytest.raises(AnnotationError, match="query itself"):
        annotate(network_run, path, path)


def test_a_new_type_is_less_sure(network_run, query, tmp_path):
    def scramble(adata):
        genes = np.random.default_rng(0).permutation(adata.n_vars)
        adata.X = adata.X[:, genes]
        return adata

    known = annotate(network_run, query(), tmp_path / "a.h5ad")
    strange = annotate(network_run, query(scramble), tmp_path / "b.h5ad")
    assert strange.cells["confidence"].mean() < known.cells["confidence"].mean()
    assert strange.cells["uncertain"].mean() > known.cells["uncertain"].mean()


def test_no_run_no_answer(tmp_path, query):
    with pytest.raises(RunFolderError, match="no such run"):
        annotate(tmp_path / "nothing", query(), tmp_path / "a.h5ad")


def test_cells_the_run_knows_nothing_of_are_uncertain_by_rule(baseline_run, query, tmp_path):
    model = TrainedModel(baseline_run)
    assert model.min_detected_genes > 10

    def thin(adata):
        counts = adata.X.toarray()
        counts[0] = 0
        for cell, n_genes in ((1, 1), (2, 4), (3, 10), (4, model.min_detected_genes - 1)):
            counts[cell, np.flatnonzero(counts[cell])[n_genes:]] = 0
            counts[cell] *= 1000  # counts are no lack of it
        adata.X = csr_matrix(counts)
        return adata

    cells = annotate(baseline_run, query(thin), tmp_path / "a.h5ad").cells
    assert cells["uncertain"].iloc[:5].all()
    assert cells["uncertain_reason"].iloc[:5].tolist() == [
        "no counts",
        "fewer than 5 genes",
        "fewer than 5 genes",
        "fewer genes than any training cell",
        "fewer genes than any training cell",
    ]


def test_few_genes_of_the_vocabulary_are_few_genes(baseline_run, query, tmp_path):
    def unknown_genes(adata):
        counts = adata.X.toarray()
        counts[0, np.flatnonzero(counts[0])[3:]] = 0
        more = ad.AnnData(np.hstack([counts, np.ones((len(counts), 100), np.float32)]))
        more.var_names = [*adata.var_names, *(f"UNKNOWN{i}" for i in range(100))]
        return more

    cells = annotate(baseline_run, query(unknown_genes), tmp_path / "a.h5ad").cells
    assert cells["uncertain_reason"].iloc[0] == "fewer genes than any training cell"
    assert (cells["uncertain_reason"].iloc[1:] != "fewer genes than any training cell").all()


def test_quality_control_of_the_run_flags_cells_and_drops_none(
    baseline_run, changed_run, query, synthetic_h5ad, tmp_path
):
    adata = ad.read_h5ad(synthetic_h5ad)
    counts = adata.X.toarray()
    n_genes, total = (counts > 0).sum(axis=1), counts.sum(axis=1)
    percent = 100 * counts[:, -2:].sum(axis=1) / total
    limits = {
        "min_genes": int(np.quantile(n_genes, 0.1)),
        "max_genes": int(np.quantile(n_genes, 0.9)),
        "min_counts": int(np.quantile(total, 0.2)),
        "max_percent_mitochondrial": float(np.quantile(percent, 0.9)),
    }

    def set_limits(meta):
        assert meta["quality_control"]["min_genes"] == 5
        meta["quality_control"] |= limits

    run = changed_run(baseline_run, meta=set_limits)
    before = annotate(baseline_run, query(), tmp_path / "a.h5ad")
    after = annotate(run, query(), tmp_path / "b.h5ad")
    outside = {
        f"fewer than {limits['min_counts']} counts": total < limits["min_counts"],
        f"fewer than {limits['min_genes']} genes": n_genes < limits["min_genes"],
        f"more than {limits['max_genes']} genes": n_genes > limits["max_genes"],
        f"more than {limits['max_percent_mitochondrial']:g} % mitochondrial counts": percent
        > limits["max_percent_mitochondrial"],
    }
    expected = before.cells["uncertain_reason"].astype(str).to_numpy(dtype=object)
    for reason, cells in reversed(outside.items()):
        assert 0 < cells.sum() < 100
        expected[cells] = reason
    assert after.cells["uncertain_reason"].tolist() == expected.tolist()
    assert (after.cells["uncertain"] == (expected != "")).all()
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    written = ad.read_h5ad(tmp_path / "b.h5ad").obs
    assert written["uncertain_reason"].tolist() == expected.tolist()
    assert (written["uncertain"] == (expected != "")).all()


def test_mitochondrial_genes_are_known_by_id_too(baseline_run, changed_run, query, tmp_path):
    """Their symbols may stand in the vocabulary alone, or nowhere."""

    def limit(meta):
        meta["quality_control"]["max_percent_mitochondrial"] = 1e-6

    run = changed_run(baseline_run, meta=limit)
    path = run / "data" / "vocabulary.json"
    content = json.loads(path.read_text())
    content["gene_ids"] = [f"ENSG{i:011d}" for i in range(len(content["gene_ids"]))]
    path.write_text(json.dumps(content))
    changed_run.sum_up(run)

    def ids_alone(adata):
        order = {symbol: i for i, symbol in enumerate(content["gene_symbols"])}
        adata.var_names = [content["gene_ids"][order[name]] for name in adata.var_names]
        adata.var = adata.var[[]]
        return adata

    by_id = annotate(run, query(ids_alone), tmp_path / "a.h5ad")
    assert (by_id.cells["uncertain_reason"] == "more than 1e-06 % mitochondrial counts").any()
    without = query(lambda adata: adata[:, :-2].copy(), "without")
    found = annotate(run, without, tmp_path / "b.h5ad")
    assert any("max_percent_mitochondrial" in message for message in found.messages)
    assert not found.cells["uncertain_reason"].str.contains("mitochondrial").any()


def test_low_confidence_is_below_the_threshold(network_run, query, tmp_path):
    found = annotate(network_run, query(), tmp_path / "a.h5ad")
    low = found.cells["confidence"] < found.threshold
    assert 0 < low.sum() < len(low) / 4
    assert (found.cells["uncertain"] == low).all()
    assert (found.cells["uncertain_reason"][low] == "low confidence").all()
    assert (found.cells["uncertain_reason"][~low] == "").all()


@pytest.mark.parametrize("rate", [0, 0.0, -1, 1.01, float("nan"), float("inf"), "half", None])
def test_a_match_rate_that_asks_for_nothing_is_refused(baseline_run, query, tmp_path, rate):
    with pytest.raises(AnnotationError, match="min_match_rate"):
        annotate(baseline_run, query(), tmp_path / "a.h5ad", min_match_rate=rate)


def test_no_gene_in_common_is_refused_at_any_rate(baseline_run, query, tmp_path):
    def rename(adata):
        adata.var_names = [f"ZZZ{i}" for i in range(adata.n_vars)]
        adata.var = adata.var[[]]
        return adata

    with pytest.raises(AnnotationError, match=r"0\.0%"):
        annotate(baseline_run, query(rename), tmp_path / "a.h5ad", min_match_rate=1e-300)


@pytest.mark.parametrize("size", [0, -3, 1.5, "64", None])
def test_a_batch_size_that_is_none_is_refused(baseline_run, query, tmp_path, size):
    with pytest.raises(AnnotationError, match="batch_size"):
        annotate(baseline_run, query(), tmp_path / "a.h5ad", batch_size=size)


def test_a_gene_that_occurs_twice_counts_once_with_all_its_counts(baseline_run, query, tmp_path):
    def split_genes(adata):
        counts = adata.X.toarray()
        half = np.floor(counts[:, :50] / 2)
        parts = np.hstack([half, counts[:, :50] - half, counts[:, 50:]])
        names = [*adata.var_names[:50], *adata.var_names]
        twice = ad.AnnData(csr_matrix(parts.astype(np.float32)), obs=adata.obs)
        twice.var_names = names
        return twice

    whole = annotate(baseline_run, query(), tmp_path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, of names that are not unique
        path = query(split_genes)
    parts = annotate(baseline_run, path, tmp_path / "b.h5ad")
    assert parts.match.match_rate == 1
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=1e-6)


def test_obs_is_not_read_as_a_whole(baseline_run, query, tmp_path, monkeypatch):
    for name in ("column", "stored_column"):  # a baseline needs none of them
        monkeypatch.setattr(Cells, name, lambda *_, **__: pytest.fail("a column of obs was read"))
    whole = lambda *_: pytest.fail("all of obs was read")  # noqa: E731
    monkeypatch.setattr(cell_table, "read_table", whole)
    found = annotate(baseline_run, query(), tmp_path / "a.h5ad")
    assert list(found.cells.index[:2]) == ["cell_0", "cell_1"]
