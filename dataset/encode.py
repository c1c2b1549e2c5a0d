"""Hop 1: cells on disk -> quality control -> split -> tokens, in ``data/<name>/``.

The steps::

    kept_counts       the files' counts, read once, in data/counts/     dataset/keep_counts.py
    measure_cells     counts, genes, mitochondrial share of each cell   dataset/quality_control.py
    choose_cells      quality control, labels, split: who stays         dataset/choose_cells.py
    find_vocabulary   genes detected in a train cell
    fit_tokenizer     learned/: what the tokenizer learns of the train cells
    encode_splits     train/, val/, test/: tokens, labels, conditions

What has to do with counts goes to workers, some cells at a time (``dataset/encode_steps.py``), so
memory does not grow with the number of cells, and neither the size of a block nor the number of
workers changes a byte of the output. The folder is written atomically.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.already_encoded import check_files, open_same_config
from dataset.choose_cells import Annotations, ChosenCells, choose_cells
from dataset.config import PreprocessConfig
from dataset.describe import describe, write_cells
from dataset.encode_folds import configs_to_encode
from dataset.encode_previous import previous_profiles
from dataset.encode_steps import ToEncode, detect_genes, encode_cells
from dataset.keep_counts import kept_counts
from dataset.previous.profiles import PreviousProfiles
from dataset.quality_control import measure_cells
from dataset.store.atomic import atomic_folder
from dataset.store.blocks import cut_shares
from dataset.store.checksums import write_checksums
from dataset.store.count_store import CountStore
from dataset.store.csr_file import create_npy
from dataset.store.encoded_folder import EncodedFolder
from dataset.store.expression import Expression
from dataset.store.layout import SPLITS, check_array_names, check_replaceable
from dataset.tokenizers.tokenizer import Tokenizer, TrainCounts
from dataset.vocabulary import Vocabulary
from dataset.workers import Steps, start_workers

logger = logging.getLogger(__name__)


def encode(config: PreprocessConfig, *, overwrite: bool = False, progress: bool = True) -> Path:
    """Encode a dataset into ``<data_dir>/<name>/``; return at once if that is done.

    Split in folds, each of them becomes such a folder, ``<data_dir>/<name>/fold_<group>/``; those
    that are there already are kept, so an interrupted call is resumed by the same one.

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
    The folder, which ``EncodedFolder`` reads; that of all folds, which ``open_folds`` reads.

    Raises
    ------
    CellFileError
        If a file cannot be used.
    EncodeError
        If the folder was made from another config or other files, or nothing can be learned.
    FolderError
        If the folder is being written, is not ours, or the disk is full. After any error nothing
        is left of the folder; counts that were read to their end are kept.
    """
    with start_workers(config.n_threads, config.cluster) as workers:
        steps = Steps(workers, progress)
        for one in configs_to_encode(config, steps, overwrite=overwrite):
            _encode_one(one, steps, overwrite=overwrite)
    return config.folder


def _encode_one(config: PreprocessConfig, steps: Steps, *, overwrite: bool) -> None:
    folder, found = config.folder, None
    if folder.exists() and overwrite:
        check_replaceable(folder)
    elif folder.exists():
        found = open_same_config(folder, config)
    store = kept_counts(config, steps)
    if found is not None:
        check_files(found, store)
        logger.info("%s: already encoded", folder)
        return
    before = config.tokenizer.previous and config.tokenizer.previous.layer
    layer = kept_counts(config, steps, layer=before) if before else None
    with atomic_folder(folder, check_replaceable) as unfinished:
        _encode_into(unfinished, config, store, layer, steps)
        write_checksums(unfinished, known={"counts": store.checksums})
        EncodedFolder(unfinished)  # what was written can be read


def _encode_into(
    folder: Path,
    config: PreprocessConfig,
    store: CountStore,
    layer: CountStore | None,
    steps: Steps,
) -> None:
    work = folder / "work"  # gone when the folder is whole
    work.mkdir()
    store.link(folder / "counts")
    tokenizer: Tokenizer = config.tokenizer
    obs = Annotations.read(store, config)
    prefix = config.quality_control.mitochondrial_prefix
    measures = measure_cells(store, mitochondrial_prefix=prefix, steps=steps)
    chosen = choose_cells(store, obs, measures, config)
    vocabulary, columns = find_vocabulary(store, chosen, steps)
    vocabulary.save(folder / "vocabulary.json")
    _write_json(folder / "class_names.json", chosen.class_names)
    _write_json(folder / "conditions.json", chosen.condition_names)
    Expression.write(folder, chosen.rows, columns, measures.total_counts[chosen.rows])

    train = chosen.rows[chosen.of_split("train")]
    learned = fit_tokenizer(
        folder, store, train, measures.total_counts[train], columns >= 0, tokenizer, steps
    )
    messages = store.messages + chosen.messages
    previous = None
    if tokenizer.previous is not None:
        previous, notes = previous_profiles(
            folder, tokenizer.previous, config, layer, chosen, columns, vocabulary.n_genes, steps
        )
        messages += notes
    encode_splits(folder, chosen, vocabulary.n_genes, tokenizer, learned, previous, steps)

    write_cells(folder, store, chosen, measures)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    _write_json(folder / "meta.json", describe(folder, config, store, chosen, measures, messages))
    shutil.rmtree(work)
    for message in chosen.messages:
        logger.info(message)


def find_vocabulary(
    store: CountStore, chosen: ChosenCells, steps: Steps
) -> tuple[Vocabulary, NDArray[np.int64]]:
    """Take the genes that are detected in a train cell.

    Returns
    -------
    The vocabulary, and for every gene of the files its index in the vocabulary or -1.
    """
    detected = np.zeros(store.n_genes, dtype=bool)
    train = chosen.rows[chosen.of_split("train")]
    shares = [train[start:stop] for start, stop in cut_shares(0, len(train))]
    step = partial(detect_genes, counts=store.path, n_genes=store.n_genes)
    for of_share in steps.run("genes", step, shares):
        detected |= of_share
    vocabulary = Vocabulary(
        tuple(map(str, store.gene_ids[detected])), tuple(map(str, store.gene_symbols[detected]))
    )
    return vocabulary, np.where(detected, np.cumsum(detected) - 1, -1)


def fit_tokenizer(
    folder: Path,
    store: CountStore,
    train: NDArray[np.int64],
    library_size: NDArray[np.float64],
    in_vocabulary: NDArray[np.bool_],
    tokenizer: Tokenizer,
    steps: Steps,
) -> dict[str, NDArray]:
    """Have the tokenizer learn from the train cells; write and return what it learned.

    Parameters
    ----------
    folder
        The encoded folder.
    store, train, library_size
        Counts of all cells; which of them are train cells, and the library sizes of these.
    in_vocabulary
        Of each gene of the files.
    tokenizer
        Of the config.
    steps
        The workers.

    Raises
    ------
    ValueError
        If that is not something of each gene, in finite numbers: a fault of the tokenizer.
    """
    learned = tokenizer.fit(
        TrainCounts(store.path, train, library_size, store.n_genes), steps.workers
    )
    check_array_names(learned)
    (folder / "learned").mkdir()
    kept = {}
    for name, array in learned.items():
        of_genes = array.ndim > 0 and len(array) == store.n_genes
        if not of_genes or not np.isfinite(array[in_vocabulary]).all():
            raise ValueError(
                f"learned {name!r}: expected finite numbers of {store.n_genes:,} genes"
            )
        kept[name] = array[in_vocabulary]
        np.save(folder / "learned" / f"{name}.npy", kept[name], allow_pickle=False)
    return kept


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
    counts = Expression.open(folder).counts.counts.dtype
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
