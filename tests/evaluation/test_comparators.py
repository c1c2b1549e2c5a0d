"""A comparator's run is a run like any other; that of one which saw its cells is marked."""

import re
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.base import ConfigError
from dataset.store.checksums import write_checksums
from dataset.store.encoded_folder import EncodedFolder
from evaluation import comparison_plots
from evaluation.annotate import AnnotationError, TrainedModel
from evaluation.compare import compare_runs
from evaluation.results import summary, write_results
from evaluation.verdicts import verdict
from models.comparators.scanvi import ScANVIConfig
from training.committee import fit_committee
from training.config import TrainConfig
from training.runs import Run

LABELS = {split: np.arange(400) % 3 for split in ("val", "test")}


def probabilities(n_wrong):
    """Return probabilities of which so many cells are wrong."""
    classes = LABELS["val"].copy()
    classes[:n_wrong] = (classes[:n_wrong] + 1) % 3
    return dict.fromkeys(("val", "test"), 0.9 * np.eye(3)[classes] + 0.1 / 3)


@pytest.fixture
def comparison(write_run):
    for name, kind, n_wrong in (
        ("net", "rank_transformer", 30),
        ("linear", "linear_svm", 60),
        ("celltypist", "celltypist", 20),
        ("lightgbm", "lightgbm", 40),
        ("scanvi", "scanvi", 10),
    ):
        folder = write_run(name, kind=kind, labels=LABELS, probabilities=probabilities(n_wrong))
    (comparison,) = compare_runs(folder.parent, n_resamples=50)
    return comparison


@pytest.fixture
def seen(monkeypatch):
    """Let scANVI answer without its package; return what it was given each time."""
    given = []

    def fit_predict(self, cells, batches, n_classes, seed, device):
        given.append((cells, batches))
        own = np.asarray(cells.counts.sum(axis=1)).ravel() % n_classes  # tells cells apart
        return np.eye(n_classes)[own.astype(int)] * 0.9 + 0.1 / n_classes

    monkeypatch.setattr(ScANVIConfig, "fit_predict", fit_predict)
    monkeypatch.setattr(ScANVIConfig, "packages", ())
    monkeypatch.setattr(ScANVIConfig, "modules", ())
    return given


@pytest.fixture
def scanvi_run(make_run, seen, request):
    return make_run(f"scanvi_{request.node.name[:40]}", "scanvi")


def test_the_best_baseline_and_the_best_comparator_are_said_apart(comparison):
    assert [model.name for model in comparison.models][:2] == ["scanvi", "celltypist"]
    assert comparison.best_baseline.name == "linear"
    assert comparison.best_comparator.name == "celltypist"  # not one that saw the cells
    said = verdict(comparison)
    assert "the best baseline, linear, " in said
    found = comparison.difference(
        comparison.best_network, comparison.best_comparator, "macro_f1_common"
    )
    assert re.search(rf"best comparator, celltypist: .*{found['difference']:+.3f}", said)


def test_without_a_comparator_the_verdict_is_silent_of_it(write_run):
    write_run("net", kind="rank_transformer")
    (comparison,) = compare_runs(write_run("linear").parent, n_resamples=50)
    assert comparison.best_comparator is None
    assert "comparator" not in verdict(comparison)
    assert "transductive" not in summary(comparison)


def test_the_table_has_roles_and_marks_who_saw_the_cells(comparison, tmp_path):
    shown = summary(comparison)
    models = [model.name for model in comparison.models]
    assert shown.loc[models, "role"].to_dict() == {
        "net": "network", "linear": "baseline", "celltypist": "comparator",
        "lightgbm": "comparator", "scanvi": "comparator",
    }  # fmt: skip
    assert shown.index[shown["transductive"] == "yes"].to_list() == ["scanvi"]
    assert set(shown["transductive"]) == {"yes", ""}
    text = write_results([comparison], tmp_path / "RESULTS.md", "03")[0].read_text()
    assert "A transductive model was fitted on these cells too" in text
    assert comparison_plots.scores(comparison) is not None


def test_a_transductive_model_sees_val_and_test_without_their_labels(
    scanvi_run, seen, encoded_folder
):
    data = EncodedFolder(encoded_folder)
    ((cells, batches),) = seen
    n_train = len(data.split("train"))
    np.testing.assert_array_equal(cells.labels[:n_train], data.split("train").labels)
    assert (cells.labels[n_train:] == -1).all()
    assert len(cells.labels) == len(data.cells) == len(batches) == len(cells.library_size)
    run = Run(scanvi_run)
    for split in ("val", "test"):  # each cell got its own answer
        found, own = run.predictions(split), data.expression(split)[0].sum(axis=1)
        expected = np.asarray(own).ravel() % len(data.class_names)
        np.testing.assert_array_equal(found.probabilities.argmax(axis=1), expected)
        np.testing.assert_array_equal(found.cell_names, data.split(split).cell_names)
    assert run.metrics["temperature"] > 0


def test_without_test_it_never_sees_the_test_cells(make_run, seen, encoded_folder):
    make_run("scanvi_on_val", "scanvi", "test=false")
    data = EncodedFolder(encoded_folder)
    ((cells, _),) = seen
    assert len(cells.labels) == len(data.split("train")) + len(data.split("val"))


def test_a_transductive_run_annotates_nothing(scanvi_run):
    with pytest.raises(AnnotationError, match=r"saw the cells .* annotate with another run"):
        TrainedModel(scanvi_run)


def test_a_transductive_run_is_no_member_of_a_committee(scanvi_run, baseline_run, encoded_folder):
    members = [str(scanvi_run), str(baseline_run)]
    config = TrainConfig(
        name="c", data=str(encoded_folder), model={"kind": "committee", "members": members}
    )
    with pytest.raises(ValueError, match="is transductive"):
        fit_committee(config, EncodedFolder(encoded_folder), scanvi_run.parent)


def test_04_says_which_package_a_run_needs(make_run, monkeypatch):
    run = make_run("as_if_lightgbm", "majority_baron_human")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("kind: majority", "kind: lightgbm"))
    nothing = {name: np.zeros(1, dtype=np.int64) for name in ("genes", "classes", "n_classes")}
    save_file({"text": np.zeros(1, dtype=np.uint8), **nothing}, run / "model.safetensors")
    write_checksums(run)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match="needs lightgbm, .*pip install -r"):
        TrainedModel(run)
