"""Hop 1: cells on disk -> quality control -> split -> tokens, in ``data/<name>/``.

The steps::

    open_cells        look at the files                             dataset/reading/cells.py
    read_counts       one pass over the files: measure cells, spill counts  dataset/spill.py
    choose_cells      quality control, labels, split: who stays     dataset/choose_cells.py
    find_vocabulary   genes detected in a train cell
    keep_cells        expression/: counts of the cells and genes that stay  dataset/spill.py
    fit_tokenizer     learned/: what the tokenizer learns of the train cells
    encode_splits     train/, val/, test/: tokens, labels, conditions

What has to do with counts goes to workers, some cells at a time (``dataset/encode_steps.py``), so
memory does not grow with the number of cells, and neither the size of a block nor the number of
workers changes a byte of the output. The folder is written atomically.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.already_encoded import check_same
from dataset.choose_cells import Annotations, ChosenCells, choose_cells
from dataset.config import PreprocessConfig
from dataset.describe import describe, write_cells
from dataset.encode_error import EncodeError
from dataset.encode_previous import previous_profiles
from dataset.encode_steps import Share, ToEncode, detect_genes, encode_cells
from dataset.previous.profiles import PreviousProfiles
from dataset.reading.cell_file import file_sha256, fingerprint
from dataset.reading.cell_url import CellPath, CellUrl
from dataset.reading.cells import Cells, open_cells
from dataset.reading.same_files import refuse_copies
from dataset.sources import resolve
from dataset.spill import find_kept, keep_cells, read_counts
from dataset.store.atomic import atomic_folder
from dataset.store.blocks import cut_shares
from dataset.store.checksums import write_checksums
from dataset.store.csr_file import CsrFile, create_npy
from dataset.store.encoded_folder import EncodedFolder
from dataset.store.layout import SPLITS, check_array_names, check_replaceable
from dataset.tokenizers.tokenizer import Tokenizer, TrainCounts
from dataset.vocabulary import Vocabulary
from dataset.workers import Steps, start_workers

logger = logging.getLogger(__name__)


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
    tokenizer: Tokenizer = config.tokenizer
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
    vocabulary, columns = find_vocabulary(source, shares, chosen, steps)
    vocabulary.save(folder / "vocabulary.json")
    _write_json(folder / "class_names.json", chosen.class_names)
    _write_json(folder / "conditions.json", chosen.condition_names)

    expression = folder / "expression"
    keep_cells(shares, chosen.rows, columns, vocabulary.n_genes, expression, steps)
    np.save(expression / "library_size.npy", measures.total_counts[chosen.rows])
    learned = fit_tokenizer(folder, chosen, vocabulary.n_genes, tokenizer, steps)
    messages = source.messages + chosen.messages
    previous = None
    if tokenizer.previous is not None:
        previous, notes = previous_profiles(
            folder, tokenizer.previous, config, source, chosen, columns, vocabulary.n_genes, steps
        )
        messages += notes
    encode_splits(folder, chosen, vocabulary.n_genes, tokenizer, learned, previous, steps)

    sha256 = [future.result() for future in hashes]
    source.check_unchanged()
    write_cells(folder, source, chosen, measures)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    meta = describe(folder, config, source, chosen, sha256, messages)
    _write_json(folder / "meta.json", meta)
    shutil.rmtree(work)
    for message in chosen.messages:
        logger.info(message)


def find_vocabulary(
    cells: Cells, shares: list[Share], chosen: ChosenCells, steps: Steps
) -> tuple[Vocabulary, NDArray[np.int64]]:
    """Take the genes that are detected in a train cell.

    Returns
    -------
    The vocabulary, and for every gene of the files its index in the vocabulary or -1.
    """
    detected = np.zeros(cells.n_genes, dtype=bool)
    train = find_kept(shares, chosen.rows[chosen.of_split("train")])
    for of_some in steps.run("genes", partial(detect_genes, n_genes=cells.n_genes), train):
        detected |= of_some
    vocabulary = Vocabulary(
        tuple(map(str, cells.gene_ids[detected])), tuple(map(str, cells.gene_symbols[detected]))
    )
    return vocabulary, np.where(detected, np.cumsum(detected) - 1, -1)


def fit_tokenizer(
    folder: Path, chosen: ChosenCells, n_genes: int, tokenizer: Tokenizer, steps: Steps
) -> dict[str, NDArray]:
    """Have the tokenizer learn from the train cells; write and return what it learned.

    Raises
    ------
    ValueError
        If that is not something of each gene, in finite numbers: a fault of the tokenizer.
    """
    train = TrainCounts(folder / "expression", chosen.of_split("train"), n_genes)
    learned = tokenizer.fit(train, steps.workers)
    check_array_names(learned)
    (folder / "learned").mkdir()
    for name, array in learned.items():
        if array.ndim == 0 or len(array) != n_genes or not np.isfinite(array).all():
            raise ValueError(f"learned {name!r}: expected finite numbers of {n_genes:,} genes")
        np.save(folder / "learned" / f"{name}.npy", array, allow_pickle=False)
    return learned


def encode_splits(
    folder: Path,
    chosen: ChosenCells,
    n_genes: int,
    tokenizer: Tokenizer,
    learned: Mapping[str, NDArray],
    previous: PreviousProfiles | None,
    steps: Steps,
) -> None:
    """Write the arrays of the three splits."""
    counts = CsrFile(folder / "expression").counts.dtype
    if previous is not None:
        counts = max(counts, previous.counts_dtype, key=lambda dtype: dtype.itemsize)
    dtypes = tokenizer.arrays(n_genes, counts)
    check_array_names(dtypes)
    arrays: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        "lengths": (np.dtype(np.int32), ()),
        "library_size": (np.dtype(np.float32), (tokenizer.n_segments,)),
        **{name: (dtype, (tokenizer.row_length,)) for name, dtype in dtypes.items()},
    }
    for name in SPLITS:
        (folder / name).mkdir()
        rows = chosen.of_split(name)
        for array, (dtype, shape) in arrays.items():
            create_npy(folder / name / f"{array}.npy", dtype, (len(rows), *shape))
        np.save(folder / name / "rows.npy", rows)
        np.save(folder / name / "labels.npy", chosen.labels.codes[rows].astype(np.int64))
        conditions = np.zeros((len(rows), len(chosen.conditions)), dtype=np.int64)
        for column, codes in enumerate(chosen.conditions.values()):
            conditions[:, column] = codes[rows]
        np.save(folder / name / "conditions.npy", conditions)
        if chosen.positions is not None:
            np.save(folder / name / "positions.npy", chosen.positions[rows])
    items, first = [], np.zeros(len(SPLITS), dtype=int)
    for start, stop in cut_shares(0, len(chosen.rows)):
        split = chosen.split.codes[start:stop]
        items.append(ToEncode(start, split, tuple(first.tolist())))
        first += np.bincount(split, minlength=len(SPLITS))
    step = partial(
        encode_cells, folder=folder, tokenizer=tokenizer, learned=learned, dtypes=dtypes,
        previous=previous,
    )  # fmt: skip
    steps.finish("encode", step, items)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
