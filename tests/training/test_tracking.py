"""W&B is made up here: whatever it does, a run must go on and its numbers must be on disk."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml

from training import tracking
from training.config import TrainConfig
from training.tracking import Tracker, read_metrics, wandb_mode

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """An account-less machine."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(
        name="run",
        data="data/x",
        model={"kind": "rank_transformer"},
        runs_dir=str(tmp_path),
        tracking={"wandb": "online", "init_timeout": 0.2, "tags": ["a"], "group": "g"},
    )


class FakeRun:
    url = "https://example.org/run"
    dir = "folder/files"

    def __init__(self) -> None:
        self.lines: list[tuple] = []
        self.finished = False
        self.summary: dict[str, float] = {}

    def log(self, metrics, step=None):
        self.lines.append((step, metrics))

    def log_artifact(self, artifact):
        self.artifact = artifact

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the client; ``wandb.init`` may be replaced by a test."""
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]
    module.asked, module.run = [], FakeRun()  # type: ignore[attr-defined]

    def init(**settings):
        module.asked.append(settings)
        return module.run

    module.init = init  # type: ignore[attr-defined]
    module.Settings = lambda **fields: SimpleNamespace(**fields)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(Tracker, "abandoned", False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    return module


def test_auto_is_online_with_a_key_and_offline_without(no_key, monkeypatch, tmp_path):
    assert wandb_mode("auto") == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode("auto") == "offline"  # a key for another server
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    assert wandb_mode("offline") == "offline"  # the config was explicit


def test_a_damaged_netrc_is_no_key(no_key, tmp_path):
    (tmp_path / ".netrc").write_text("nonsense {{{")
    assert wandb_mode("auto") == "offline"


def test_config_and_numbers_go_to_both_places(wandb, config, tmp_path):
    tracker = Tracker(tmp_path / "metrics.jsonl", config)
    tracker.log({"train/loss": 1.5}, 10)
    tracker.log({"val/macro_f1": 0.5, "val/log_loss": float("nan")}, 20)
    tracker.finish()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "train/loss": 1.5},
        {"step": 20, "val/macro_f1": 0.5, "val/log_loss": None},
    ]
    asked = wandb.asked[0]
    assert asked["settings"].mode == "online"
    assert asked["config"] == config.model_dump(mode="json")
    assert (asked["project"], asked["group"], asked["tags"]) == ("nanocell", "g", ["a"])
    assert [step for step, _ in wandb.run.lines] == [10, 20]
    assert wandb.run.finished


def test_a_server_that_is_away_makes_the_run_offline(wandb, config, tmp_path, caplog):
    def init(settings, **_):
        if settings.mode == "online":
            raise ConnectionError("server away")
        return wandb.run

    wandb.init = init
    tracker = Tracker(tmp_path / "metrics.jsonl", config)
    assert tracker.run is wandb.run
    assert "could not start online (server away)" in caplog.text


@pytest.mark.parametrize("trouble", ["raises", "hangs"])
def test_no_wandb_at_all_costs_seconds_and_no_numbers(
    wandb, config, tmp_path, caplog, monkeypatch, trouble
):
    def init(**_):
        if trouble == "hangs":
            time.sleep(60)
        raise ValueError("broken")

    wandb.init = init
    monkeypatch.setattr(tracking, "GRACE", 0.1)
    start = time.monotonic()
    tracker = Tracker(tmp_path / "metrics.jsonl", config)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish()
    assert time.monotonic() - start < 5
    assert tracker.run is None
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 1.0}]
    assert "the run continues" in caplog.text


@pytest.mark.parametrize("call", ["log", "finish"])
def test_wandb_dying_half_way_does_not_matter(wandb, config, tmp_path, caplog, call):
    def die(*_, **__):
        raise BrokenPipeError("service gone")

    tracker = Tracker(tmp_path / "metrics.jsonl", config)
    setattr(wandb.run, call, die)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.log({"train/loss": 0.5}, 2)
    tracker.finish()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert "service gone" in caplog.text


def test_a_finish_that_hangs_is_left_behind(wandb, config, tmp_path, caplog):
    wandb.run.finish = lambda: time.sleep(60)
    tracker = Tracker(tmp_path / "metrics.jsonl", config)
    start = time.monotonic()
    tracker.finish(timeout=0.1)
    assert time.monotonic() - start < 2
    assert "did not finish" in caplog.text
    assert Tracker.abandoned


def test_not_installed(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tracker = Tracker(tmp_path / "metrics.jsonl", config)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish()
    assert "not installed" in caplog.text
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_other_processes_write_nothing(wandb, config, tmp_path):
    tracker = Tracker(tmp_path / "metrics.jsonl", config, writes=False)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.forget_after(0)
    tracker.finish()
    assert not (tmp_path / "metrics.jsonl").exists()
    assert wandb.asked == []


def test_lines_after_the_checkpoint_are_forgotten(wandb, config, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    Tracker(path, config).forget_after(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_real_client_offline_takes_everything(tmp_path, config):
    """Curves, confusion matrix, per-class table and artifact, in a process of its own."""
    (tmp_path / "config.json").write_text(config.model_dump_json())
    program = """
import json, sys
from pathlib import Path
import numpy as np
from training.config import TrainConfig
from training import tracking

folder = Path(sys.argv[1])
config = TrainConfig(**json.loads((folder / "config.json").read_text()))
config = config.model_copy(update={"tracking": config.tracking.model_copy(
    update={"wandb": "offline", "init_timeout": 20.0})})
tracker = tracking.Tracker(folder / "metrics.jsonl", config)
tracker.log({"train/loss": 1.0}, 1)
labels = np.array([0, 1, 1, 0])
tracker.report(folder, "test", ["a", "b"], labels, np.eye(2)[labels], np.zeros((4, 2)))
tracker.finish()
assert "umap" not in sys.modules  # compiles for half a minute, and nobody looks
tracking.exit_process(3 if tracking.Tracker.abandoned else 0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    media = [p.relative_to(run / "files/media") for p in run.rglob("media/**/*") if p.is_file()]
    assert {path.parts[0] for path in media} == {"images", "table"}
    images = {
        re.sub(r"_\d+_[0-9a-f]+$", "", path.stem) for path in media if path.parts[0] == "images"
    }
    assert images == {"calibration", "confusion_matrix", "f1_by_class"}


@pytest.mark.parametrize("tested", [True, False])
def test_a_run_keeps_its_address_and_the_summary_its_final_scores(
    wandb, config, encoded_folder, tmp_path, monkeypatch, tested
):
    monkeypatch.setattr(tracking, "umap_image", lambda *_: None)  # quicker
    main = runpy.run_path(str(ROOT / "02_train_model.py"))["main"]
    model = {"kind": "rank_transformer", "d_model": 16, "n_heads": 2}
    values = config.model_dump() | {"data": str(encoded_folder), "model": model, "device": "cpu"}
    values |= {"optim": {"max_epochs": 3, "lr": 1e-2}, "test": tested}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["--config", str(tmp_path / "config.yaml")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["wandb_url"] == wandb.run.url
    scores = [split for split in ("val", "test") if split in metrics]
    assert scores == (["val", "test"] if tested else ["val"])
    expected = {f"{split}/{key}": v for split in scores for key, v in metrics[split].items()}
    assert wandb.run.summary == expected | {"seconds": metrics["seconds"]}
    logged = {name for _, line in wandb.run.lines for name in line}
    assert any(name.startswith("test/") for name in logged) == tested


def test_an_offline_run_has_no_address(wandb, config, tmp_path):
    def init(settings, **_):
        if settings.mode == "online":
            raise ConnectionError("server away")
        return wandb.run

    wandb.init = init
    assert Tracker(tmp_path / "metrics.jsonl", config).url is None


@pytest.mark.parametrize("n_cells", [0, 1, 2, 3, 7, 9])
def test_umap_of_few_cells_is_left_out(n_cells):
    embeddings, labels = np.zeros((n_cells, 3)), np.zeros(n_cells, int)
    assert tracking.umap_image(embeddings, labels, ["a"]) is None


@pytest.mark.parametrize("name", [r"$\frac{$", "a_$", "_hidden", "x" * 300, "two\nlines", "$x$"])
def test_a_cell_type_may_be_called_anything(rng, name, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap's own
        from umap import UMAP
    monkeypatch.setattr(UMAP, "fit_transform", lambda self, x: x[:, :2])
    image = tracking.umap_image(rng.normal(size=(12, 3)), np.arange(12) % 2, [name, "b"])
    assert image.size == (800, 600)


def test_a_figure_that_fails_does_not_stop_a_finished_run(
    wandb, config, tmp_path, caplog, monkeypatch
):
    def fail(*_):
        raise ValueError("cannot be drawn")

    tracker = Tracker(tmp_path / "metrics.jsonl", config)
    monkeypatch.setattr(tracking, "umap_image", fail)
    labels = np.array([0, 1])
    tracker.report(tmp_path, "test", ["a", "b"], labels, np.eye(2), np.zeros((2, 2)))
    assert "the test cells are not shown (cannot be drawn)" in caplog.text
    tracker.finish()
    assert wandb.run.finished


def test_metrics_are_json_even_when_not_finite(wandb, config, tmp_path):
    tracker = Tracker(tmp_path / "metrics.jsonl", config)
    tracker.log({"a": float("inf"), "b": np.float64(1.5), "c": 3}, 0)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 0, "a": None, "b": 1.5, "c": 3}
