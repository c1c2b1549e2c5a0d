""".h5ad to tokens on disk: ours with one and two threads, beside the dense peer and the inflater.

The whole of ``encode()`` is timed: hashing the file, reading it, keeping its counts, quality
control, split, exact medians, tokens, checking what was written. Then a second encoding of the
same file, which opens it no more.
"""

import shutil
import time
from pathlib import Path
from statistics import median

from benchmarks.measure import DATA, PeakMemory, alone, own_memory, show
from benchmarks.simulated_cells import SOURCE, write_cells

LABEL_KEY = "cell_type1"


def config_for(name: str, path: str, label_key: str, n_threads: int, n_tokens: int):
    """Return the config that encodes all cells of a file."""
    from dataset.config import PreprocessConfig

    return PreprocessConfig(
        name=name,
        input=path,
        label_key=label_key,
        tokenizer={"kind": "rank", "n_tokens": n_tokens},
        quality_control={"min_genes": 1},
        data_dir=str(DATA),
        n_threads=n_threads,
    )


def ours(path: str, label_key: str, n_threads: int = 1, n_tokens: int = 2048) -> dict:
    """Encode a file, after a few made-up cells for which everything is compiled."""
    from dataset.config import COUNTS
    from dataset.encode import encode

    config = config_for(f"encode_{n_threads}", path, label_key, n_threads, n_tokens)
    imported = own_memory()
    load_compiled(config)
    shutil.rmtree(DATA / COUNTS, ignore_errors=True)
    with PeakMemory() as memory:
        folder = encode(config, overwrite=True, progress=False)
    n_cells = _n_cells(folder)
    began = time.perf_counter()
    second = encode(config.model_copy(update={"name": "second"}), overwrite=True, progress=False)
    again = time.perf_counter() - began
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    for made in (folder, second, DATA / COUNTS):
        shutil.rmtree(made)
    return {
        "cells_per_second": n_cells / memory.seconds,
        "seconds": memory.seconds,
        "peak_mb": memory.peak - imported,
        "second_cells_per_second": n_cells / again,
        "bytes_a_cell": n_bytes / n_cells,
    }


def load_compiled(config) -> None:
    """Load the compiled loops (numba keeps them on the disk) on a few made-up cells."""
    from dataset.encode import encode

    few = config.model_copy(
        update={"name": f"{config.name}_few", "input": "synthetic", "label_key": "cell_type"}
    )
    shutil.rmtree(encode(few, overwrite=True, progress=False))


def _median_of(results: list[dict], key: str) -> float | None:
    """Return the median over the rounds; the peer measures less than we do."""
    return median(r[key] for r in results) if key in results[0] else None


def _n_cells(folder: Path) -> int:
    from dataset.store.encoded_folder import EncodedFolder

    return sum(EncodedFolder(folder).n_cells.values())


def run(*, quick: bool = False, rounds: int = 3) -> list[dict]:
    """Alternate ours and the limit, medians of ``rounds``; the peer once, on fewer cells."""
    n_cells, n_peer = (1_000, 500) if quick else (20_000, 2_000)
    rounds = 1 if quick else rounds
    path = str(write_cells(DATA / f"cells_{n_cells}.h5ad", n_cells))
    found: dict[str, list[dict]] = {"1": [], "2": [], "limit": []}
    for _ in range(rounds):
        found["limit"].append(alone("benchmarks.limits:inflate", path=path))
        for n_threads in (1, 2):
            found[str(n_threads)].append(
                alone(
                    "benchmarks.encode:ours",
                    path=path,
                    label_key=LABEL_KEY,
                    n_threads=n_threads,
                )
            )
    few = str(write_cells(DATA / f"cells_{n_peer}.h5ad", n_peer))
    output = DATA / "dense.npy"
    peer = alone("benchmarks.reference_like:dense_tokenizer", path=few, output=str(output))
    output.unlink()
    limit = median(r["cells_per_second"] for r in found["limit"])
    rows = []
    for label, n, results in (
        ("ours, 1 thread", n_cells, found["1"]),
        ("ours, 2 threads", n_cells, found["2"]),
        ("dense peer", n_peer, [peer]),
    ):
        speed = median(r["cells_per_second"] for r in results)
        rows.append(
            {
                "tokenizer": label,
                "cells": n,
                "cells/s": speed,
                "of the peer": f"{speed / peer['cells_per_second']:.1f}x",
                "inflate alone, cells/s": limit,
                "of inflate": speed / limit,
                "peak MB": median(r["peak_mb"] for r in results),
                "second encoding, cells/s": _median_of(results, "second_cells_per_second"),
                "bytes a cell on disk": _median_of(results, "bytes_a_cell"),
            }
        )
    two = rows[1]["cells/s"] / rows[0]["cells/s"]
    show(f"Encode: gzip .h5ad -> tokens on disk ({SOURCE}, 2 threads are {two:.2f}x)", rows)
    return rows
