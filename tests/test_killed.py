"""Killed at any moment and started again, encoding and training end as if never stopped.

Run as a script, this file is the process whose forks are killed: it imports everything once,
where a fresh interpreter for every attempt would take seconds to start.
"""

import importlib.util
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tqdm import tqdm

from dataset.config import PreprocessConfig
from dataset.encode import encode
from training.checkpoint import load_tensors

ROOT = Path(__file__).parents[1]
N_KILLS = 30  # at random times, and as many at random file operations
MOST_ATTEMPTS = 200
PARTIAL = re.compile(r"\.[\w.-]+\.partial(-\w+)?")


# ------------------------------------------------------------------------ the killer


def encode_cells(config: str) -> None:
    encode(PreprocessConfig.load(config), progress=False)


def train(config: str) -> None:
    name = "train_model"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "02_train_model.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    if status := sys.modules[name].main(["--config", config]):
        sys.exit(status)


class FileOperations:
    """Counts what this process opens, makes, renames and removes below a folder.

    A clock rarely stops a run between two of them, which is where a folder can be half made.
    """

    NAMES = ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir")

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_done, self.killed_at = str(folder), 0, -1
        sys.addaudithook(self.count)

    def count(self, event: str, arguments: tuple) -> None:
        # Trees are removed by names relative to a descriptor.
        if event in self.NAMES and (
            self.folder in str(arguments[0]) or event in ("os.remove", "os.rmdir")
        ):
            self.n_done += 1
            if self.n_done == self.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes | list | dict]:
    """Read every file; left out are the clock, the peak of memory and the commit of the code."""
    found: dict[str, bytes | list | dict] = {}
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        found[name] = content
        if path.name in ("meta.json", "metrics.json"):
            differ = ("seconds", "start_seconds", "cells_per_second", "peak_memory_mb")
            differ += ("git_commit",)
            found[name] = {k: v for k, v in json.loads(content).items() if k not in differ}
        elif path.name == "checksums.json":
            found[name] = sorted(json.loads(content))  # some are of files that differ
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            found[name] = [
                {k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines
            ]
    return found


def progress_of(folder: Path) -> str:
    """Say how far a killed run got: the epoch of its checkpoint, or the files there are."""
    partial = [*folder.parent.glob("counts/.*"), *folder.parent.glob(f".{folder.name}.partial*")]
    for aside in partial:
        checkpoint = aside / "checkpoint.safetensors"
        if checkpoint.exists():
            return f"epoch {load_tensors(checkpoint)[1]['epoch']}"
        return " ".join(sorted(path.name for path in aside.iterdir()))
    return "done" if folder.exists() else "nothing"


def begin_anew(folder: Path) -> None:
    for made in (folder, folder.parent / "counts"):
        shutil.rmtree(made, ignore_errors=True)


def kill_often(run: Callable[[str], None], config: str, folder: Path) -> None:
    """Print a line of JSON for every attempt: was it killed, how far it got, what is there."""
    # By default tqdm's lock is shared with the forks, and one killed while holding it stops all.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # no thread here when forking
    operations = FileOperations(folder.parent)
    for _ in range(2):  # the first imports and compiles, and the forks inherit that
        begin_anew(folder)
        operations.n_done, start = 0, time.perf_counter()
        run(config)
        seconds, n_operations = time.perf_counter() - start, operations.n_done
    undisturbed = contents(folder)
    begin_anew(folder)

    def attempt(seconds: float, operation: int = -1) -> bool:
        operations.n_done, operations.killed_at = 0, operation
        process = multiprocessing.get_context("fork").Process(target=run, args=[config])
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            sys.exit(f"an attempt ended with status {process.exitcode}")
        return process.exitcode != 0

    rng, n_killed = random.Random(0), 0
    for number in range(MOST_ATTEMPTS):
        last = n_killed == 2 * N_KILLS or number == MOST_ATTEMPTS - 1
        if last:
            killed = attempt(60)
        elif n_killed % 2:
            killed = attempt(60, rng.randint(1, n_operations))
        else:
            killed = attempt(rng.uniform(0, seconds))
        n_killed += killed
        record = {"killed": killed, "progress": progress_of(folder), "differing": []}
        record["beside"] = [n for n in sorted(os.listdir(folder.parent)) if n != "counts"]
        record["beside"] += [path.name for path in folder.parent.glob("counts/.*")]
        if folder.exists():
            found = contents(folder)
            names = found.keys() | undisturbed.keys()
            record["differing"] = [n for n in names if found.get(n) != undisturbed.get(n)]
            begin_anew(folder)
        print(json.dumps(record), flush=True)
        if last:
            break


# ------------------------------------------------------------------------- the tests


def stages_of_kills(task: str, config: Path, folder: Path) -> set[str]:
    """Kill the task often; its folder is absent or whole each time, and whole at the end."""
    folder.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_killed", task, str(config), str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(record["killed"] for record in records) == 2 * N_KILLS
    for record in records:
        assert record["differing"] == []
        for name in record["beside"]:
            assert name == folder.name or PARTIAL.match(name)
        if not record["killed"]:
            assert record["beside"] == [folder.name]
    assert not records[-1]["killed"]
    return {record["progress"] for record in records if record["killed"]}


@pytest.mark.slow
def test_encoding(preprocess_config, tmp_path):
    config = preprocess_config.model_copy(update={"data_dir": str(tmp_path / "data")})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    folder = tmp_path / "data" / config.name
    assert len(stages_of_kills("encode", tmp_path / "config.yaml", folder)) > 5


@pytest.mark.slow
def test_training(encoded_folder, tmp_path):
    config = tmp_path / "config.yaml"
    values = {
        "name": "run",
        "data": str(encoded_folder),
        "runs_dir": str(tmp_path / "runs"),
        "model": {"kind": "rank_transformer", "d_model": 16, "n_heads": 2, "context_genes": 24},
        "optim": {"max_epochs": 4, "batch_size": 16, "lr": 3e-3, "weight_averaging": 0.9},
        "monitor": "macro_f1",
        "augment": {"token_dropout": 0.1, "count_thinning": 0.2},
        "tracking": {"wandb": "disabled"},
        "device": "cpu",
    }
    config.write_text(json.dumps(values))  # JSON is YAML
    stages = stages_of_kills("train", config, tmp_path / "runs" / "run")
    assert len([stage for stage in stages if stage.startswith("epoch")]) > 2
    assert len([stage for stage in stages if not stage.startswith("epoch")]) > 1


if __name__ == "__main__":
    kill_often(
        {"encode": encode_cells, "train": train}[sys.argv[1]], sys.argv[2], Path(sys.argv[3])
    )
