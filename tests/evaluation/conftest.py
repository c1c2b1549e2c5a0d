"""Two small finished runs on the synthetic cells, made by the training script itself."""

import runpy
from pathlib import Path

import pytest

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
