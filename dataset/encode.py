"""Hop 1: cells on disk -> quality control -> split -> medians -> ranks, in ``data/<name>/``.

The steps, each a function below::

    open_cells        look at the files                             dataset/reading/cells.py
    read_counts       one pass over the files: measure cells, put counts aside
    choose_cells      quality control, labels, split: who stays     dataset/choose_cells.py
    learn_genes       medians and vocabulary, from train cells      dataset/tokenizers/medians.py
    keep_cells        expression/: counts of the cells and genes that stay
    rank_splits       train/, val/, test/: tokens and the counts behind them

What has to do with counts goes to workers, some cells at a time (``dataset/encode_steps.py``), so
memory does not grow with the number of cells, and neither the size of a block nor the number of
workers changes a byte of the output. The folder is written atomically.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from configs.schema import PreprocessConfig
from dataset.already_encoded import check_same
from dataset.choose_cells import Annotations, ChosenCells, choose_cells
from dataset.describe import describe, write_cells
from dataset.encode_error import EncodeError
from dataset.encode_steps import (
    Kept,
    Share,
    ToRank,
    TrainBlocks,
    cut,
    keep_counts,
    put_aside,
    rank_cells,
    size_counts,
)
from dataset.previous.history import fit_history, shuffled_within
from dataset.previous.layer import of_layer
from dataset.previous.profiles import PreviousProfiles
from dataset.quality_control import Measures, mitochondrial_genes
from dataset.reading.cell_file import file_sha256, fingerprint
from dataset.reading.cell_url import CellPath, CellUrl
from dataset.reading.cells import Cells, open_cells
from dataset.reading.same_files import refuse_copies
from dataset.sources import resolve
from dataset.store.atomic import atomic_folder
from dataset.store.checksums import write_checksums
from dataset.store.csr_file import CsrFile, counts_dtype, create_npy, index_dtype, open_npy
from dataset.store.encoded_folder import EncodedFolder
from dataset.store.layout import SPLITS, check_replaceable
from dataset.tokenizers.medians import gene_medians
from dataset.tokenizers.rank import RankConfig, token_dtype
from dataset.vocabulary import Vocabulary
from dataset.workers import Workers, start_workers

logger = logging.getLogger(__name__)

SHARE_CELLS = 2048  # one worker's share of a step
Item = TypeVar("Item")
Result = TypeVar("Result")


def encode(config: PreprocessConfig, *, overwrite: bool = False, progress: bool = True) -> Path:
    """Encode a dataset into ``<data_dir>/<name>/``; return at once if that is done.

    Parameters
    ----------
    config
        What to read and how to encode it.
    overwrite
        Replace a folder of this name that was made from another config or other files; one that
        holds anything that ``encode`` does not write is left as it is.
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
    paths = resolve(config.input)
    with start_workers(config.n_threads, config.cluster) as workers:
        marks = [fingerprint(path) for path in paths]
        hashes = [workers.executor.submit(file_sha256, path) for path in paths]
        # Files on the disk are hashed while they are looked at; what lies at an address is not,
        # for all who open a memory:// file share its position.
        wait([done for path, done in zip(paths, hashes, strict=True) if isinstance(path, CellUrl)])
        if folder.exists() and not overwrite:
            check_same(folder, config, [sha256.result() for sha256 in hashes])
            logger.info("%s: already encoded", folder)
            return folder
        with atomic_folder(folder, check_replaceable) as unfinished:
            _encode_into(unfinished, config, paths, marks, hashes, Steps(workers, progress))
            write_checksums(unfinished)
            EncodedFolder(unfinished)  # what was written can be read
    return folder


@dataclass(frozen=True)
class Steps:
    """Runs a step on some cells after others, and shows how far it is."""

    workers: Workers
    progress: bool

    def run(
        self, what: str, step: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Result]:
        """Yield what the step returns for each item, in order."""
        disable = not self.progress
        with tqdm(total=len(items), desc=what, unit="block", disable=disable) as bar:
            for result in self.workers.map(step, items):
                yield result
                bar.update()

    def finish(self, what: str, step: Callable[[Item], Any], items: Sequence[Item]) -> None:
        """Run a step for what it writes."""
        for _ in self.run(what, step, items):
            pass


def _encode_into(
    folder: Path,
    config: PreprocessConfig,
    paths: Sequence[CellPath],
    marks: list[tuple],
    hashes: "list[Future[str]]",
    steps: Steps,
) -> None:
    """Do the steps; ``marks`` and ``hashes`` are the files' before anything was read."""
    work = folder / "work"  # gone when the folder is whole
    work.mkdir()
    tokenizer = config.tokenizer
    source = open_cells(
        paths,
        counts=config.counts,
        gene_id_key=config.gene_id_key,
        gene_symbol_key=config.gene_symbol_key,
        genes=config.genes,
    )
    if [file.fingerprint for file in source.files] != marks:
        raise EncodeError(f"{config.name}: a file changed while it was read; start again")
    if len(hashes) > 1:
        refuse_copies(source, [future.result() for future in hashes])
    obs = Annotations.read(source, config)
    shares, measures = read_counts(
        source, work / "now", config.quality_control.mitochondrial_prefix, steps
    )
    chosen = choose_cells(source, obs, measures, config)
    vocabulary, medians, columns = learn_genes(source, shares, work, chosen, steps)
    vocabulary.save(folder / "vocabulary.json")
    np.save(folder / "gene_medians.npy", medians)
    _write_json(folder / "class_names.json", chosen.class_names)

    expression = folder / "expression"
    keep_cells(shares, chosen.rows, columns, vocabulary.n_genes, expression, steps)
    np.save(expression / "library_size.npy", measures.total_counts[chosen.rows])
    messages = source.messages + chosen.messages
    previous = None
    if tokenizer.previous is not None:
        previous, notes = _previous_profiles(
            folder, config, source, chosen, columns, vocabulary.n_genes, steps
        )
        messages += notes
    rank_splits(folder, chosen, medians, tokenizer, previous, steps)

    sha256 = [future.result() for future in hashes]
    source.check_unchanged()
    write_cells(folder, source, chosen, measures)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    meta = describe(config, source, chosen, sha256, vocabulary, CsrFile(expression), messages)
    _write_json(folder / "meta.json", meta)
    shutil.rmtree(work)
    for message in chosen.messages:
        logger.info(message)


def read_counts(
    cells: Cells, folder: Path, mitochondrial_prefix: str, steps: Steps
) -> tuple[list[Share], Measures]:
    """Read the files once: measure every cell, put the counts aside.

    Returns
    -------
    The cells in shares, whose counts are on the disk uncompressed, and the measures of all cells,
    memory-mapped.
    """
    folder.mkdir()
    shares: list[Share] = []
    offset = 0
    for file in cells.files:
        # Columns are turned in one go, and an address is asked as rarely as can be.
        whole = file.by_columns or isinstance(file.path, CellUrl)
        size = file.n_cells if whole else SHARE_CELLS
        for start, stop in cut(0, file.n_cells, size):
            place = folder / f"{len(shares):06d}"
            shares.append(Share(file, start, stop, offset + start, place))
        offset += file.n_cells
    for name, dtype in zip(Measures._fields, (np.int64, np.float64, np.float64), strict=True):
        create_npy(folder / f"{name}.npy", np.dtype(dtype), (cells.n_cells,))
    is_mitochondrial = mitochondrial_genes(cells, mitochondrial_prefix)
    step = partial(put_aside, measures=folder, is_mitochondrial=is_mitochondrial)
    steps.finish("read", step, shares)
    return shares, Measures(*(open_npy(folder / f"{name}.npy") for name in Measures._fields))


def learn_genes(
    cells: Cells, shares: list[Share], work: Path, chosen: ChosenCells, steps: Steps
) -> tuple[Vocabulary, NDArray[np.float32], NDArray[np.int64]]:
    """Learn vocabulary and medians from the train cells.

    Returns
    -------
    The vocabulary (genes detected in a train cell), their medians, and for every gene of the
    files its place in the vocabulary or -1.
    """
    rows = chosen.rows[chosen.of_split("train")]
    is_train = np.zeros(cells.n_cells, dtype=bool)
    is_train[rows] = True
    np.save(work / "is_train.npy", is_train)
    library_size = work / "now" / "total_counts.npy"
    pieces = [piece for share in shares for piece in share.pieces(SHARE_CELLS)]
    n_groups = min(len(pieces), steps.workers.n_workers)
    medians = gene_medians(
        steps.workers,
        [
            TrainBlocks(pieces[first:last], work / "is_train.npy", library_size)
            for first, last in pairwise(np.linspace(0, len(pieces), n_groups + 1).astype(int))
        ],
        cells.n_genes,
        largest_library=float(open_npy(library_size)[rows].max()),
    )
    detected = np.isfinite(medians)
    vocabulary = Vocabulary(
        tuple(map(str, cells.gene_ids[detected])), tuple(map(str, cells.gene_symbols[detected]))
    )
    columns = np.where(detected, np.cumsum(detected) - 1, -1)
    return vocabulary, medians[detected], columns


def keep_cells(
    shares: list[Share],
    rows: NDArray[np.integer],
    columns: NDArray[np.int64],
    n_genes: int,
    folder: Path,
    steps: Steps,
) -> None:
    """Write the counts of some cells and genes as one CSR matrix, and drop what was put aside.

    Parameters
    ----------
    shares
        All cells, put aside.
    rows
        Cells to keep, ascending.
    columns, n_genes
        New column of every gene (-1: left out), and how many there are.
    folder
        To write; may exist.
    """
    kept = []
    for piece in (piece for share in shares for piece in share.pieces(SHARE_CELLS)):
        last = piece.first_cell + piece.stop - piece.start
        a, b = np.searchsorted(rows, [piece.first_cell, last]).tolist()
        if a < b:
            of_piece = np.asarray(rows[a:b], dtype=np.int64) - (piece.first_cell - piece.start)
            kept.append(Kept(piece.folder, of_piece, a))
    folder.mkdir(exist_ok=True)
    indptr, largest = np.zeros(len(rows) + 1, dtype=np.int64), 0
    sizes = steps.run("sizes", partial(size_counts, columns=columns), kept)
    for cells, (n_values, most) in zip(kept, sizes, strict=True):
        indptr[cells.place + 1 : cells.place + 1 + len(n_values)] = n_values
        largest = max(largest, most)
    np.cumsum(indptr, out=indptr)
    np.save(folder / "indptr.npy", indptr)
    n_all = (int(indptr[-1]),)
    create_npy(folder / "gene_index.npy", index_dtype(n_genes), n_all)
    create_npy(folder / "counts.npy", counts_dtype(np.array([largest])), n_all)
    del indptr
    step = partial(keep_counts, columns=columns, n_genes=n_genes, folder=folder)
    for i, _ in enumerate(steps.run("counts", step, kept)):
        # What is done with goes at once: it would crowd the rest out of the disk cache.
        if i + 1 == len(kept) or kept[i + 1].folder != kept[i].folder:
            shutil.rmtree(kept[i].folder)


def rank_splits(
    folder: Path,
    chosen: ChosenCells,
    medians: NDArray[np.float32],
    tokenizer: RankConfig,
    previous: PreviousProfiles | None,
    steps: Steps,
) -> None:
    """Write the arrays of the three splits."""
    counts = CsrFile(folder / "expression").counts.dtype
    if previous is not None:
        counts = max(counts, previous.counts_dtype, key=lambda dtype: dtype.itemsize)
    dtypes = {"token_ids": token_dtype(len(medians)), "counts": counts}
    for name in SPLITS:
        (folder / name).mkdir()
        rows = chosen.of_split(name)
        arrays = {
            "token_ids": (dtypes["token_ids"], (tokenizer.row_length,)),
            "counts": (dtypes["counts"], (tokenizer.row_length,)),
            "lengths": (np.dtype(np.int32), ()),
            "library_size": (np.dtype(np.float32), (tokenizer.n_segments,)),
        }
        for array, (dtype, shape) in arrays.items():
            create_npy(folder / name / f"{array}.npy", dtype, (len(rows), *shape))
        np.save(folder / name / "rows.npy", rows)
        np.save(folder / name / "labels.npy", chosen.labels.codes[rows].astype(np.int64))
    items, places = [], np.zeros(len(SPLITS), dtype=int)
    for start, stop in cut(0, len(chosen.rows), SHARE_CELLS):
        split = chosen.split.codes[start:stop]
        items.append(ToRank(start, split, tuple(places.tolist())))
        places += np.bincount(split, minlength=len(SPLITS))
    step = partial(
        rank_cells, folder=folder, medians=medians, n_tokens=tokenizer.n_tokens,
        previous=previous,
    )  # fmt: skip
    steps.finish("rank", step, items)


def _previous_profiles(
    folder: Path,
    config: PreprocessConfig,
    source: Cells,
    chosen: ChosenCells,
    columns: NDArray[np.int64],
    n_genes: int,
    steps: Steps,
) -> tuple[PreviousProfiles, list[str]]:
    """Take the previous profiles from a layer, or fit how to compute them."""
    settings = config.tokenizer.previous
    assert settings is not None
    messages: list[str] = []
    place = np.arange(len(chosen.rows))
    if settings.shuffle:
        groups = np.asarray(chosen.split, dtype=object)
        if chosen.time is not None:
            groups = groups + "\t" + np.asarray(chosen.time, dtype=object)
        place = shuffled_within(groups.astype(str), settings.seed)
        messages.append("history: shuffled between the cells of a split and time point (control)")
    previous = folder / "work" / "previous"
    previous.mkdir()
    np.save(previous / "place.npy", place)

    if settings.layer is not None:
        layer = of_layer(source, settings.layer)
        prefix = config.quality_control.mitochondrial_prefix
        shares, measures = read_counts(layer, folder / "work" / "layer", prefix, steps)
        keep_cells(shares, chosen.rows, columns, n_genes, previous, steps)
        np.save(previous / "library_size.npy", measures.total_counts[chosen.rows])
        dtype = CsrFile(previous).counts.dtype
        return PreviousProfiles(previous, dtype, n_genes), messages

    if chosen.time is None:
        raise EncodeError(
            "tokenizer.previous: the time point before is needed: name a layer that holds the "
            "previous profile (previous.layer), or the obs column of the time (time_key)"
        )
    time = np.asarray(chosen.time).astype(str)
    in_train = np.unique(time[chosen.of_split("train")])
    if len(in_train) < 2:
        raise EncodeError(
            f"time_key {config.time_key!r}: one time point only ({in_train[0]}) in train; a "
            "history needs two"
        )
    messages.append(f"history: time points in order: {', '.join(chosen.time_points)}")
    np.save(previous / "time.npy", time)
    expression = folder / "expression"
    history, notes = fit_history(
        CsrFile(expression), open_npy(expression / "library_size.npy"), time,
        chosen.of_split("train"), chosen.time_points, settings, n_genes,
    )  # fmt: skip
    messages += notes
    history.save(folder / "history")
    dtype = np.dtype(np.uint16 if history.largest_count() < 2**16 else np.int32)
    profiles = PreviousProfiles(previous, dtype, n_genes, expression, folder / "history")
    return profiles, messages


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
