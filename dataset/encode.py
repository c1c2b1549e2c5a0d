"""Hop 1: cells on disk -> quality control -> split -> medians -> ranks, in ``data/<name>/``.

The steps, each a function below or a module of its own::

    open_cells        look at the files
    SpilledCells      one pass over the files: measure cells, put counts aside
    choose_cells      quality control, labels, split: who stays           dataset/choose_cells.py
    learn_genes       medians and vocabulary, from train cells
    keep_counts       expression/: counts of the cells and genes that stay
    rank_split        train/, val/, test/: tokens and the counts behind them

Counts go by in blocks, so memory does not grow with the number of cells, and neither the size of
a block nor the number of threads changes a byte of the output. The folder is written aside and
renamed when it is whole.
"""

import hashlib
import json
import logging
import platform
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from tqdm.auto import tqdm

from configs.base import ConfigError
from configs.schema import PreprocessConfig
from dataset.cell_file import file_sha256, fingerprint
from dataset.choose_cells import ChosenCells, choose_cells
from dataset.csr_file import CsrFile, CsrWriter, NpyWriter, Rows, take_columns
from dataset.encoded_folder import SCHEMA_VERSION, SPLITS, EncodedFolder
from dataset.gene_medians import Block, gene_medians
from dataset.history import fit_history, shuffled_within
from dataset.previous_layer import LayerCells
from dataset.quality_control import measure_cells
from dataset.read import Cells, open_cells
from dataset.sources import resolve
from dataset.tokenizers.rank import RankConfig, RankedCells, rank_rows, token_dtype
from dataset.vocabulary import Vocabulary
from dataset.written_aside import written_aside

logger = logging.getLogger(__name__)

BLOCK_CELLS = 1024
# What does not change a byte of the output; the input's bytes are compared by their hash.
NOT_COMPARED = {"input", "data_dir", "n_threads"}
Item = TypeVar("Item")
Result = TypeVar("Result")


class EncodeError(ValueError):
    """The cells cannot be encoded as configured; nothing was written."""


def encode(config: PreprocessConfig, *, overwrite: bool = False, progress: bool = True) -> Path:
    """Encode a dataset into ``<data_dir>/<name>/``; return at once if that is done.

    Parameters
    ----------
    config
        What to read and how to encode it.
    overwrite
        Replace a folder of this name that was made from another config or other files.
    progress
        Show progress bars.

    Returns
    -------
    The folder, which ``EncodedFolder`` reads.

    Raises
    ------
    CellFileError
        If a file cannot be used.
    EncodeError
        If the folder was made from another config or other files, or nothing can be learned.
    FolderError
        If the folder is being written, is not ours, or the disk is full. After any error nothing
        is left on the disk.
    """
    folder = Path(config.data_dir) / config.name
    files = [(fingerprint(path), file_sha256(path)) for path in resolve(config.input)]
    if folder.exists() and not overwrite:
        _check_finished(folder, config, [sha256 for _, sha256 in files])
        logger.info("%s: already encoded", folder)
        return folder
    with written_aside(folder, "meta.json") as aside:
        _encode_into(aside, config, files, progress)
        EncodedFolder(aside)  # what was written can be read
    return folder


def _encode_into(
    folder: Path, config: PreprocessConfig, files: list[tuple[tuple, str]], progress: bool
) -> None:
    work = folder / "work"  # gone when the folder is whole
    work.mkdir()
    tokenizer = config.tokenizer
    source = open_cells(
        config.input,
        counts=config.counts,
        gene_id_key=config.gene_id_key,
        gene_symbol_key=config.gene_symbol_key,
        genes=config.genes,
    )
    cells = SpilledCells(source, work / "now", config.n_threads, progress)
    if [file.fingerprint for file in source.files] != [mark for mark, _ in files]:
        raise EncodeError(f"{config.input}: a file changed while it was read; start again")
    metrics = measure_cells(
        cells,  # type: ignore[arg-type]
        mitochondrial_prefix=config.quality_control.mitochondrial_prefix,
        max_cells=BLOCK_CELLS,
    )
    chosen = choose_cells(source, metrics, config)
    library_size = metrics["total_counts"].to_numpy(dtype=np.float64)
    vocabulary, medians, columns = learn_genes(
        cells, library_size, chosen.rows_of("train"), config.n_threads, progress
    )
    vocabulary.save(folder / "vocabulary.json")
    np.save(folder / "gene_medians.npy", medians)
    _write_json(folder / "class_names.json", chosen.class_names)

    kept = (chosen.rows, columns, vocabulary.n_genes, config.n_threads)
    expression = keep_counts(cells.counts, folder / "expression", *kept)
    library_size = library_size[chosen.rows]
    np.save(folder / "expression" / "library_size.npy", library_size)
    shutil.rmtree(work / "now")

    messages = source.messages + chosen.messages
    previous: PreviousProfiles | None = None
    if tokenizer.previous is not None:
        previous = _previous_profiles(
            folder, config, source, chosen, expression, library_size, kept, messages,
            progress,
        )  # fmt: skip
    for split in SPLITS:
        rank_split(
            folder / split, split, expression, library_size, chosen, medians, tokenizer,
            previous, config.n_threads, progress,
        )  # fmt: skip
    shutil.rmtree(work)

    source.check_unchanged()
    _write_cells(folder, chosen, metrics, config)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    hashes = [sha256 for _, sha256 in files]
    meta = _meta(config, source, chosen, hashes, vocabulary, expression, messages)
    _write_json(folder / "meta.json", meta)
    for message in chosen.messages:
        logger.info(message)


class SpilledCells:
    """Cells whose counts are put on the disk, uncompressed, the first time they go by.

    Has what ``measure_cells`` needs of ``Cells``, so that measuring the cells and putting them
    aside is one pass over the file. Later passes are over ``counts``.
    """

    def __init__(
        self, cells: Cells, folder: Path, n_threads: int = 1, progress: bool = False
    ) -> None:
        self.source, self.folder = cells, folder
        self.n_threads, self.progress = n_threads, progress
        self.obs, self.gene_ids, self.gene_symbols = cells.obs, cells.gene_ids, cells.gene_symbols

    def blocks(self, max_cells: int) -> Iterator[tuple[int, csr_matrix]]:
        """Stream the counts as ``Cells.blocks`` does, and write them."""
        bar = tqdm(total=self.source.n_cells, desc="read", unit="cell", disable=not self.progress)
        with CsrWriter(self.folder, self.source.n_genes) as writer, bar:
            for start, block in self.source.blocks(max_cells, n_threads=self.n_threads):
                writer.append(Rows(block.indptr, block.indices, block.data))
                yield start, block
                bar.update(block.shape[0])
        self.counts = CsrFile(self.folder)


def learn_genes(
    cells: SpilledCells,
    library_size: NDArray[np.float64],
    train_rows: NDArray[np.int64],
    n_threads: int = 1,
    progress: bool = False,
) -> tuple[Vocabulary, NDArray[np.float32], NDArray[np.int64]]:
    """Learn vocabulary and medians from the train cells.

    Parameters
    ----------
    cells
        With their counts on the disk.
    library_size
        Of all cells of the file, over all genes.
    train_rows
        Cells to learn from.

    Returns
    -------
    The vocabulary (genes detected in a train cell), their medians, and for every gene of the file
    its place in the vocabulary or -1.
    """
    of_train = np.zeros(len(library_size))
    of_train[train_rows] = library_size[train_rows]

    def blocks() -> Iterator[Block]:
        blocks = tqdm(_cut(len(of_train)), desc="medians", unit="block", disable=not progress)
        for start, stop in blocks:
            yield Block(cells.counts.rows(start, stop), of_train[start:stop])

    medians = gene_medians(
        blocks, len(cells.gene_ids), largest_library=of_train.max(), n_threads=n_threads
    )
    detected = np.isfinite(medians)
    vocabulary = Vocabulary(
        tuple(map(str, cells.gene_ids[detected])), tuple(map(str, cells.gene_symbols[detected]))
    )
    columns = np.where(detected, np.cumsum(detected) - 1, -1)
    return vocabulary, medians[detected], columns


def keep_counts(
    counts: CsrFile,
    folder: Path,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    n_genes: int,
    n_threads: int = 1,
) -> CsrFile:
    """Write the counts of some cells and genes.

    Parameters
    ----------
    counts
        Of all cells and genes.
    folder
        To write.
    rows
        Cells to keep.
    columns, n_genes
        New column of every gene (-1: left out), and how many there are.
    """

    def cut_out(block: tuple[int, int]) -> Rows:
        return take_columns(counts.take(rows[slice(*block)]), columns, n_genes)

    with CsrWriter(folder, n_genes) as writer:
        for block in _in_order(cut_out, _cut(len(rows)), n_threads):
            writer.append(block)
    return CsrFile(folder)


@dataclass(frozen=True)
class PreviousProfiles:
    """Where each kept cell's profile at the time point before comes from."""

    place: NDArray[np.int64]  # (n,), the kept cell whose history this one gets (the control)
    profiles: Callable[[NDArray[np.int64]], tuple[Rows, NDArray[np.float64]]]
    counts_dtype: np.dtype


def _previous_profiles(
    folder: Path,
    config: PreprocessConfig,
    source: Cells,
    chosen: ChosenCells,
    expression: CsrFile,
    library_size: NDArray[np.float64],
    kept: tuple,
    messages: list[str],
    progress: bool,
) -> PreviousProfiles:
    """Take the previous profiles from a layer, or fit how to compute them."""
    settings = config.tokenizer.previous
    assert settings is not None
    groups = chosen.split.astype(object)
    if chosen.time is not None:
        groups = groups + "\t" + chosen.time.astype(object)
    place = np.arange(len(groups))
    if settings.shuffle:
        place = shuffled_within(groups.astype(str), settings.seed)
        messages.append("history: shuffled between the cells of a split and time point (control)")

    if settings.layer is not None:
        layer = SpilledCells(
            LayerCells.of(source, settings.layer),
            folder / "work/layer",
            config.n_threads,
            progress,
        )
        sums = [np.asarray(block.sum(axis=1)).ravel() for _, block in layer.blocks(BLOCK_CELLS)]
        library = np.concatenate(sums).astype(np.float64)[chosen.rows]
        counts = keep_counts(layer.counts, folder / "work/previous", *kept)
        shutil.rmtree(layer.folder)
        return PreviousProfiles(
            place, lambda rows: (counts.take(rows), library[rows]), counts.counts.dtype
        )

    if chosen.time is None:
        raise EncodeError(
            "tokenizer.previous: the time point before is needed: name a layer that holds the "
            "previous profile (previous.layer), or the obs column of the time (time_key)"
        )
    if len(chosen.time_points) < 2:
        raise EncodeError(f"time_key {config.time_key!r}: one time point only")
    messages.append(f"history: time points in order: {', '.join(chosen.time_points)}")
    n_genes, time = kept[2], chosen.time
    train = np.flatnonzero(chosen.split == "train")
    history, notes = fit_history(
        expression, library_size, time, train, chosen.time_points, settings, n_genes
    )
    messages += notes
    history.save(folder / "history")

    def profiles(rows: NDArray[np.int64]) -> tuple[Rows, NDArray[np.float64]]:
        counts = expression.take(rows).to_csr(n_genes)
        previous, library = history.profiles(counts, library_size[rows], time[rows])
        return Rows(previous.indptr.astype(np.int64), previous.indices, previous.data), library

    dtype = np.dtype(np.uint16 if history.largest_count() < 2**16 else np.int32)
    return PreviousProfiles(place, profiles, dtype)


def rank_split(
    folder: Path,
    split: str,
    expression: CsrFile,
    library_size: NDArray[np.float64],
    chosen: ChosenCells,
    medians: NDArray[np.float32],
    tokenizer: RankConfig,
    previous: PreviousProfiles | None,
    n_threads: int = 1,
    progress: bool = False,
) -> None:
    """Write the arrays of one split."""
    folder.mkdir()
    rows = np.flatnonzero(chosen.split == split)
    libraries = np.zeros((len(rows), tokenizer.n_segments), dtype=np.float32)
    libraries[:, 0] = library_size[rows]
    ids_dtype, counts_dtype = token_dtype(len(medians)), expression.counts.dtype
    if previous is not None:
        counts_dtype = max(counts_dtype, previous.counts_dtype, key=lambda dtype: dtype.itemsize)

    def rank(block: tuple[int, int]) -> RankedCells:
        these = rows[slice(*block)]
        segments = [expression.take(these)]
        if previous is not None:
            before, library = previous.profiles(previous.place[these])
            segments.append(before)
            libraries[slice(*block), 1] = library
        return rank_rows(
            segments,
            medians,
            n_tokens=tokenizer.n_tokens,
            token_dtype=ids_dtype,
            counts_dtype=counts_dtype,
        )

    width = (tokenizer.row_length,)
    files = (("token_ids", ids_dtype, width), ("counts", counts_dtype, width),
             ("lengths", np.dtype(np.int32), ()))  # fmt: skip
    bar = tqdm(total=len(rows), desc=f"rank {split}", unit="cell", disable=not progress)
    with bar, ExitStack() as stack:
        writers = [
            stack.enter_context(NpyWriter(folder / f"{name}.npy", dtype, shape))
            for name, dtype, shape in files
        ]
        for ranked in _in_order(rank, _cut(len(rows)), n_threads):
            for writer, part in zip(writers, ranked, strict=True):
                writer.append(part)
            bar.update(len(ranked.lengths))
    number_of = {name: i for i, name in enumerate(chosen.class_names)}
    labels = [number_of[label] for label in chosen.labels[rows]]
    np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    np.save(folder / "rows.npy", rows)
    np.save(folder / "library_size.npy", libraries)


def _cut(n_rows: int) -> list[tuple[int, int]]:
    size = BLOCK_CELLS
    return [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def _in_order(
    function: Callable[[Item], Result], items: Iterable[Item], n_threads: int
) -> Iterator[Result]:
    """Map over threads; results come in order, and only a few wait in memory."""
    with ThreadPoolExecutor(n_threads) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# ----------------------------------------------------------------------- the folder


def _check_finished(folder: Path, config: PreprocessConfig, hashes: list[str]) -> None:
    """Raise unless the folder holds what this config and these files give."""
    other = f"choose another name in the config, delete {folder}, or pass overwrite=True"
    done = EncodedFolder(folder)
    if [file.get("sha256") for file in done.meta["source"]["files"]] != hashes:
        raise EncodeError(f"{folder}: was made from other files: {other}")
    try:
        made_with = PreprocessConfig.load(folder / "config.yaml").model_dump(mode="json")
    except ConfigError as error:
        raise EncodeError(f"{error}: {other}") from None
    wanted = config.model_dump(mode="json")
    differ = [k for k in wanted if wanted[k] != made_with[k] and k not in NOT_COMPARED]
    if differ:
        found = "; ".join(f"{k}: {made_with[k]!r}, now {wanted[k]!r}" for k in differ)
        raise EncodeError(f"{folder}: was made with another config ({found}): {other}")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _write_cells(
    folder: Path, chosen: ChosenCells, metrics: pd.DataFrame, config: PreprocessConfig
) -> None:
    table = pd.DataFrame(
        {
            "cell_name": chosen.names,
            "split": chosen.split,
            "label": chosen.labels,
            "batch": chosen.batch,
        }
    )
    if chosen.time is not None:
        table["time"] = chosen.time
    measured = metrics.iloc[chosen.rows]
    for column in ("n_genes", "total_counts", "pct_counts_mt"):
        table[column] = measured[column].to_numpy()
    if chosen.doublet_score is not None:
        table["doublet_score"] = chosen.doublet_score.iloc[chosen.rows].to_numpy()
    table.to_csv(folder / "cells.csv", index=False)
    chosen.dropped.rename_axis("cell_name").reset_index().to_csv(
        folder / "dropped.csv", index=False
    )


def _meta(
    config: PreprocessConfig,
    source: Cells,
    chosen: ChosenCells,
    hashes: list[str],
    vocabulary: Vocabulary,
    expression: CsrFile,
    messages: list[str],
) -> dict[str, Any]:
    n_of_reason = chosen.dropped.value_counts().sort_index()
    lines = (  # a list of them would be the largest thing in memory
        f"{chosen.names[i]}\t{chosen.split[i]}\t{chosen.labels[i]}"
        for i in np.argsort(chosen.names, kind="stable")
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "name": config.name,
        "source": {
            "files": [
                {"path": file.path.name, "sha256": sha256, "n_cells": file.n_cells}
                for file, sha256 in zip(source.files, hashes, strict=True)
            ],
            "counts": source.counts_location,
            "found": source.found,
            "n_cells": source.n_cells,
            "n_genes": source.n_genes,
        },
        "label_key": config.label_key,
        "batch_key": config.batch_key or config.split.key,
        "time_key": config.time_key,
        "organism": config.organism,
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "n_tokens": config.tokenizer.row_length,
        "n_segments": config.tokenizer.n_segments,
        "dtypes": {
            "token_ids": vocabulary.token_dtype.name,
            "gene_index": expression.gene_index.dtype.name,
            "counts": expression.counts.dtype.name,
        },
        "n_cells": {split: int((chosen.split == split).sum()) for split in SPLITS},
        "dropped": {str(reason): int(n) for reason, n in n_of_reason.items()},
        "messages": messages,
        "data_sha256": _sha256([*hashes, source.counts_location]),
        "split_sha256": _sha256(lines),
        "git_commit": _git_commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("numpy", "scipy", "anndata", "numba")},
        },
    }


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
