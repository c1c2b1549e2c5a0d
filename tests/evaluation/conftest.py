"""Two small finished runs on the synthetic cells, made by the training script itself."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from dataset.checksums import write_checksums

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def make_run(tmp_path_factory, encoded_folder):
    """Return a function: words of the command line -> folder of the finished run."""
    main = runpy.run_path(str(ROOT / "02_train_model.py"))["main"]
    runs = tmp_path_factory.mktemp("runs")

    def make(name: str, config: str, *words: str, data: Path = encoded_folder) -> Path:
        words = (f"name={name}", f"data={data}", f"runs_dir={runs}", *words)
        quiet = ("tracking.wandb=disabled", "device=cpu")
        assert main(["--config", f"{ROOT}/configs/train/{config}.yaml", *words, *quiet]) == 0
        return runs / name

    return make


@pytest.fixture(scope="session")
def network_run(make_run):
    """Train the smoke config; return the run folder."""
    return make_run("network", "smoke")


@pytest.fixture(scope="session")
def baseline_run(make_run):
    """Fit logistic regression; return the run folder."""
    return make_run("logistic", "logistic_regression_baron_human")


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


class ChangedRun:
    """Copies runs with other content, their checksums taken anew."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_runs = folder, 0

    def __call__(
        self,
        run: Path,
        *,
        meta: Callable[[dict], object] | None = None,
        predictions: dict[str, Callable[[dict], object]] | None = None,
    ) -> Path:
        self.n_runs += 1
        copy = self.folder / f"changed_{self.n_runs}"
        shutil.copytree(run, copy)
        if meta is not None:
            facts = json.loads((copy / "data" / "meta.json").read_text())
            meta(facts)
            (copy / "data" / "meta.json").write_text(json.dumps(facts))
        for split, change in (predictions or {}).items():
            path = copy / f"predictions_{split}.npz"
            arrays = dict(np.load(path))
            change(arrays)
            np.savez(path, **arrays)
        self.sum_up(copy)
        return copy

    def sum_up(self, run: Path) -> None:
        write_checksums(run)


@pytest.fixture
def changed_run(tmp_path):
    """Return a function that copies a run with another meta.json or other predictions."""
    return ChangedRun(tmp_path)
