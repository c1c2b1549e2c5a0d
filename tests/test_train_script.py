"""02_train_model.py as a user runs it: what it leaves behind, how it fails, how it resumes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load, load_file, save
from scipy.sparse import csr_matrix

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.store.checksums import changed_files, read_checksums, write_checksums
from dataset.store.encoded_folder import EncodedFolder
from evaluation import METRICS
from evaluation.trained_model import TrainedModel
from models.learner import Learner
from training.checkpoint import save_tensors
from training.config import TrainConfig
from training.distributed import Ranks
from training.tracking import read_metrics

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "02_train_model.py"
MODEL = {"kind": "rank_transformer", "d_model": 16, "n_heads": 2, "context_genes": 24}


@pytest.fixture(scope="session")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_model"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write_config(tmp_path, encoded_folder):
    """Write a config of 3 epochs on the synthetic cells; return its path."""

    def write(**changes) -> str:
        values = {
            "name": "run",
            "data": str(encoded_folder),
            "runs_dir": str(tmp_path / "runs"),
            "model": MODEL,
            "optim": {"max_epochs": 3, "batch_size": 24, "lr": 3e-3},
            "tracking": {"wandb": "disabled"},
            "device": "cpu",
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return str(path)

    return write


def run_script(arguments: list[str], *, processes: int = 1, **environment) -> subprocess.Popen:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*launch, str(SCRIPT), *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def curve_without_clock(path: Path) -> list[dict]:
    return [
        {k: v for k, v in line.items() if not k.startswith("perf/")} for line in read_metrics(path)
    ]


# ------------------------------------------------------------------ what a run leaves


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory, encoded_folder) -> Path:
    """Train once with every option switched on."""
    folder = tmp_path_factory.mktemp("finished")
    values = {
        "name": "all-options",
        "data": str(encoded_folder),
        "runs_dir": str(folder),
        "model": MODEL | {"value_embedding": "mlp", "gene_init": "svd"},
        "optim": {
            "max_epochs": 8,
            "batch_size": 24,
            "lr": 3e-3,
        },
        "objectives": [{"kind": "classify", "class_balanced": True, "label_smoothing": 0.1}],
        "augment": {"token_dropout": 0.1, "count_thinning": 0.2},
        "tracking": {"wandb": "disabled"},
        "device": "cpu",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert script.main(["--config", str(folder / "config.yaml"), "seed=3"]) == 0
    return folder / "all-options"


def test_a_run_is_complete_in_itself(finished, encoded_folder):
    names = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert names == {
        "checksums.json",
        "config.yaml",
        "metrics.json",
        "metrics.jsonl",
        "model.safetensors",
        "predictions_val.npz",
        "predictions_test.npz",
        *(
            f"data/{name}"
            for name in (
                "meta.json",
                "vocabulary.json",
                "learned/medians.npy",
                "class_names.json",
                "conditions.json",
            )
        ),
    }
    assert TrainConfig.load(finished / "config.yaml").seed == 3
    data = EncodedFolder(encoded_folder)
    config = TrainConfig.load(finished / "config.yaml")
    learner = Learner(config.model, config.objectives, data.facts)
    weights = load_file(finished / "model.safetensors")
    learner.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    assert sorted(p.name for p in finished.parent.iterdir()) == ["all-options", "config.yaml"]
    sums = read_checksums(finished)
    assert set(sums) == names - {"checksums.json"}
    assert changed_files(finished, sums) == []


def test_predictions_hold_every_cell_once_and_give_the_scores(finished, encoded_folder):
    metrics = json.loads((finished / "metrics.json").read_text())
    for split in ("val", "test"):
        with np.load(finished / f"predictions_{split}.npz", allow_pickle=False) as file:
            predictions = dict(file)
        cells = EncodedFolder(encoded_folder).split(split)
        assert predictions["cell_names"].tolist() == cells.cell_names.tolist()
        assert predictions["batches"].tolist() == cells.batches.tolist()
        assert predictions["labels"].tolist() == cells.labels.tolist()
        assert predictions["embeddings"].shape == (len(cells), 16)
        assert predictions["embeddings"].dtype == predictions["probabilities"].dtype == np.float32
        np.testing.assert_allclose(predictions["probabilities"].sum(1), 1, atol=1e-5)
        for name, metric in METRICS.items():
            expected = metric(predictions["labels"], predictions["probabilities"])
            assert metrics[split][name] == pytest.approx(expected, abs=1e-6)
    assert metrics["test"]["macro_f1"] > 0.8  # far above the 0.1 of one class for all


def test_metrics_say_what_they_were_made_with(finished, encoded_folder):
    metrics = json.loads((finished / "metrics.json").read_text())
    meta = json.loads((encoded_folder / "meta.json").read_text())
    assert metrics["data_sha256"] == meta["data_sha256"]
    assert metrics["split_sha256"] == meta["split_sha256"]
    train = np.load(encoded_folder / "train" / "labels.npy")
    assert metrics["train_class_sizes"] == np.bincount(train).tolist()
    assert metrics["seed"] == 3
    assert metrics["n_parameters"] > 0
    assert metrics["seconds"] > 0
    assert metrics["cells_per_second"] > 0
    assert metrics["peak_memory_mb"] > 10
    assert {"git_commit", "device", "versions", "best_epoch"} <= metrics.keys()


def test_the_kept_weights_are_those_of_the_best_epoch(finished):
    lines = read_metrics(finished / "metrics.jsonl")
    val = [line["val/macro_f1"] for line in lines if "val/macro_f1" in line]
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["val"]["macro_f1"] == pytest.approx(max(val))
    assert val[metrics["best_epoch"] - 1] == max(val)


def test_the_curve_has_what_a_dashboard_shows(finished):
    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    training = [line for line in lines if "train/loss" in line]
    assert training[-1]["train/loss"] < training[0]["train/loss"]
    assert {
        "optim/lr",
        "optim/gradient_norm",
        "perf/cells_per_second",
        "perf/tokens_per_second",
        "perf/model_gflop_per_second",
        "perf/hardware_gflop_per_second",
        "perf/data_wait_fraction",
    } <= training[0].keys()
    assert 0 <= training[0]["perf/data_wait_fraction"] <= 1
    assert any("test/macro_f1" in line for line in lines)


@pytest.mark.parametrize("kind", ["majority", "logistic_regression", "gradient_boosting"])
def test_baselines_end_in_the_same_files(script, write_config, tmp_path, kind):
    assert script.main(["--config", write_config(model={"kind": kind})]) == 0
    folder = tmp_path / "runs" / "run"
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = {*METRICS, "log_loss_scaled", "ece_scaled"}
    assert metrics["val"].keys() == metrics["test"].keys() == scores
    with np.load(folder / "predictions_test.npz", allow_pickle=False) as predictions:
        labels, probabilities = predictions["labels"], predictions["probabilities"]
        assert "embeddings" not in predictions
    assert metrics["test"]["accuracy"] == pytest.approx(METRICS["accuracy"](labels, probabilities))
    assert (folder / "model.safetensors").exists()


# ------------------------------------------------------------- finished, interrupted


def test_a_finished_run_is_not_done_again(script, write_config, tmp_path, caplog):
    config = write_config(model={"kind": "majority"})
    assert script.main(["--config", config]) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "run").rglob("*")}
    with caplog.at_level("INFO"):
        assert script.main(["--config", config]) == 0
    assert "finished: nothing to do" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "run").rglob("*")} == before


def test_another_config_under_a_taken_name_is_refused(script, write_config, capfd):
    config = write_config(model={"kind": "majority"})
    assert script.main(["--config", config]) == 0
    assert script.main(["--config", config, "seed=1", "optim.lr=1"]) == 2
    error = capfd.readouterr().err
    assert "differs in: optim, seed" in error
    assert "under another name" in error


def test_other_cells_under_a_taken_name_are_refused(
    script, write_config, encoded_folder, tmp_path, capfd
):
    assert script.main(["--config", write_config(model={"kind": "majority"})]) == 0
    other = tmp_path / "other"
    shutil.copytree(encoded_folder, other)
    meta = json.loads((other / "meta.json").read_text()) | {"split_sha256": "another"}
    (other / "meta.json").write_text(json.dumps(meta))
    config = write_config(model={"kind": "majority"}, data=str(other))
    assert script.main(["--config", config]) == 2
    assert "differs in: data" in capfd.readouterr().err


@pytest.fixture
def done(script, write_config, tmp_path) -> tuple[str, Path]:
    """A finished run of the floor: its config and its folder."""
    config = write_config(model={"kind": "majority"})
    assert script.main(["--config", config]) == 0
    return config, tmp_path / "runs" / "run"


def said(script, capfd, config: str) -> str:
    """Run once more; return the one sentence it is refused with, which deletes nothing."""
    capfd.readouterr()
    assert script.main(["--config", config]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "delete" not in error
    assert "train again under another name, or move that folder away" in error
    return error


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "predictions_val.npz", "metrics.json", "config.yaml",
     "data/vocabulary.json"],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "bit"])
def test_a_finished_run_that_is_not_whole_is_not_called_finished(
    script, done, capfd, name, damage
):
    config, folder = done
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).unlink()
    if damage == "bit":
        (folder / name).write_bytes(content)
    how = "missing" if damage == "missing" else "changed since the run was finished"
    assert f"{name} is {how}" in said(script, capfd, config)


def test_a_finished_run_without_checksums_is_of_another_version(script, done, capfd):
    config, folder = done
    (folder / "checksums.json").write_text("{}")
    assert "config.yaml, data/class_names.json" in said(script, capfd, config)
    (folder / "checksums.json").write_text("[1")
    assert "checksums.json: cannot be used" in said(script, capfd, config)
    (folder / "checksums.json").unlink()
    assert "another version of this code (it has no checksums.json)" in said(script, capfd, config)


@pytest.mark.parametrize("name", ["vocabulary.json", "learned/medians.npy", "class_names.json"])
def test_the_same_cells_encoded_to_other_tokens_are_refused(
    script, done, encoded_folder, tmp_path, write_config, capfd, name
):
    # As with another gene_id_key: cells, split and tokenizer agree, the vocabulary does not.
    other = shutil.copytree(encoded_folder, tmp_path / "other")
    if name == "vocabulary.json":
        text = (other / name).read_text()
        (other / name).write_text(text.replace('"gene_ids": ["', '"gene_ids": ["other_'))
    elif name == "class_names.json":
        names = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps([f"other {names[0]}", *names[1:]]))
    else:
        np.save(other / name, np.load(other / name) * np.float32(2))
    config = write_config(model={"kind": "majority"}, data=str(other))
    assert f"differs in: data/{name})" in said(script, capfd, config)


def test_a_whole_run_without_its_data_is_finished(
    script, encoded_folder, tmp_path, write_config, caplog
):
    data = shutil.copytree(encoded_folder, tmp_path / "data")
    config = write_config(model={"kind": "majority"}, data=str(data))
    assert script.main(["--config", config]) == 0
    shutil.rmtree(data)
    with caplog.at_level("INFO"):
        assert script.main(["--config", config]) == 0
    assert "finished: nothing to do" in caplog.text


def test_a_config_of_another_version_is_not_called_damaged(script, done, capfd):
    config, folder = done
    with (folder / "config.yaml").open("a") as file:
        file.write("a_later_setting: 3\n")
    write_checksums(folder)
    error = said(script, capfd, config)
    assert "written by another version of this code (" in error
    assert "a_later_setting" in error
    assert "damaged" not in error


def interrupt_in_epoch(script, monkeypatch, epoch: int) -> None:
    train_epoch = script.train_epoch

    def interrupted(training, *arguments):
        if training.epoch == epoch:
            raise KeyboardInterrupt
        train_epoch(training, *arguments)

    monkeypatch.setattr(script, "train_epoch", interrupted)


@pytest.mark.parametrize("kinds", [["classify"], ["classify", "neighbors"]], ids=str)
@pytest.mark.parametrize(
    "recipe", [{}, {"weight_averaging": 0.9, "gene_embedding_lr": 0}], ids=str
)
def test_resuming_equals_not_stopping(
    script, write_config, tmp_path, monkeypatch, capfd, recipe, kinds
):
    # Dropout and augmentation are on: the random numbers must come out the same too.
    config = write_config(
        objectives=[{"kind": kind} for kind in kinds],
        optim={"max_epochs": 3, "batch_size": 24, "lr": 3e-3} | recipe,
        augment={"token_dropout": 0.2, "count_thinning": 0.3},
    )
    assert script.main(["--config", config, "name=whole"]) == 0

    with monkeypatch.context() as patch:
        interrupt_in_epoch(script, patch, epoch=2)
        assert script.main(["--config", config, "name=halves"]) == 130
    runs = tmp_path / "runs"
    assert "resumes" in capfd.readouterr().err
    assert not (runs / "halves").exists()
    with (runs / ".halves.partial" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "test/accuracy": 1.0}\n')  # as if killed after the last epoch
        file.write('{"step": 999, "train/loss": 1.0}\n{"step": 9')  # after the checkpoint; torn
    for left in (
        ".tmpAbC123",
        ".checkpoint.safetensors.partial-1",
        "predictions_val.npz",
        "data/.meta.json.partial-1",
    ):
        (runs / ".halves.partial" / left).write_bytes(b"half a")
    assert script.main(["--config", config, "name=halves"]) == 0

    one, two = (load_file(runs / name / "model.safetensors") for name in ("whole", "halves"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    for split in ("val", "test"):
        one, two = (np.load(runs / n / f"predictions_{split}.npz") for n in ("whole", "halves"))
        np.testing.assert_array_equal(one["probabilities"], two["probabilities"])
    if "neighbors" in kinds:
        one, two = (np.load(runs / name / "bank.npz") for name in ("whole", "halves"))
        for name in ("cell_names", "labels", "embeddings"):
            np.testing.assert_array_equal(one[name], two[name])
    assert curve_without_clock(runs / "whole" / "metrics.jsonl") == curve_without_clock(
        runs / "halves" / "metrics.jsonl"
    )
    one, two = ({p.name for p in (runs / n).rglob("*")} for n in ("whole", "halves"))
    assert one == two
    assert not list(runs.glob(".*"))


def test_an_interrupt_before_the_first_checkpoint_leaves_nothing(
    script, write_config, tmp_path, monkeypatch
):
    interrupt_in_epoch(script, monkeypatch, epoch=0)
    assert script.main(["--config", write_config()]) == 130
    assert list((tmp_path / "runs").iterdir()) == []


def test_another_config_does_not_resume_an_interrupted_run(
    script, write_config, monkeypatch, capfd
):
    config = write_config()
    with monkeypatch.context() as patch:
        interrupt_in_epoch(script, patch, epoch=1)
        script.main(["--config", config])
    assert script.main(["--config", config, "model.d_model=8"]) == 2
    assert "(differs in: model)" in capfd.readouterr().err


@pytest.fixture
def interrupted(script, write_config, tmp_path, monkeypatch) -> tuple[str, Path]:
    """A run that was interrupted after its first epoch: its config and its partial folder."""
    config = write_config()
    with monkeypatch.context() as patch:
        interrupt_in_epoch(script, patch, epoch=1)
        assert script.main(["--config", config]) == 130
    return config, tmp_path / "runs" / ".run.partial"


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def test_a_resume_checks_its_own_parts(script, interrupted, capfd):
    config, folder = interrupted
    checkpoint = folder / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:500])
    assert "not a readable safetensors file" in said(script, capfd, config)
    for place in (0.3, 0.6, 0.95):  # of the tensors: any value is a number
        checkpoint.write_bytes(whole)
        flip(checkpoint, place)
        assert "its content has changed" in said(script, capfd, config)
    tensors = load(whole)
    checkpoint.write_bytes(save(tensors, {"header": '{"epoch": 2}'}))
    assert "its content has changed" in said(script, capfd, config)
    save_tensors(checkpoint, {name: torch.from_numpy(t) for name, t in tensors.items()})
    assert "another version of this code" in said(script, capfd, config)
    checkpoint.write_bytes(whole)
    assert script.main(["--config", config]) == 0


@pytest.mark.parametrize(
    "name", ["vocabulary.json", "learned/medians.npy", "class_names.json", "meta.json"]
)
def test_a_resume_compares_what_it_was_begun_with(script, interrupted, capfd, name):
    config, folder = interrupted
    path = folder / "data" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    expected = "data)" if name == "meta.json" else f"data/{name})"
    assert f"differs in: {expected}" in said(script, capfd, config)


def test_an_interrupted_run_of_another_version_is_not_called_damaged(script, interrupted, capfd):
    config, folder = interrupted
    with (folder / "config.yaml").open("a") as file:
        file.write("a_later_setting: 3\n")
    error = said(script, capfd, config)
    assert "written by another version of this code (" in error
    assert "a_later_setting" in error
    assert "damaged" not in error


@pytest.mark.parametrize("line", ["[1]", '{"loss": 1}', '{"step": "x"}', '{"step": 1, "a": []}'])
def test_a_changed_curve_of_an_interrupted_run_is_said_so(script, interrupted, capfd, line):
    config, folder = interrupted
    path = folder / "metrics.jsonl"
    path.write_text(line + "\n" + path.read_text())
    assert "metrics.jsonl, line 1: is no step" in said(script, capfd, config)


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=fast"], "optim.lr"),
        (["optim.learning_rate=1"], "optim.learning_rate: there is no such key"),
        (["model.n_layer=3"], "n_layer"),
        (["model.kind=perceptron"], "kind"),
        (["data=nowhere"], "nowhere"),
        (["device=cuda"], "device: cuda"),
        (["optim.tokens_per_batch=64"], "found 64, and a cell of this folder may have 97 tokens"),
        (["optim.lr=1e30", "optim.gradient_clip=1e30"], "are NaN or infinite"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_folder(
    script, write_config, tmp_path, capfd, monkeypatch, words, message
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert script.main(["--config", write_config(), *words]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert message in error
    runs = tmp_path / "runs"
    assert not runs.exists() or list(runs.iterdir()) == []


def test_a_config_that_is_not_there(script, capfd):
    assert script.main(["--config", "nowhere.yaml"]) == 2
    assert capfd.readouterr().err == "error: nowhere.yaml: no such config file\n"


@pytest.mark.parametrize("name", ["train/token_ids.npy", "val/labels.npy", "vocabulary.json"])
def test_damaged_cells_are_said_so(script, write_config, encoded_folder, tmp_path, capfd, name):
    folder = tmp_path / "damaged"
    shutil.copytree(encoded_folder, folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert script.main(["--config", write_config(data=str(folder))]) == 2
    assert name in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------- learning


def test_the_test_split_is_read_after_training_only(script, write_config, monkeypatch):
    asked = []
    split = EncodedFolder.split

    def recorded(self, name):
        asked.append(name)
        return split(self, name)

    monkeypatch.setattr(EncodedFolder, "split", recorded)
    assert script.main(["--config", write_config()]) == 0
    last_training = max(i for i, name in enumerate(asked) if name == "train")
    assert "test" not in asked[:last_training]
    assert "test" in asked[last_training:]


@pytest.mark.parametrize(
    "model", [MODEL, {"kind": "logistic_regression"}], ids=lambda m: m["kind"]
)
def test_val_until_you_are_done(script, write_config, tmp_path, monkeypatch, capfd, model):
    """With ``test: false`` the test cells are not looked at; with it the model is the same."""
    config = write_config(model=model)
    with monkeypatch.context() as patched:
        for part in ("split", "expression"):
            read = getattr(EncodedFolder, part)

            def val_only(self, name, read=read):
                assert name != "test"
                return read(self, name)

            patched.setattr(EncodedFolder, part, val_only)
        assert script.main(["--config", config, "test=false"]) == 0
    folder = tmp_path / "runs" / "run"
    assert not [path for path in folder.rglob("*") if path.name == "predictions_test.npz"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["val"].keys() == {*METRICS, "log_loss_scaled", "ece_scaled"}
    assert not [key for key in metrics if key.startswith("test")]
    curve = read_metrics(folder / "metrics.jsonl") if model is MODEL else []
    assert not [line for line in curve if any(key.startswith("test") for key in line)]
    assert script.main(["--config", config, "test=true"]) == 2
    said = capfd.readouterr().err
    assert "holds a finished run of another config or of other cells (differs in: test)" in said
    assert "train again under another name" in said
    assert script.main(["--config", config, "name=tested"]) == 0
    tested = tmp_path / "runs" / "tested"
    one, other = (TrainedModel(path) for path in (folder, tested))  # 04 takes either
    cells = [(csr_matrix(np.eye(one.vocabulary.n_genes, dtype=np.int32)[:3]), np.ones(3))]
    assert np.array_equal(one.predict(cells)[0], other.predict(cells)[0])
    assert json.loads((tested / "metrics.json").read_text())["val"] == metrics["val"]
    for name in ("model.safetensors", "predictions_val.npz"):
        one, other = (load_any(path / name) for path in (folder, tested))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
    assert (tested / "predictions_test.npz").is_file()


def load_any(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(path)) if path.suffix == ".npz" else load_file(path)


def test_data_encoded_again_meanwhile_do_not_change_whose_answers_they_are(
    script, write_config, preprocess_config, tmp_path, monkeypatch, caplog
):
    config = preprocess_config.model_copy(update={"data_dir": str(tmp_path / "data")})
    folder = encode(config, progress=False)
    names = {s: EncodedFolder(folder).split(s).cell_names.tolist() for s in ("val", "test")}
    fit_network, a_type = script.fit_network, EncodedFolder(folder).class_names[0]

    def meanwhile(*arguments):
        fitted = fit_network(*arguments)
        less = config.model_copy(update={"ignore_labels": [a_type]})  # all rows are others
        encode(less, overwrite=True, progress=False)
        return fitted

    monkeypatch.setattr(script, "fit_network", meanwhile)
    assert script.main(["--config", write_config(data=str(folder))]) == 0
    assert "was encoded again or moved while this run trained" in caplog.text
    assert EncodedFolder(folder).split("test").cell_names.tolist() != names["test"]
    for split, expected in names.items():
        with np.load(tmp_path / "runs" / "run" / f"predictions_{split}.npz") as found:
            assert found["cell_names"].tolist() == expected


def test_early_stopping_stops_and_keeps_the_best(script, write_config, tmp_path):
    config = write_config(optim={"max_epochs": 30, "batch_size": 24, "lr": 3e-3, "patience": 2})
    assert script.main(["--config", config]) == 0
    folder = tmp_path / "runs" / "run"
    lines = read_metrics(folder / "metrics.jsonl")
    val = [
        (line["val/macro_f1"], -line["val/log_loss"]) for line in lines if "val/log_loss" in line
    ]
    best = json.loads((folder / "metrics.json").read_text())["best_epoch"]
    assert len(val) < 30
    assert len(val) == best + 2
    assert val[best - 1] == max(val)


def test_predictions_do_not_depend_on_batch_size(script, encoded_folder, write_config):
    data = EncodedFolder(encoded_folder)
    ranks = Ranks(0, 1, torch.device("cpu"))
    found = []
    for size in (1, 7, 64):
        config = TrainConfig.load(write_config(), [f"optim.batch_size={size}"])
        learner = script.build_learner(config, data)
        found.append(script.predict(learner, data.split("val"), config, ranks))
    for other in found[1:]:
        np.testing.assert_allclose(other["probabilities"], found[0]["probabilities"], atol=1e-5)
        np.testing.assert_allclose(other["embeddings"], found[0]["embeddings"], atol=1e-4)


def test_shuffled_labels_are_not_learned(script, write_config, encoded_folder, tmp_path):
    folder = tmp_path / "shuffled"
    shutil.copytree(encoded_folder, folder)
    labels = np.load(folder / "train" / "labels.npy")
    np.save(folder / "train" / "labels.npy", np.random.default_rng(0).permutation(labels))
    write_checksums(folder)
    assert script.main(["--config", write_config(data=str(folder))]) == 0
    metrics = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())
    assert metrics["test"]["balanced_accuracy"] < 0.5  # chance is 0.25; learned is above 0.8


def test_sixty_four_cells_can_be_learned_by_heart(script, encoded_folder, write_config):
    data = EncodedFolder(encoded_folder)
    config = TrainConfig.load(write_config(), ["model.dropout=0"])
    learner = script.build_learner(config, data).train()
    batch = script.BatchReader(data.split("train")).read(np.arange(64))
    batch = script.to_device(batch, torch.device("cpu"))
    optimizer = script.make_optimizer(learner, lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(30):
        loss = learner(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < losses[0]


def test_collapse_to_one_class_is_an_alarm(script, caplog):
    probabilities = np.tile([0.1, 0.8, 0.1], (50, 1))
    script.warn_of_collapse(probabilities, ["a", "b", "c"], epoch=0)  # nothing learned yet
    assert caplog.text == ""
    script.warn_of_collapse(probabilities, ["a", "b", "c"], epoch=5)
    assert "'b' is predicted for every val cell" in caplog.text


# ----------------------------------------------------------------- several processes


def test_two_processes_report_what_one_does(script, write_config, encoded_folder, tmp_path):
    # The last batch of an epoch holds one cell, so that one of the two processes has none of it.
    n_cells = len(EncodedFolder(encoded_folder).split("train"))
    size = next(size for size in range(11, n_cells) if n_cells % size == 1)
    config = write_config(
        model=MODEL | {"dropout": 0.0},
        optim={"max_epochs": 2, "batch_size": size, "lr": 1e-3},
        objectives=[{"kind": "classify", "class_balanced": True}],
    )
    process = run_script(["--config", config, "name=two"], processes=2)
    assert script.main(["--config", config, "name=one"]) == 0
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error

    runs = tmp_path / "runs"
    assert sorted(p.name for p in runs.iterdir()) == ["one", "two"]
    one, two = (json.loads((runs / n / "metrics.json").read_text()) for n in ("one", "two"))
    for split in ("val", "test"):
        assert one[split] == pytest.approx(two[split], abs=1e-3)
        a, b = (np.load(runs / n / f"predictions_{split}.npz") for n in ("one", "two"))
        assert a["cell_names"].tolist() == b["cell_names"].tolist()
        np.testing.assert_allclose(a["probabilities"], b["probabilities"], atol=1e-3)
    a, b = (
        [
            line["train/loss"]
            for line in read_metrics(runs / n / "metrics.jsonl")
            if "train/loss" in line
        ]
        for n in ("one", "two")
    )
    assert a == pytest.approx(b, abs=1e-3)


def test_two_processes_do_not_train_one_run(script, write_config, tmp_path, monkeypatch, capsys):
    config = write_config()
    predict = script.predict
    second = []

    def meanwhile(*arguments):
        if not second:
            second.append(None)
            second[0] = script.main(["--config", config])
        return predict(*arguments)

    monkeypatch.setattr(script, "predict", meanwhile)
    assert script.main(["--config", config]) == 0
    assert second == [2]
    assert "another process trains it now" in capsys.readouterr().err
    assert (tmp_path / "runs" / "run" / "metrics.json").exists()


# ----------------------------------------------------------------- cells without labels


@pytest.mark.parametrize("model", ["rank_transformer", "majority"])
def test_what_needs_labels_says_so(script, preprocess_config, tmp_path, capfd, model):
    settings = preprocess_config.model_dump() | {"label_key": None, "data_dir": str(tmp_path)}
    folder = encode(PreprocessConfig.model_validate(settings), progress=False)
    config = {
        "name": "run", "data": str(folder), "runs_dir": str(tmp_path / "runs"),
        "model": {"kind": model}, "tracking": {"wandb": "disabled"}, "device": "cpu",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert script.main(["--config", str(tmp_path / "config.yaml")]) == 2
    error = capfd.readouterr().err
    assert "needs labels" in error
    assert "Traceback" not in error
