"""``CountStore``: the counts of all cells of some files, as they were read, once and for all.

A folder with the counts as one CSR matrix (uncompressed, of all cells and all genes), ``obs`` and
``var`` in ``cells.h5ad``, which anndata opens, and in ``store.json`` which files it was read from.
Every encoding of the same files starts from it, whatever its filters, split and tokenizer: the
files are not opened again, and need not be there any more.
"""

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dataset.reading.cell_file import ColumnError, open_store
from dataset.reading.cell_table import CellTable
from dataset.reading.obs_columns import ObsColumns
from dataset.reading.stored_table import read_table
from dataset.store.atomic import FolderError
from dataset.store.checksums import CHECKSUMS, changed_files, read_checksums
from dataset.store.csr_file import CsrFile
from dataset.store.layout import OF_COUNTS

STORE_VERSION = 2
# How file systems say that a file cannot have two names.
NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


class StoreError(ValueError):
    """A store is not there, not whole, or of another version."""


class SourceFile(NamedTuple):
    """A file that counts were read from."""

    path: str  # or address, without what is secret in it
    name: str  # last part of it, for people
    sha256: str
    n_cells: int
    fingerprint: str  # changes when the file is rewritten


class CountStore(ObsColumns):
    """Counts, names, obs and genes of all cells of the files.

    Parameters
    ----------
    path
        The folder.

    Attributes
    ----------
    key
        Stands for the input and for what decides which counts are read of it.
    counts
        ``(n_cells, n_genes)``, memory-mapped.
    gene_ids, gene_symbols
        Of the merged genes, ``(n_genes,)``; ids are unique.
    files
        That were read.
    counts_location, found
        Where the counts were (``X``, ``raw``, ``layers/NAME``), and what was found there.
    messages
        Everything that was noticed or changed in reading, for people.
    checksums
        Of its files, as they were written.

    Raises
    ------
    StoreError
        If it is damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.checksums = read_checksums(path)
            content: dict[str, Any] = json.loads((path / "store.json").read_text(encoding="utf-8"))
            if (version := content.pop("version")) != STORE_VERSION:
                raise StoreError(f"{path}: format {version}, this code reads {STORE_VERSION}")
            self.key: str = content.pop("key")
            self.files = [SourceFile(**file) for file in content.pop("files")]
            self.counts_location: str = content.pop("counts")
            self.found: str = content.pop("found")
            self.messages: list[str] = content.pop("messages")
            self._left_out: dict[str, str] = content.pop("columns_left_out")
            self._without_order: dict[str, str] = content.pop("columns_without_order")
            self.counts = CsrFile(path)
            with open_store(path / "cells.h5ad") as root:
                self.table = CellTable.look(root, path / "cells.h5ad")
                genes = read_table(root, "var", path / "cells.h5ad")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: {error}") from error
        self.gene_ids = genes.index.to_numpy(dtype=object)
        self.gene_symbols = genes["gene_symbol"].to_numpy(dtype=object)

    def check(self) -> None:
        """Raise StoreError unless all files hold what was written."""
        if changed := changed_files(self.path, self.checksums, OF_COUNTS):
            raise StoreError(f"{self.path / changed[0]}: missing or changed")

    @property
    def n_cells(self) -> int:
        """Number of cells of all files."""
        return len(self.counts)

    @property
    def n_genes(self) -> int:
        """Number of merged genes."""
        return len(self.gene_ids)

    def names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Return the names of cells ``start`` to ``stop``, ``(n,)``; no two cells share one."""
        return self.table.names(start, stop)

    @property
    def columns(self) -> list[str]:
        """Names of the obs columns of all files, those that could not be read among them."""
        return [*self.table.columns, *self._left_out]

    @property
    def file_names(self) -> list[str]:
        """Last parts of their paths."""
        return [file.name for file in self.files]

    def stored_column(self, key: str, *, needs_order: bool = False) -> pd.Series:
        """Read an obs column as it was stored, or say why it could not be read."""
        if key in self._left_out:
            raise ColumnError(self._left_out[key])
        if needs_order and key in self._without_order:
            raise ColumnError(self._without_order[key])
        return self.table.column(key)

    def to_anndata(self, rows: NDArray[np.integer]) -> ad.AnnData:
        """Return the counts of some cells in memory, for scanpy."""
        return ad.AnnData(self.counts.take(rows).to_csr(self.n_genes))

    def link(self, folder: Path) -> None:
        """Hard-link the store's files into a new folder; copy them where the disk has no links."""
        link_files(self.path, folder, (*OF_COUNTS, CHECKSUMS))


def link_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Give files a second name in a new folder, or copy them where the disk has no hard links."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            os.link(source / name, target / name)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            shutil.copy2(source / name, target / name)


def check_is_store(folder: Path) -> None:
    """Raise unless the folder holds the files of a store, some of them at least, and no others.

    Raises
    ------
    FolderError
        If it is something else.
    """
    foreign = sorted({path.name for path in folder.iterdir()} - {*OF_COUNTS, CHECKSUMS})
    if foreign:
        raise FolderError(
            f"{folder}: holds what is not of a store of counts ({foreign[0]}) and is not "
            "replaced: move it elsewhere"
        )
