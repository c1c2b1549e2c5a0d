"""Files of cells -> ``data/counts/<key>/``: inflated once, for every encoding of these files.

The key stands for the input and for what decides which counts are read of it. What is there
already is used again if the files are as they were, or gone. Killed, it leaves nothing.
"""

import hashlib
import json
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import groupby
from pathlib import Path
from typing import Any

from dataset.choose_cells import Annotations
from dataset.config import COUNTS, PreprocessConfig
from dataset.encode_error import EncodeError
from dataset.encode_steps import Share, read_counts, stream_counts
from dataset.previous.layer import of_layer
from dataset.reading.cell_file import file_sha256, fingerprint
from dataset.reading.cell_url import CellPath, CellUrl, without_secrets
from dataset.reading.cells import CellFile, Cells, open_cells
from dataset.reading.same_files import refuse_copies
from dataset.sources import SOURCES, resolve
from dataset.store.atomic import atomic_folder
from dataset.store.blocks import cut_shares
from dataset.store.checksums import write_checksums
from dataset.store.count_store import (
    STORE_VERSION,
    CountStore,
    SourceFile,
    StoreError,
    check_is_store,
)
from dataset.store.csr_file import CsrWriter
from dataset.store.folds import FOLD
from dataset.workers import Steps, start_workers
from dataset.write_cell_table import write_cell_table

logger = logging.getLogger(__name__)


def keep_counts(config: PreprocessConfig, *, progress: bool = True) -> CountStore:
    """Read the files of a config, unless their counts are kept already.

    Parameters
    ----------
    config
        What to read, and where to keep it (``data_dir``).
    progress
        Show a progress bar.

    Raises
    ------
    CellFileError
        If a file cannot be used.
    EncodeError
        If a column that the config names cannot be used, or a file is given twice.
    FolderError
        If the counts are being written by another process, or the disk is full.
    """
    with start_workers(config.n_threads, config.cluster) as workers:
        return kept_counts(config, Steps(workers, progress))


def kept_counts(config: PreprocessConfig, steps: Steps, *, layer: str | None = None) -> CountStore:
    """Do what ``keep_counts`` does by these workers; if named, of a layer of previous profiles."""
    folder = Path(config.data_dir) / COUNTS / _key(config, layer)
    of_folds = sorted(config.folder.glob(f"{FOLD}*/counts"))
    for encoded in (config.folder / "counts", *of_folds):
        if not folder.exists() and layer is None:
            _take_back(folder, encoded)
    store = _open(folder)
    if store is not None and _is_current(store, config):
        return store
    _read_into(folder, config, layer, steps)
    return CountStore(folder)


def _key(config: PreprocessConfig, layer: str | None) -> str:
    """Return the folder's name: the first file's, and a hash of all that decides what is read."""
    inputs = [config.input] if isinstance(config.input, str) else config.input
    settings = {
        "input": [_absolute(text) for text in inputs],
        "layer": layer,
        **config.model_dump(include={"counts", "gene_id_key", "gene_symbol_key", "genes"}),
    }
    if config.gene_map is not None:
        settings["gene_map"] = file_sha256(Path(config.gene_map))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9]+", "_", Path(without_secrets(inputs[0])).stem).strip("_")
    return f"{stem[:40] or 'cells'}-{digest[:8]}"


def _absolute(text: str) -> str:
    if "://" in text:
        return without_secrets(text)
    path = os.path.expanduser(text)
    return text if text in SOURCES and not os.path.exists(path) else os.path.abspath(path)


def _take_back(folder: Path, encoded: Path) -> None:
    """Link an encoded folder's counts back to ``data/counts/``, if they are these."""
    store = _open(encoded)
    if store is not None and store.key == folder.name:
        with atomic_folder(folder, check_is_store) as partial:
            store.link(partial)


def _open(folder: Path) -> CountStore | None:
    if not folder.is_dir():
        return None
    try:
        store = CountStore(folder)
        store.check()
        return store
    except StoreError as error:
        logger.warning("%s: not usable (%s): the files are read again", folder, error)
        return None


def _is_current(store: CountStore, config: PreprocessConfig) -> bool:
    """Return whether the files are those that were read; files that are gone are taken to be."""
    known = [file.path for file in store.files]
    on_disk = [Path(path) for path in known if "://" not in path]
    if len(on_disk) == len(known) and all(fingerprint(path) == ("gone",) for path in on_disk):
        logger.info("%s: no longer there; its counts in %s are used", ", ".join(known), store.path)
        return True
    paths = resolve(config.input)
    if list(map(_recorded, paths)) != known:
        return False
    for path, file in zip(paths, store.files, strict=True):
        if _mark(path) != file.fingerprint and file_sha256(path) != file.sha256:
            logger.info("%s: has changed and is read again", path)
            return False
    return True


def _recorded(path: CellPath) -> str:
    return str(path) if isinstance(path, CellUrl) else os.path.abspath(path)


def _mark(path: CellPath) -> str:
    return hashlib.sha256(repr(fingerprint(path)).encode()).hexdigest()


def _read_into(folder: Path, config: PreprocessConfig, layer: str | None, steps: Steps) -> None:
    paths = resolve(config.input)
    marks = [_mark(path) for path in paths]
    hashes = [steps.workers.executor.submit(file_sha256, path) for path in paths]
    # Files on the disk are hashed while they are looked at; what lies at an address is not,
    # for all who open a memory:// file share its position.
    wait([done for path, done in zip(paths, hashes, strict=True) if isinstance(path, CellUrl)])
    source = open_cells(
        paths,
        counts=config.counts,
        gene_id_key=config.gene_id_key,
        gene_symbol_key=config.gene_symbol_key,
        gene_map=config.gene_map,
        genes=config.genes,
    )
    messages = list(source.messages)
    Annotations.read(source, config)  # a wrong column is reported before minutes of reading
    if layer is not None:
        source = of_layer(source, layer)
    if len(hashes) > 1:
        refuse_copies(source, [future.result() for future in hashes])
    with atomic_folder(folder, check_is_store) as partial:
        with ThreadPoolExecutor(1) as beside:
            table = beside.submit(write_cell_table, partial / "cells.h5ad", source)
            _write_counts(partial, source, steps)
            columns = table.result()
        source.check_unchanged()
        if [_mark(path) for path in paths] != marks:
            raise EncodeError(f"{config.name}: a file changed while it was read; start again")
        content: dict[str, Any] = {
            "version": STORE_VERSION,
            "key": folder.name,
            "files": [
                SourceFile(
                    _recorded(path), path.name, sha256.result(), file.n_cells, mark
                )._asdict()
                for path, sha256, file, mark in zip(
                    paths, hashes, source.files, marks, strict=True
                )
            ],
            "counts": source.counts_location,
            "found": source.found,
            "messages": messages,
            "columns_left_out": columns.left_out,
            "columns_without_order": columns.without_order,
        }
        (partial / "store.json").write_text(
            json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        write_checksums(partial)


def _write_counts(folder: Path, source: Cells, steps: Steps) -> None:
    """Append the counts in order; the workers read some cells each.

    What is stored by columns cannot be begun in the middle: it is read here.
    """
    with CsrWriter(folder, source.n_genes) as writer:
        for is_csc, files in groupby(source.files, key=lambda file: file.is_csc):
            if is_csc:
                for file in files:
                    for rows in stream_counts(Share(file, 0, file.n_cells)):
                        writer.append(rows)
            else:
                shares = [share for file in files for share in _shares(file)]
                for blocks in steps.run("read", read_counts, shares):
                    for rows in blocks:
                        writer.append(rows)


def _shares(file: CellFile) -> list[Share]:
    """Cut a file's cells; an address, which is opened for each share, into larger ones."""
    times = 4 if isinstance(file.path, CellUrl) else 1
    return [Share(file, *cells) for cells in cut_shares(0, file.n_cells, times=times)]
