"""Cost of a cell and peak memory, as the number of cells grows.

    python -m benchmarks.scale 20000 200000 1000000

Each size is one fresh process: encode, one epoch of a small model over the train cells,
predictions of the rest. The cells are simulated first, which is timed apart. What is written is
deleted again: a million cells take about 25 GB.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from benchmarks.encode import LABEL_KEY
from benchmarks.measure import DATA, ROOT, alone, show
from benchmarks.simulated_cells import SOURCE, write_cells

BYTES_A_CELL = 25_000
SPARE_BYTES = 20e9


def measure(n_cells: int, *, source: str = SOURCE, label_key: str = LABEL_KEY) -> dict:
    """Measure one size; its files are deleted, the simulated cells only if they are large."""
    needed = n_cells * BYTES_A_CELL + SPARE_BYTES
    if (free := shutil.disk_usage(ROOT).free) < needed:
        raise OSError(
            f"{n_cells:,} cells: {needed / 1e9:.0f} GB of disk wanted, {free / 1e9:.0f} GB free"
        )
    began = time.perf_counter()
    path = DATA / f"scale_{n_cells}.h5ad"
    write_cells(path, n_cells, source=source, compression="fast gzip")
    simulated = time.perf_counter() - began
    found = alone(
        "benchmarks.end_to_end:encode_train_predict",
        path=str(path),
        label_key=label_key,
        n_threads=2,
    )
    path.unlink()
    n = found["n_cells"]
    return {
        "cells": n,
        "encode, cells/s": n / found["encode_seconds"],
        "encode, peak MB": found["encode_mb"],
        "model, cells/s": n / (found["train_seconds"] + found["predict_seconds"]),
        "model, peak MB": found["model_mb"],
        "microseconds a cell": 1e6
        * (found["encode_seconds"] + found["train_seconds"] + found["predict_seconds"])
        / n,
        "accuracy": found["accuracy"],
        "simulating, s": simulated,
    }


def run(sizes: list[int]) -> list[dict]:
    """Measure every size and compare each with the first."""
    rows = []
    for n_cells in sizes:
        row = measure(n_cells)
        first = rows[0] if rows else row
        row["cost of a cell"] = row["microseconds a cell"] / first["microseconds a cell"]
        row["encode memory"] = row["encode, peak MB"] / first["encode, peak MB"]
        rows.append(row)
        show("Scale: simulated cells, encoded by 2 threads; memory beyond the imports", rows)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Read the sizes, measure, print, and write the rows where ``--json`` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args(arguments)
    rows = run(words.sizes)
    if words.json:
        words.json.parent.mkdir(parents=True, exist_ok=True)
        words.json.write_text(json.dumps({"scale": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
