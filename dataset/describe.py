"""The tables of an encoded folder: who its cells are, and how it was made."""

import csv
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset.already_encoded import NOT_COMPARED
from dataset.choose_cells import ChosenCells
from dataset.config import PreprocessConfig
from dataset.provenance import git_commit
from dataset.quality_control import Measures
from dataset.store.blocks import cut
from dataset.store.count_store import CountStore
from dataset.store.csr_file import open_npy
from dataset.store.encoded_folder import SCHEMA_VERSION
from dataset.store.layout import RESERVED, SPLITS

TABLE_CELLS = 16_384  # lines written in one go


def write_cells(folder: Path, store: CountStore, chosen: ChosenCells, measures: Measures) -> None:
    """Write cells.csv and dropped.csv, some cells at a time."""
    for first, last in cut(0, store.n_cells, TABLE_CELLS):
        names = store.names(first, last)
        a, b = np.searchsorted(chosen.rows, [first, last]).tolist()
        rows = chosen.rows[a:b]
        columns = {
            "cell_name": names[rows - first],
            "split": chosen.split[a:b],
            "label": chosen.labels[a:b],
            "batch": chosen.batch[a:b],
        }
        if chosen.time is not None:
            columns["time"] = chosen.time[a:b]
        columns |= {name: column[rows] for name, column in measures._asdict().items()}
        if chosen.doublet_score is not None:
            columns["doublet_score"] = chosen.doublet_score[a:b]
        codes = chosen.reasons.codes[first:last]
        dropped = {
            "cell_name": names[codes > 0],
            "reason": np.array(chosen.reasons.texts, dtype=object)[codes[codes > 0]],
        }
        for file, table in (("cells.csv", columns), ("dropped.csv", dropped)):
            lines = pd.DataFrame(table)
            lines.to_csv(
                folder / file,
                index=False,
                mode="w" if first == 0 else "a",
                header=first == 0,
                quoting=csv.QUOTE_NONNUMERIC,  # or a lone carriage return would end a line
            )


def describe(
    folder: Path,
    config: PreprocessConfig,
    store: CountStore,
    chosen: ChosenCells,
    measures: Measures,
    messages: list[str],
) -> dict[str, Any]:
    """Return the content of meta.json.

    Parameters
    ----------
    folder
        With all arrays in it.
    config, store, chosen
        What was asked for, read and chosen.
    measures
        Of all cells.
    messages
        What was noticed on the way, for people.
    """
    train = chosen.rows[chosen.of_split("train")]
    learned = {path.stem: open_npy(path) for path in sorted((folder / "learned").iterdir())}
    written = {path.stem: open_npy(path) for path in sorted((folder / SPLITS[0]).iterdir())}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": config.name,
        "fold": _fold(config, store, chosen),
        "source": {
            "files": [
                {"path": file.name, "sha256": file.sha256, "n_cells": file.n_cells}
                for file in store.files
            ],
            "counts": store.counts_location,
            "found": store.found,
            "n_cells": store.n_cells,
            "n_genes": store.n_genes,
            # If not, library sizes are over those that were left.
            "all_genes": config.gene_map is None
            and (len(store.files) == 1 or config.genes == "union"),
        },
        "label_key": config.label_key,
        "batch_key": config.batch_key or config.split.key,
        "time_key": config.time_key,
        "condition_keys": config.condition_keys,
        "position_keys": config.position_keys,
        "organism": config.organism,
        "quality_control": config.quality_control.model_dump(mode="json"),
        # The poorest train cell: nothing was learned of cells with fewer genes than it has.
        "min_detected_genes": int(measures.n_genes[train].min()),
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "n_tokens": config.tokenizer.row_length,
        "n_segments": config.tokenizer.n_segments,
        # What a reader expects of the tokenizer's arrays, (n_genes, ...) and (n_cells, n_tokens).
        "learned": {
            name: {
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "range": [float(array.min(initial=np.inf)), float(array.max(initial=-np.inf))],
            }
            for name, array in learned.items()
        },
        "arrays": {n: a.dtype.name for n, a in written.items() if n not in RESERVED},
        "n_cells": {split: len(chosen.of_split(split)) for split in SPLITS},
        "dropped": chosen.reasons.count(),
        "messages": messages,
        "data_sha256": _data_sha256(store),
        "split_sha256": _sha256(_split_lines(store, chosen)),
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("numpy", "scipy", "anndata", "numba")},
        },
    }


def _fold(
    config: PreprocessConfig, store: CountStore, chosen: ChosenCells
) -> dict[str, Any] | None:
    """Say which fold it is and of which; the hash is of all that folds of one data set share."""
    if config.split.fold is None:
        return None
    shared = config.model_dump(mode="json", exclude=NOT_COMPARED)
    shared["split"]["fold"] = None
    lines = [_data_sha256(store), json.dumps(shared, sort_keys=True), *chosen.folds]
    return {"name": config.split.fold, "of": chosen.folds, "sha256": _sha256(lines)}


def _data_sha256(store: CountStore) -> str:
    return _sha256([*(file.sha256 for file in store.files), store.counts_location])


def _split_lines(store: CountStore, chosen: ChosenCells) -> Iterator[str]:
    """Say of each cell, in file order, its split and its type."""
    for first, last in cut(0, store.n_cells, TABLE_CELLS):
        a, b = np.searchsorted(chosen.rows, [first, last]).tolist()
        names = store.names(first, last)[chosen.rows[a:b] - first]
        labels = chosen.labels[a:b] if chosen.class_names else [""] * (b - a)
        for line in zip(names, chosen.split[a:b], labels, strict=True):
            yield "\t".join(line)


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()
