"""A search over settings: best on val over seeds, resumed, and the same file for W&B's agent."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.base import ConfigError
from training import search
from training.config import TrainConfig
from training.search import SweepConfig, as_words

ROOT = Path(__file__).parent.parent.parent
SWEEP = ROOT / "configs" / "sweep.yaml"
BASE = {
    "name": "sweep",
    "method": "grid",
    "metric": {"name": "val/macro_f1", "goal": "maximize"},
    "parameters": {"model.kind": {"values": ["majority", "knn"]}, "seed": {"values": [0, 1]}},
}


@pytest.fixture
def config(tmp_path, encoded_folder):
    """Return the path of a train config, of a baseline that takes no time."""
    values = {
        "name": "base",
        "data": str(encoded_folder),
        "model": {"kind": "majority"},
        "runs_dir": str(tmp_path / "runs"),
        "tracking": {"wandb": "disabled"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def statuses(monkeypatch):
    """Train in this process; return the list of what 02 is told and ends with."""
    main, found = runpy.run_path(str(search.SCRIPT))["main"], []

    def train(arguments):
        found.append((arguments, main(["--config", *arguments])))
        return found[-1][1]

    monkeypatch.setattr(search, "_train", train)
    return found


def write_sweep(folder, **changes):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    return str(path)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_best_on_val_over_seeds_is_found_and_nothing_of_test_is_there(
    config, statuses, tmp_path, capsys
):
    sweep = write_sweep(tmp_path)
    assert search.main([sweep, "--config", config]) == 0
    said = capsys.readouterr().out
    assert "--config" in said
    assert "'model.kind=\"knn\"'" in said.splitlines()[-1]
    runs = tmp_path / "runs" / "sweep"
    assert {path.name for path in runs.iterdir()} == {
        f"kind-{kind}_seed{seed}" for kind in ("majority", "knn") for seed in (0, 1)
    }
    scores = {"majority": [], "knn": []}
    for path in runs.iterdir():
        assert not (path / "predictions_test.npz").exists()
        metrics = json.loads((path / "metrics.json").read_text())
        assert "test" not in metrics
        scores[TrainConfig.load(path / "config.yaml").model.kind].append(
            metrics["val"]["macro_f1"]
        )
    table = search.search(SweepConfig.load(sweep), config, [])
    assert table["model.kind"].tolist() == ['"knn"', '"majority"']
    expected = [np.mean(scores["knn"]), np.mean(scores["majority"])]
    assert table["val/macro_f1"].tolist() == pytest.approx(expected)
    assert expected[0] > expected[1]
    loss = {"name": "val/log_loss", "goal": "minimize"}
    table = search.search(SweepConfig.load(write_sweep(tmp_path, metric=loss)), config, [])
    assert table["val/log_loss"].is_monotonic_increasing


def test_an_interrupted_search_resumes(config, statuses, tmp_path, monkeypatch, capsys):
    train, sweep = search._train, write_sweep(tmp_path)

    def second_is_interrupted(arguments):
        if len(statuses) == 1:
            raise KeyboardInterrupt
        return train(arguments)

    with monkeypatch.context() as patched:
        patched.setattr(search, "_train", second_is_interrupted)
        assert search.main([sweep, "--config", config]) == search.INTERRUPTED
    assert "the same command resumes" in capsys.readouterr().err
    before = files(tmp_path / "runs")
    assert search.main([sweep, "--config", config]) == 0
    after = files(tmp_path / "runs")
    assert before.items() <= after.items()
    assert len(list((tmp_path / "runs" / "sweep").iterdir())) == 4
    assert search.main([sweep, "--config", config]) == 0
    assert files(tmp_path / "runs") == after


def test_settings_that_fail_are_last_and_named_so(config, statuses, tmp_path, monkeypatch):
    train = search._train
    monkeypatch.setattr(
        search, "_train", lambda words: 2 if "name=kind-knn_seed1" in words else train(words)
    )
    table = search.search(SweepConfig.load(write_sweep(tmp_path)), config, [])
    assert table["model.kind"].tolist() == ['"majority"', '"knn"']
    assert table["seeds"].tolist() == [2, 1]
    assert np.isnan(table["val/macro_f1"].iloc[1])  # a mean over other seeds is no mean


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"parameters": {"model.kin": {"values": [1]}}}, "there is no such key"),
        ({"parameters": {"seed": {"values": [-1]}}}, "seed"),
        ({"metric": {"name": "test/macro_f1", "goal": "maximize"}}, "metric.name"),
        ({"parameters": {"seed": {"min": 0, "max": 3}}}, "parameters.seed"),
        ({"method": "bayes"}, "'grid' or 'random'"),
    ],
    ids=["key", "value", "test", "range", "bayes"],
)
def test_a_mistake_is_said_before_anything_is_trained(config, statuses, tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        search.search(SweepConfig.load(write_sweep(tmp_path, **changes)), config, [])
    assert statuses == []


def test_a_score_that_is_not_there_is_named(config, statuses, tmp_path):
    metric = {"name": "val/f1", "goal": "maximize"}
    with pytest.raises(ConfigError, match="expected one of val/accuracy, "):
        search.search(SweepConfig.load(write_sweep(tmp_path, metric=metric)), config, [])


def test_random_draws_settings_with_all_their_seeds_and_more_of_them_later():
    parameters = {
        "optim.lr": {"values": [1e-4, 1e-3, 1e-2]},
        "model.dropout": {"values": [0.0, 0.1, 0.2]},
        "seed": {"values": [0, 1]},
    }
    values = BASE | {"parameters": parameters, "method": "random"}
    drawn = [SweepConfig(**values, run_cap=n).settings() for n in (6, 10, None)]
    assert [len(settings) for settings in drawn] == [3, 5, 9]
    assert drawn[2][:3] == drawn[1][:3] == drawn[0]
    grid = SweepConfig(**values | {"method": "grid"}).settings()
    assert drawn[2] != grid
    assert sorted(drawn[2], key=str) == sorted(grid, key=str)


def test_values_are_read_back_as_they_were(config):
    values = {
        "optim.lr": 1e-5,
        "compile": True,
        "init_from": None,
        "tracking.tags": ["a", "b"],
        "objectives": [{"kind": "classify", "weight": 2.0}],
    }
    found = TrainConfig.load(config, as_words(values)).model_dump()
    assert found["optim"]["lr"] == 1e-5
    assert found["compile"] is True
    assert found["init_from"] is None
    assert found["tracking"]["tags"] == ["a", "b"]
    assert found["objectives"][0]["weight"] == 2.0


def test_the_file_that_is_here_is_a_search():
    sweep = SweepConfig.load(SWEEP)
    assert len(sweep.settings()) == 6
    assert len(sweep.seeds) == 3
    example = str(ROOT / "configs" / "train" / "example.yaml")
    for setting in sweep.settings():
        TrainConfig.load(example, as_words(setting))


@pytest.mark.slow
def test_as_a_user_starts_it(config, tmp_path):
    sweep = write_sweep(tmp_path, parameters={"seed": {"values": [0]}})
    done = subprocess.run(
        [sys.executable, "-m", "training.search", sweep, "--config", config],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "val/macro_f1" in done.stdout


def test_the_agent_of_wandb_trains_what_the_file_says(config, tmp_path):
    """Its own functions make the command; the run's id stands in the environment."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = yaml.safe_load(SWEEP.read_text())
    values = {"seed": {"value": 1}, "model.kind": {"value": "majority"}}
    arguments = utils.create_sweep_command_args({"args": values})["args_no_hyphens"]
    command = utils.create_sweep_command(sweep["command"])
    assert command[-1] == "${args_no_hyphens}"
    shell = (
        command[2]
        .replace("configs/train/my_run.yaml", config)
        .replace("runs_dir=runs/sweep", f"runs_dir={tmp_path}")
    )
    shell = shell.replace("exec python", f"exec {sys.executable}")
    done = subprocess.run(
        [*command[:2], shell, *command[3:-1], *arguments],
        cwd=ROOT,
        env=os.environ | {"WANDB_RUN_ID": "abc123"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = TrainConfig.load(tmp_path / "abc123" / "config.yaml")
    assert (found.seed, found.test, found.model.kind) == (1, False, "majority")
