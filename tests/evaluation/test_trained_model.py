"""A run answers for new cells as it did for its test cells, and not at all if it is broken."""

import json
import shutil
from functools import cache

import anndata as ad
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, hstack

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.reading.cells import Cells
from dataset.sources import synthetic_cells
from dataset.store.checksums import write_checksums
from dataset.store.encoded_folder import EncodedFolder
from evaluation.annotate import AnnotationError, TrainedModel, annotate
from evaluation.calibration import apply_temperature, confidence_threshold
from training.runs import Run

HISTORIES = {"alone": None, "layer": {"layer": "before"}, "time": {"n_ancestors": 3}}
BASELINES = ("majority", "logistic_regression", "linear_svm", "knn", "gradient_boosting")
MEMBERS = ("knn", "alone", "logistic_regression", "layer", "gradient_boosting", "time")
TEST_DONOR = "donor_3"


@pytest.fixture(scope="module")
def two_times(tmp_path_factory):
    """Write cells of two times, with other profiles in a layer; return the path.

    Half of what the test donor expresses is of genes that no train cell has, so that a library
    size over the known genes alone would be another one.
    """
    rng = np.random.default_rng(3)
    adata = synthetic_cells(rng, n_cells=240, n_genes=60, n_types=3, n_times=2)
    in_test = (adata.obs["donor"] == TEST_DONOR).to_numpy()[:, None]
    unknown = csr_matrix(rng.poisson(100, (adata.n_obs, 5)) * in_test)
    before = csr_matrix(rng.poisson(1.5, adata.shape) * rng.random(adata.shape))
    more = ad.AnnData(csr_matrix(hstack([adata.X, unknown]), dtype=np.float32), obs=adata.obs)
    counts = more.X.tolil()
    counts[np.flatnonzero(adata.obs["donor"] == "donor_2")[0], 7:] = 0  # the poorest, in val
    more.X = counts.tocsr()
    more.var_names = [*adata.var_names, *(f"UNKNOWN{i}" for i in range(5))]
    more.layers["before"] = csr_matrix(hstack([before, unknown / 7]))
    path = tmp_path_factory.mktemp("two_times") / "cells.h5ad"
    more.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def run_of(two_times, make_run, tmp_path_factory):
    """Return a function: kind of history or of model -> folder of the finished run."""
    folder = tmp_path_factory.mktemp("data")

    @cache
    def encoded(history):
        config = PreprocessConfig(
            name=history,
            input=str(two_times),
            label_key="cell_type",
            time_key="time",
            quality_control={"min_genes": 5},
            split={"key": "donor", "val": ["donor_2"], "test": [TEST_DONOR]},
            tokenizer={"kind": "rank", "n_tokens": 40, "previous": HISTORIES[history]},
            data_dir=str(folder),
        )
        return encode(config, progress=False)

    @cache
    def run(kind):
        if kind == "committee":  # of other tokenizers, histories and sizes
            members = f"model.members=[{', '.join(str(run(member)) for member in MEMBERS)}]"
            data = encoded("alone")
            return make_run("two_times_committee", "committee_baron_human", members, data=data)
        if kind in BASELINES:
            quick = ["model.max_rounds=20"] if kind == "gradient_boosting" else []
            name = f"two_times_{kind}"
            return make_run(name, f"{kind}_baron_human", *quick, data=encoded("layer"))
        return make_run(f"two_times_{kind}", "smoke", "optim.max_epochs=3", data=encoded(kind))

    return run


@pytest.mark.parametrize("kind", [*HISTORIES, *BASELINES, "committee"])
def test_the_answers_are_those_of_the_test_cells(kind, run_of, two_times, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.annotate.BLOCK_CELLS", 70)  # 240 cells are several blocks
    cells = ad.read_h5ad(two_times)
    rng = np.random.default_rng(0)
    cells = cells[rng.permutation(cells.n_obs)][:, rng.permutation(cells.n_vars)].copy()
    cells.write_h5ad(tmp_path / "query.h5ad")
    found = annotate(
        run_of(kind), tmp_path / "query.h5ad", tmp_path / "annotated.h5ad", time_key="time"
    )
    test = Run(run_of(kind)).predictions("test")
    rows = found.cells.index.get_indexer(test.cell_names)
    assert (rows >= 0).all()
    expected = apply_temperature(test.probabilities, found.temperature)
    np.testing.assert_allclose(found.probabilities[rows], expected, atol=1e-5)
    uncalibrated = apply_temperature(found.probabilities[rows], 1 / found.temperature)
    np.testing.assert_allclose(uncalibrated, test.probabilities, atol=1e-5)
    if kind in HISTORIES or kind == "committee":
        np.testing.assert_allclose(found.embedding[rows], test.embeddings, atol=1e-4)
    if kind != "majority":  # so that equal rows would not do, nor an order of their own
        assert len(np.unique(expected.round(3), axis=0)) > 10
    if kind not in ("majority", "linear_svm"):  # whose scores were scaled to val in training
        assert abs(found.temperature - 1) > 1e-3


def test_a_committee_needs_no_folder_but_its_own(run_of, two_times, tmp_path):
    names = ("here", "there")
    here, there = (tmp_path / name for name in names)
    shutil.copytree(run_of("committee"), here)
    query = {"query": two_times, "time_key": "time"}
    before = annotate(here, output=tmp_path / "before.h5ad", **query)
    config = yaml.safe_load((here / "config.yaml").read_text())
    config["model"]["members"] = [f"{tmp_path}/gone/{path}" for path in config["model"]["members"]]
    (here / "config.yaml").write_text(yaml.safe_dump(config))  # no member lies there
    write_checksums(here)
    here.rename(there)
    after = annotate(there, output=tmp_path / "after.h5ad", **query)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)


def test_a_cell_is_told_how_many_members_agree(run_of, two_times, tmp_path):
    found = annotate(run_of("committee"), two_times, tmp_path / "a.h5ad", time_key="time")
    of_each = [
        annotate(run_of(kind), two_times, tmp_path / f"{kind}.h5ad", time_key="time").cells
        for kind in MEMBERS
    ]
    named = found.cells["predicted_cell_type"].astype(str)
    same = [cells["predicted_cell_type"].astype(str) == named for cells in of_each]
    np.testing.assert_allclose(found.cells["members_agree"], np.mean(same, axis=0))
    assert found.cells["members_agree"].nunique() > 2
    assert "members_agree" in ad.read_h5ad(tmp_path / "a.h5ad").obs
    assert "members_agree" not in of_each[0]


def test_each_block_of_the_query_is_read_once(run_of, two_times, tmp_path, monkeypatch):
    read, blocks = [], Cells.blocks

    def watch(self, *args):
        for start, block in blocks(self, *args):
            read.append((self.counts_location, start))
            yield start, block

    monkeypatch.setattr("evaluation.annotate.BLOCK_CELLS", 70)
    monkeypatch.setattr(Cells, "blocks", watch)
    annotate(run_of("committee"), two_times, tmp_path / "a.h5ad", time_key="time")
    assert sorted(read) == [(f, s) for f in ("X", "layers/before") for s in (0, 70, 140, 210)]


def test_the_poorest_train_cell_is_one_of_train(run_of):
    model = TrainedModel(run_of("alone"))
    data = EncodedFolder(model.config.data)
    poorest = {split: data.expression(split)[0].getnnz(axis=1).min() for split in ("train", "val")}
    assert model.min_detected_genes == poorest["train"] > poorest["val"]
    assert model.quality_control.min_genes == 5


def test_a_query_without_the_layer_is_refused(run_of, two_times, tmp_path):
    cells = ad.read_h5ad(two_times)
    cells.layers["after"] = cells.layers.pop("before")
    cells.write_h5ad(tmp_path / "query.h5ad")
    with pytest.raises(ValueError, match="no layer 'before'; layers: after"):
        annotate(run_of("layer"), tmp_path / "query.h5ad", tmp_path / "annotated.h5ad")
    assert not list(tmp_path.glob("*annotated*"))
    annotate(run_of("knn"), tmp_path / "query.h5ad", tmp_path / "annotated.h5ad")  # reads none


def test_the_profiles_fed_are_as_many_as_the_network_was_trained_on(run_of):
    counts, library_size = csr_matrix(np.eye(3, 60, dtype=np.int32)), np.ones(3)
    two = TrainedModel(run_of("layer"))
    with pytest.raises(AnnotationError, match=r"trained on 2 .* given 1"):
        two.predict([(counts, library_size)])
    one = TrainedModel(run_of("alone"))
    with pytest.raises(AnnotationError, match=r"trained on 1 .* given 2"):
        one.predict([(counts, library_size)] * 2)


def test_times_are_needed_and_known(run_of, two_times, tmp_path):
    cells = ad.read_h5ad(two_times)
    cells.obs["later"] = cells.obs["time"] + 5
    cells.obs["partly"] = np.where(np.arange(cells.n_obs) < 7, np.nan, cells.obs["time"])
    cells.write_h5ad(tmp_path / "query.h5ad")
    for key, sentence in (
        (None, "give time_key.*donor"),
        ("stage", "no obs column 'stage'"),
        ("later", "time points 5, 6 are not known.*expected 0, 1"),
        ("partly", "7 of 240 cells have no time point"),
    ):
        with pytest.raises(ValueError, match=sentence):
            annotate(
                run_of("time"), tmp_path / "query.h5ad", tmp_path / "annotated.h5ad", time_key=key
            )
    assert not list(tmp_path.glob("*annotated*"))


def test_a_control_with_shuffled_histories_names_no_cells(run_of, changed_run):
    def shuffle(meta):
        meta["tokenizer"]["previous"]["shuffle"] = True

    with pytest.raises(AnnotationError, match="control"):
        TrainedModel(changed_run(run_of("layer"), meta=shuffle))


def test_a_history_that_is_gone_is_missed(run_of, changed_run):
    run = changed_run(run_of("time"))
    (run / "data" / "history").rename(run / "data" / "elsewhere")
    changed_run.sum_up(run)
    with pytest.raises(AnnotationError, match="data/history"):
        TrainedModel(run)


def test_temperature_and_threshold_are_those_of_val(network_run, changed_run):
    def overconfident(arrays):
        n_cells, n_classes = arrays["probabilities"].shape
        arrays["probabilities"] = np.full((n_cells, n_classes), 0.01 / (n_classes - 1), "float32")
        named = np.where(np.arange(n_cells) % 3 > 0, arrays["labels"], (arrays["labels"] + 1) % 4)
        sure = np.linspace(0.6, 0.99, n_cells)
        arrays["probabilities"][:] = ((1 - sure) / (n_classes - 1))[:, None]
        arrays["probabilities"][np.arange(n_cells), named] = sure

    before = TrainedModel(network_run)
    of_test = TrainedModel(changed_run(network_run, predictions={"test": overconfident}))
    assert (of_test.temperature, of_test.threshold) == (before.temperature, before.threshold)

    def remember(metrics):
        metrics["temperature"] = 1.7

    changed = changed_run(network_run, predictions={"val": overconfident}, metrics=remember)
    of_val = TrainedModel(changed)
    val = of_val.run.predictions("val")
    assert of_val.temperature == 1.7  # as stored, and not fitted again
    calibrated = apply_temperature(val.probabilities, of_val.temperature)
    assert of_val.threshold == confidence_threshold(val.labels, calibrated)
    assert abs(of_val.threshold - confidence_threshold(val.labels, val.probabilities)) > 0.05


@pytest.mark.parametrize("run", ["network_run", "baseline_run"])
def test_weights_that_are_no_numbers_are_refused(run, request, changed_run):
    def spoil(path):
        arrays = load_file(path)
        name = sorted(name for name, values in arrays.items() if values.ndim == 2)[0]
        arrays[name][0, 0] = np.nan
        save_file(arrays, path)

    run = changed_run(request.getfixturevalue(run))
    spoil(run / "model.safetensors")
    changed_run.sum_up(run)
    with pytest.raises(ValueError, match=r"model\.safetensors: .* NaN or infinite"):
        TrainedModel(run)


def test_answers_that_are_no_numbers_are_refused(network_run, query, tmp_path, monkeypatch):
    class NotANumber:
        def predict_proba(self, counts, library_size):
            return np.full((counts.shape[0], 4), np.nan)

    model = TrainedModel(network_run)
    model.baseline = NotANumber()
    with pytest.raises(AnnotationError, match="2 of 2 cells .* NaN"):
        model.predict([(csr_matrix((2, 200), dtype=np.int32), np.zeros(2))])


def test_val_probabilities_that_are_no_numbers_are_refused(network_run, changed_run):
    def spoil(arrays):
        arrays["probabilities"][3] = np.nan

    with pytest.raises(ValueError, match="predictions_val"):
        TrainedModel(changed_run(network_run, predictions={"val": spoil}))


def test_weights_of_another_baseline_are_refused(network_run, baseline_run, changed_run):
    run = changed_run(baseline_run)
    path = run / "model.safetensors"
    arrays = load_file(path)
    for changed in (
        {"frequencies": np.ones(4, np.float32)},
        arrays | {"weights": np.ones((7, 4), np.float32)},
        arrays | {name: values[..., :3].copy() for name, values in arrays.items()},
    ):
        save_file(changed, path)
        changed_run.sum_up(run)
        with pytest.raises(
            AnnotationError, match="is not this run's logistic_regression|cannot be used"
        ):
            TrainedModel(run)


def test_a_run_of_an_older_version_says_so(network_run, changed_run):
    with pytest.raises(AnnotationError, match="quality_control"):
        TrainedModel(changed_run(network_run, meta=lambda meta: meta.pop("quality_control")))


@pytest.mark.parametrize("device", ["tpu", "cuda:0", "", None])
def test_an_unknown_device_is_named(network_run, device):
    with pytest.raises(ValueError, match="device"):
        TrainedModel(network_run, device=device)


def permute_vocabulary(run):
    path = run / "data" / "vocabulary.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"gene_ids": content["gene_ids"][::-1]}))


def reverse_class_names(run):
    path = run / "data" / "class_names.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))


def take_other_weights(run):
    path = run / "model.safetensors"
    rng = np.random.default_rng(0)
    arrays = load_file(path)
    save_file({name: rng.permutation(values) for name, values in arrays.items()}, path)


def halve_the_heads(run):
    path = run / "config.yaml"
    text = path.read_text()
    assert "n_heads: 2" in text
    path.write_text(text.replace("n_heads: 2", "n_heads: 1"))


def lower_the_thresholds(run):
    path = run / "data" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_detected_genes": 0}))


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (permute_vocabulary, "vocabulary.json"),
        (reverse_class_names, "class_names.json"),
        (take_other_weights, "model.safetensors"),
        (halve_the_heads, "config.yaml"),
        (lower_the_thresholds, "meta.json"),
    ],
)
def test_content_that_fits_by_shape_alone_is_refused(change, file, network_run, query, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(network_run, run)
    annotate(run, query(), tmp_path / "before.h5ad")
    change(run)
    with pytest.raises(ValueError, match=f"{file} is changed"):
        annotate(run, query(), tmp_path / "after.h5ad")
    assert not (tmp_path / "after.h5ad").exists()


@pytest.mark.parametrize("number", [-5, True, 2.7, float("inf"), 10**30, "many", None])
def test_a_poorest_cell_of_no_number_of_genes_is_refused(baseline_run, changed_run, number):
    run = changed_run(baseline_run, meta=lambda meta: meta.update(min_detected_genes=number))
    with pytest.raises(AnnotationError, match="does not say which cells the run was trained on"):
        TrainedModel(run)


def test_weights_of_another_network_are_said_in_a_sentence(network_run, changed_run):
    run = changed_run(network_run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["n_layers"] += 1
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    changed_run.sum_up(run)
    with pytest.raises(AnnotationError, match=r"weights of another model.*train again"):
        TrainedModel(run)
