"""One command trains every fold, resumes, and 03 puts together what it made."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from sklearn.metrics import f1_score

from dataset.config import PreprocessConfig
from dataset.encode import encode
from evaluation.calibration import apply_temperature
from evaluation.compare import compare_runs
from evaluation.trained_model import TrainedModel
from tests.two_processes import run_on_two
from training.runs import Run

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "02_train_model.py"
DONORS = ["donor_0", "donor_1", "donor_2", "donor_3"]
NETWORK = {"kind": "rank_transformer", "d_model": 16, "n_heads": 2, "context_genes": 24}


@pytest.fixture(scope="session")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_folds", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_folds"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folds(tmp_path_factory, preprocess_config) -> Path:
    """Encode the synthetic cells in four folds, one a donor."""
    split = {"kind": "leave_one_group_out", "key": "donor"}
    values = preprocess_config.model_dump() | {"name": "folds", "split": split}
    config = PreprocessConfig.model_validate(
        values | {"data_dir": str(tmp_path_factory.mktemp("data"))}
    )
    return encode(config, progress=False)


@pytest.fixture
def write_config(tmp_path, folds):
    def write(**changes) -> str:
        values = {
            "name": "net", "data": str(folds), "runs_dir": str(tmp_path / "runs"),
            "model": NETWORK, "optim": {"max_epochs": 3, "batch_size": 24, "lr": 3e-3},
            "tracking": {"wandb": "disabled"}, "device": "cpu",
        }  # fmt: skip
        path = tmp_path / f"{changes.get('name', 'net')}.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return str(path)

    return write


def written(runs: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/metrics.json")}


def test_one_command_trains_every_fold_once(script, write_config, tmp_path, folds):
    config = write_config(model={"kind": "majority"}, name="floor")
    assert script.main(["--config", config]) == 0
    runs = tmp_path / "runs"
    assert sorted(written(runs)) == [f"floor_fold_{donor}" for donor in DONORS]
    for donor in DONORS:
        run = Run(runs / f"floor_fold_{donor}")
        assert set(run.predictions("test").batches) == {donor}
        assert run.fold.name == donor
        assert run.config.data == str(folds / f"fold_{donor}")
        assert run.config.tracking.group == "floor"  # in W&B they stand together
    first = written(runs)
    shutil.rmtree(runs / "floor_fold_donor_2")
    assert script.main(["--config", config]) == 0  # makes that one alone
    again = written(runs)
    assert {name for name in again if again[name] != first[name]} == {"floor_fold_donor_2"}
    alone = runs / "floor_fold_donor_1" / "config.yaml"  # as a run of its own
    assert script.main(["--config", str(alone)]) == 0
    assert written(runs) == again


def test_folds_that_are_not_all_encoded_are_not_trained(
    script, write_config, folds, tmp_path, capsys
):
    shutil.copytree(folds, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "fold_donor_1")
    config = write_config(data=str(tmp_path / "part"))
    assert script.main(["--config", config]) == 2
    assert "fold_donor_1 of 4 folds not encoded yet" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_stopped_within_a_fold_it_resumes_there(script, write_config, tmp_path, monkeypatch):
    assert script.main(["--config", write_config(name="whole")]) == 0
    train_epoch, epochs = script.train_epoch, []

    def stop_in_the_second_fold(*arguments):
        epochs.append(arguments)
        if len(epochs) == 6:
            raise KeyboardInterrupt
        train_epoch(*arguments)

    config = write_config(name="stopped")
    with monkeypatch.context() as patched:
        patched.setattr(script, "train_epoch", stop_in_the_second_fold)
        assert script.main(["--config", config]) == 130
    runs = tmp_path / "runs"
    finished = written(runs)
    assert {name for name in finished if name.startswith("stopped")} == {"stopped_fold_donor_0"}
    assert (runs / ".stopped_fold_donor_1.partial" / "checkpoint.safetensors").exists()
    epochs.clear()
    monkeypatch.setattr(script, "train_epoch", lambda *a: (epochs.append(a), train_epoch(*a)))
    assert script.main(["--config", config]) == 0
    assert len(epochs) == 1 + 3 + 3  # what was left
    assert written(runs)["stopped_fold_donor_0"] == finished["stopped_fold_donor_0"]
    for donor in DONORS:
        one, other = (Run(runs / f"{name}_fold_{donor}") for name in ("whole", "stopped"))
        for split in ("val", "test"):
            np.testing.assert_array_equal(
                one.predictions(split).probabilities, other.predictions(split).probabilities
            )


def test_03_scores_each_cell_once_and_04_annotates_with_one_fold(script, write_config, tmp_path):
    for seed in (0, 1):
        assert script.main(["--config", write_config(name=f"net_seed{seed}", seed=seed)]) == 0
    assert script.main(["--config", write_config(name="floor", model={"kind": "majority"})]) == 0
    runs = tmp_path / "runs"
    (comparison,) = compare_runs(runs, n_resamples=10)
    assert {m.name: m.seeds for m in comparison.models} == {"net": [0, 1], "floor": [0]}
    assert (comparison.dataset, len(comparison.labels), comparison.n_donors) == ("folds", 300, 4)
    by_hand = []
    for seed in (0, 1):
        labels, predicted = [], []
        for donor in DONORS:
            run = Run(runs / f"net_seed{seed}_fold_{donor}")
            test, names = run.predictions("test"), np.array(run.class_names)
            labels += list(names[test.labels])
            predicted += list(names[test.probabilities.argmax(axis=1)])
        by_hand.append(f1_score(labels, predicted, average="macro"))
    scores = comparison.scores.set_index("model")
    assert scores.loc["net", "macro_f1"] == pytest.approx(np.mean(by_hand))
    seconds = [
        json.loads(path.read_text())["seconds"] for path in runs.glob("net_seed*/metrics.json")
    ]
    assert scores.loc["net", "seconds"] == pytest.approx(sum(seconds) / 2)
    assert TrainedModel(runs / "net_seed0_fold_donor_1").class_names == comparison.class_names


def test_every_fold_starts_from_its_own_pretraining(script, write_config, tmp_path):
    optim = {"max_epochs": 1, "batch_size": 64}
    pretraining = write_config(name="pre", objectives=[{"kind": "masked_gene"}], optim=optim)
    assert script.main(["--config", pretraining]) == 0
    runs = tmp_path / "runs"
    config = write_config(name="tuned", init_from=str(runs / "pre"), optim=optim)
    assert script.main(["--config", config]) == 0
    assert script.main(["--config", config]) == 0  # finished
    started = {Run(runs / f"tuned_fold_{donor}").config.init_from_sha256 for donor in DONORS}
    assert len(started) == 4
    for donor in DONORS:
        run = Run(runs / f"tuned_fold_{donor}")
        assert run.config.init_from == str(runs / f"pre_fold_{donor}")
    (comparison,) = compare_runs(runs, n_resamples=2)
    assert [model.name for model in comparison.models] == ["tuned"]


def test_the_committee_of_a_fold_is_of_the_members_of_that_fold(script, write_config, tmp_path):
    runs = tmp_path / "runs"
    for kind in ("majority", "knn"):
        assert script.main(["--config", write_config(name=kind, model={"kind": kind})]) == 0
    members = [str(runs / "majority"), str(runs / "knn")]
    config = write_config(name="both", model={"kind": "committee", "members": members})
    assert script.main(["--config", config]) == 0
    assert script.main(["--config", config]) == 0  # finished
    for donor in DONORS:
        both, *alone = (Run(runs / f"{n}_fold_{donor}") for n in ("both", "majority", "knn"))
        of_each = [
            apply_temperature(run.predictions("test").probabilities, run.metrics["temperature"])
            for run in alone
        ]
        mean = np.mean(of_each, axis=0)
        np.testing.assert_allclose(both.predictions("test").probabilities, mean, atol=1e-6)
    (comparison,) = compare_runs(runs, n_resamples=2)
    assert {model.name for model in comparison.models} == {"both", "majority", "knn"}
    assert comparison.left_out == []


def test_without_test_the_folds_are_compared_on_val(script, write_config, tmp_path):
    runs = tmp_path / "runs"
    for kind, test in (("majority", True), ("knn", False)):
        config = write_config(name=kind, model={"kind": kind}, test=test)
        assert script.main(["--config", config]) == 0
    on_test, on_val = compare_runs(runs, n_resamples=2)
    assert (on_test.split, on_val.split) == ("test", "val")
    assert len(on_test.models) == 1
    assert len(on_val.models) == 2
    for number, donor in enumerate(DONORS):
        for comparison, of_fold in ((on_test, donor), (on_val, DONORS[(number + 1) % 4])):
            assert set(comparison.donors[comparison.folds == donor]) == {of_fold}


def test_two_processes_train_the_folds_of_one(script, write_config, tmp_path):
    lines = []
    for name, model in (("net", NETWORK | {"dropout": 0}), ("floor", {"kind": "majority"})):
        assert script.main(["--config", write_config(name=f"{name}1", model=model)]) == 0
        lines.append(f"-1 --config {write_config(name=f'{name}2', model=model)}")
    run_on_two(lines, ROOT, 300)
    for name in ("net", "floor"):
        for donor in DONORS:
            one, two = (Run(tmp_path / "runs" / f"{name}{n}_fold_{donor}") for n in (1, 2))
            for split in ("val", "test"):
                np.testing.assert_allclose(
                    one.predictions(split).probabilities,
                    two.predictions(split).probabilities,
                    atol=1e-4,
                )
