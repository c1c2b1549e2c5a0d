"""New cells get names, and each cell its own, whoever stands beside it."""

import anndata as ad
import fsspec
import numpy as np
import pytest

from dataset.encoded_folder import EncodedFolder
from evaluation.annotate import AnnotationError, TrainedModel, annotate
from evaluation.calibration import apply_temperature
from evaluation.run_folder import RunFolder, RunFolderError


@pytest.fixture
def query(tmp_path, synthetic_h5ad):
    """Return a function that writes the synthetic cells, changed and without labels."""

    def write(change=lambda adata: adata, name="query"):
        adata = ad.read_h5ad(synthetic_h5ad)
        adata.obs = adata.obs[["donor"]]
        path = tmp_path / f"{name}.h5ad"
        change(adata).write_h5ad(path)
        return path

    return write


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
    assert found.match.rate == 1


def test_same_answer_as_in_training(network_run, encoded_folder, query, tmp_path):
    found = annotate(network_run, query(), tmp_path / "annotated.h5ad")
    test = RunFolder(network_run).predictions("test")
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


def test_missing_genes_are_counted(network_run, query, tmp_path):
    genes = np.random.default_rng(0).permutation(200)[:150]
    part = annotate(network_run, query(lambda a: a[:, genes]), tmp_path / "b.h5ad")
    assert part.match.rate == pytest.approx(0.75, abs=0.01)
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


def test_normalised_values_are_refused(network_run, query, tmp_path):
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


def test_a_run_without_weights_says_so(tmp_path, make_run, query):
    run = make_run("trees", "gradient_boosting_baron_human")
    with pytest.raises(AnnotationError, match="keeps no weights"):
        annotate(run, query(), tmp_path / "a.h5ad")


def test_no_run_no_answer(tmp_path, query):
    with pytest.raises(RunFolderError, match="no such run"):
        annotate(tmp_path / "nothing", query(), tmp_path / "a.h5ad")


def test_cells_without_counts_are_named_but_uncertain(network_run, query, tmp_path):
    def empty_first(adata):
        counts = adata.X.tolil()
        counts[0] = 0
        adata.X = counts.tocsr()
        return adata

    found = annotate(network_run, query(empty_first), tmp_path / "a.h5ad")
    assert np.isfinite(found.probabilities).all()
    assert TrainedModel(network_run).threshold > 0
