"""Grid or random search on val: runs of 02 over the settings of a sweep, one after another.

    python -m training.search configs/sweep.yaml --config configs/train/my_run.yaml

Every run is made with ``test: false``, in ``runs/<name of the sweep>/``; the best settings have
the best mean val score over seeds. Interrupted, the same command resumes, and a larger grid adds
runs to those that are there. The file is one of W&B's sweeps, whose agent may run it instead.
"""

import argparse
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from configs.base import Config, ConfigError
from configs.user_error import UserError
from training.config import TrainConfig
from training.runs import Run

SCRIPT = Path(__file__).parent.parent / "02_train_model.py"
INTERRUPTED = 130  # exit status of 02


class ValuesConfig(Config):
    """What is tried of a setting."""

    values: list[Any] = Field(min_length=1)


class MetricConfig(Config):
    """The score that is searched for."""

    name: str = Field(pattern="^val/", description="such as val/macro_f1; never one of test")
    goal: Literal["minimize", "maximize"]


class SweepConfig(Config):
    """A search; the keys are W&B's, as far as they are known here."""

    program: str = Field(default="", description="of W&B's agent alone, as is command")
    command: list[str] = []
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under runs_dir")
    method: Literal["grid", "random"]
    metric: MetricConfig
    parameters: dict[str, ValuesConfig] = Field(
        min_length=1, description="by key of the train config; seed is averaged over"
    )
    run_cap: int | None = Field(
        default=None, ge=1, description="most runs; random draws as many settings, all seeds each"
    )

    @property
    def seeds(self) -> list[Any]:
        """The seeds of every setting; empty: that of the train config alone."""
        return self.parameters["seed"].values if "seed" in self.parameters else []

    def settings(self) -> list[dict[str, Any]]:
        """Return what is tried, without seeds: all of the grid, or a seeded draw from it."""
        tried = {key: item.values for key, item in self.parameters.items() if key != "seed"}
        grid = [dict(zip(tried, row, strict=True)) for row in itertools.product(*tried.values())]
        if self.method == "random":
            order = np.random.default_rng(0).permutation(len(grid))
            grid = [grid[i] for i in order]  # a larger run_cap draws the same ones first
        most = len(grid) if self.run_cap is None else self.run_cap // max(len(self.seeds), 1)
        return grid[: max(most, 1)]


def search(sweep: SweepConfig, config: str, words: list[str]) -> pd.DataFrame:
    """Train what is missing and return the val scores, best settings first.

    Parameters
    ----------
    sweep
        What is tried.
    config, words
        File and ``key=value`` words of a train config, which every run begins with.

    Returns
    -------
    One row for each setting: its values, seeds done, mean and deviation of the score over seeds
    (NaN while one is missing), mean seconds to fit.

    Raises
    ------
    ConfigError
        If any run's config is wrong: before the first one is trained.
    KeyboardInterrupt
        If a run was interrupted.
    """
    folder = Path(TrainConfig.load(config, words).runs_dir) / sweep.name
    own = ["test=false", f"runs_dir={folder}", f"tracking.group={sweep.name}"]
    planned: list[tuple[dict[str, Any], dict[str, list[str]]]] = []
    for setting in sweep.settings():
        of_seeds = [setting | {"seed": seed} for seed in sweep.seeds] or [setting]
        runs = {_name(values): [*words, *as_words(values), *own] for values in of_seeds}
        planned.append((setting, runs))
        for name, run in runs.items():
            TrainConfig.load(config, [*run, f"name={name}"])
    rows = []
    for setting, runs in planned:
        trained = [n for n, run in runs.items() if _train([config, *run, f"name={n}"]) == 0]
        metrics = [Run(folder / name).metrics for name in trained]
        scores = [_score(found["val"], sweep.metric.name) for found in metrics]
        whole = len(trained) == len(runs)
        row: dict[str, Any] = {key: json.dumps(value) for key, value in setting.items()}
        row["seeds"] = len(trained)
        row[sweep.metric.name] = np.mean(scores) if whole else np.nan
        row["sd"] = np.std(scores, ddof=1) if whole and len(scores) > 1 else np.nan
        row["seconds"] = np.mean([found["seconds"] for found in metrics]) if metrics else np.nan
        rows.append(row)
    ascending = sweep.metric.goal == "minimize"
    table = pd.DataFrame(rows).sort_values(sweep.metric.name, ascending=ascending)
    return table.reset_index(drop=True)


def as_words(values: dict[str, Any]) -> list[str]:
    """Return settings as they are written on the command line."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _train(arguments: list[str]) -> int:
    """Run 02 and return its exit status; a finished run says so and does nothing."""
    command = [sys.executable, str(SCRIPT), "--config", *arguments]
    status = subprocess.run(command, check=False).returncode
    if status == INTERRUPTED or status < 0:
        raise KeyboardInterrupt
    return status


def _score(scores: dict[str, float], metric: str) -> float:
    if (name := metric.removeprefix("val/")) not in scores:
        known = ", ".join(f"val/{name}" for name in scores)
        raise ConfigError(f"metric.name: found {metric!r}, expected one of {known}")
    return scores[name]


def _name(values: dict[str, Any]) -> str:
    """Name a run by its settings, seed last: ``d_model-64_lr-0.001_seed0``."""
    parts = [f"{key.rpartition('.')[2]}-{v}" for key, v in values.items() if key != "seed"]
    seed = [f"seed{values['seed']}"] if "seed" in values else []
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join([*parts, *seed]))


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, search, print the table and how to train the best with test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="such as configs/sweep.yaml")
    parser.add_argument("--config", required=True, metavar="FILE", help="configs/train/*.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every run")
    given = parser.parse_intermixed_args(arguments)
    try:
        sweep = SweepConfig.load(given.sweep)
        table = search(sweep, given.config, given.overrides)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table.to_string(float_format="{:.4f}".format))
    if table[sweep.metric.name].isna().all():
        print("error: no setting has all of its runs; what failed stands above", file=sys.stderr)
        return 1
    best = [f"{key}={table[key].iloc[0]}" for key in sweep.settings()[0]]
    start = ["python", SCRIPT.name, "--config", given.config, *given.overrides, *best]
    print("best on val; to see it on test, train it by its own name and once for each seed:")
    print(shlex.join([*start, "name=best_seed0", "seed=0"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
