"""Cells made up for the tests, the same in every run; nothing here reaches the network."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

# As 02 does: OpenMP's threads sleep while they wait, and do not fight over the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import papermill
import pytest
import yaml

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.sources import synthetic_cells

ROOT = Path(__file__).parent.parent
# A folder of real .h5ad files; the tests that want one are skipped without it.
REAL_CELLS = Path(os.environ.get("NANOCELL_REAL_CELLS", "data/real"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cells_adata():
    """Return 120 cells x 60 genes of 3 types, 4 donors and 2 times: raw counts in X."""
    rng = np.random.default_rng(1)
    return synthetic_cells(
        rng, n_cells=120, n_genes=60, n_types=3, n_times=2, counts_per_cell=200.0
    )


@pytest.fixture(scope="session")
def synthetic_h5ad(tmp_path_factory):
    """Write the 300 cells of the source named synthetic, and return the path."""
    path = tmp_path_factory.mktemp("cells") / "synthetic.h5ad"
    synthetic_cells(np.random.default_rng(0)).write_h5ad(path, compression="gzip")
    return path


@pytest.fixture(scope="session")
def real_cells():
    """Return the path of a real file by its name; without the real files the test is skipped."""

    def path_of(name):
        path = REAL_CELLS / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"{path} is not here")
        return path

    return path_of


@pytest.fixture(scope="session")
def preprocess_config(tmp_path_factory, synthetic_h5ad):
    """Return the config of ``encoded_folder``: 300 cells, 4 types, donors kept together."""
    return PreprocessConfig(
        name="synthetic_rank",
        input=str(synthetic_h5ad),
        label_key="cell_type",
        quality_control={"min_genes": 5},
        split={"key": "donor"},
        tokenizer={"kind": "rank", "n_tokens": 96},
        data_dir=str(tmp_path_factory.mktemp("data")),
    )


@pytest.fixture(scope="session")
def encoded_folder(preprocess_config):
    """Encode the synthetic cells once; not to be changed by a test. Return the folder's path."""
    return encode(preprocess_config, progress=False)


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


@pytest.fixture(scope="session")
def run_pipeline():
    """Return a function that takes cells through 01, 02, 03 and 04, as a user does."""

    def notebook(folder, name, **parameters):
        out = folder / f"{name}.ipynb"
        papermill.execute_notebook(
            ROOT / f"{name}.ipynb", out, parameters, cwd=ROOT, progress_bar=False
        )
        return out

    def run(folder, cells, query, trainings, **preprocess):
        """Run it in ``folder``.

        ``trainings`` are the name of a config in configs/train and what overrides it, by the
        run's name; the first run names the cells of ``query``. ``preprocess`` overrides
        configs/preprocess/synthetic_rank.yaml. Return the executed notebooks by their number.
        """
        config = yaml.safe_load((ROOT / "configs/preprocess/synthetic_rank.yaml").read_text())
        config |= {"name": "cells", "input": str(cells), "data_dir": f"{folder}/data"}
        (folder / "preprocess.yaml").write_text(yaml.safe_dump(config | preprocess))
        path = f"{folder}/preprocess.yaml"
        executed = {"01": notebook(folder, "01_preprocess_sc_data", config=path)}
        for name, (config, *overrides) in trainings.items():
            subprocess.run(
                [sys.executable, "02_train_model.py", "--config", f"configs/train/{config}.yaml"]
                + [f"name={name}", f"data={folder}/data/cells", f"runs_dir={folder}/runs"]
                + ["tracking.wandb=disabled", *overrides],
                cwd=ROOT,
                check=True,
            )
        executed["03"] = notebook(
            folder,
            "03_compile_evaluation_metrics",
            runs=f"{folder}/runs",
            output=f"{folder}/RESULTS.md",
        )
        executed["04"] = notebook(
            folder,
            "04_annotate_new_cells",
            run=f"{folder}/runs/{next(iter(trainings))}",
            query=str(query),
            output=f"{folder}/annotated.h5ad",
        )
        return executed

    return run
