"""``EncodedFolder``: what ``encode`` wrote, opened and checked; the arrays stay on the disk.

All that is opened stays open, so that whoever encodes again under the same name changes nothing
of a folder in use: the old files live on until the last reader lets go of them.
"""

import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from configs.user_error import UserError
from dataset.store.checksums import CHECKSUMS, changed_files, read_checksums
from dataset.store.csr_file import open_npy
from dataset.store.data_facts import DataFacts, FactsError, read_facts
from dataset.store.expression import Expression
from dataset.store.layout import FILES, SPLITS, tokenizer_files
from dataset.store.meta import fault_of_meta

SCHEMA_VERSION = 4  # 4: counts/ of all cells and genes, which encodings share
CHECKED_LINES = 16_384  # of cells.csv at a time
READ_ERRORS = (OSError, ValueError, RecursionError)
ADVICE = "encode again (01_preprocess_sc_data.ipynb, overwrite)"


class EncodedFolderError(UserError):
    """An encoded folder is not there, not whole, or not what was written."""


@dataclass(frozen=True)
class EncodedSplit:
    """The cells of one split.

    ``t`` is the row length, ``s`` the number of segments (1 or 2), ``k`` that of conditions.
    """

    name: str
    arrays: dict[str, NDArray]  # what the tokenizer wrote of each token, by name, (n, t) each
    lengths: NDArray[np.int32]  # (n,), tokens that are not padding
    labels: NDArray[np.int64]  # (n,), -1: unlabelled
    rows: NDArray[np.int64]  # (n,), into the lines of cells.csv
    library_size: NDArray[np.float32]  # (n, s)
    conditions: NDArray[np.int64]  # (n, k), codes of obs columns; below 0: of no train cell
    folder: "EncodedFolder" = field(repr=False)
    positions: NDArray[np.float32] | None = None  # (n, 2)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The split's lines of cells.csv, ``(n,)``."""
        return self.folder.cells.iloc[self.rows].reset_index(drop=True)

    @property
    def cell_names(self) -> NDArray[np.str_]:
        """Names of the cells, ``(n,)``."""
        return self.folder.cells["cell_name"].to_numpy()[self.rows].astype(str)

    @property
    def batches(self) -> NDArray[np.str_]:
        """Donor or batch of the cells, ``(n,)``."""
        return self.folder.cells["batch"].to_numpy()[self.rows].astype(str)


class EncodedFolder:
    """Checked reader of ``data/<name>/``.

    Attributes
    ----------
    path, meta
        The folder and its meta.json.
    facts
        What a network needs to know of these cells.
    vocabulary, class_names, conditions, learned
        Of the facts.

    Raises
    ------
    EncodedFolderError
        If anything is missing, is not what was written, or is of a shape or type that cannot be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise EncodedFolderError(f"{self.path}: no such encoded folder; preprocess first")
        self.meta: dict[str, Any] = self._json("meta.json")
        self._check(isinstance(self.meta, dict), "meta.json", "expected a table of settings")
        if (version := self.meta.get("schema_version")) != SCHEMA_VERSION:
            raise EncodedFolderError(
                f"{self.path}: was written by another version of this code (format {version}, "
                f"this code reads {SCHEMA_VERSION}); {ADVICE}"
            )
        try:
            self._checksums = read_checksums(self.path)
            changed = changed_files(self.path, self._checksums, {*FILES, *self._checksums})
        except READ_ERRORS as error:
            raise self._damaged(CHECKSUMS, _one_line(error)) from None
        if changed:
            self.check_unchanged()  # or all files are those of another folder by now
            file = self.path / min(changed)
            self._check(file.is_file(), min(changed), "not a file")
            raise EncodedFolderError(f"{file}: its content is not what was written; {ADVICE}")
        if fault := fault_of_meta(self.meta):
            raise self._damaged("meta.json", fault)
        for name in tokenizer_files(self.meta):
            self._check(name in self._checksums, name, "without a checksum")
        self.n_tokens: int = self.meta["n_tokens"]
        self.n_segments: int = self.meta["n_segments"]
        self.n_cells: dict[str, int] = {split: self.meta["n_cells"][split] for split in SPLITS}
        try:
            self._facts = read_facts(self.path, self.meta)
        except FactsError as error:
            raise self._damaged(error.file, error.fault) from None
        self.vocabulary, self.class_names = self._facts.vocabulary, self._facts.class_names
        self.conditions, self.learned = self._facts.conditions, self._facts.learned
        self._splits = {split: self._open_split(split) for split in SPLITS}
        self._expression = self._open_expression()
        self._cells_csv = os.open(self.path / "cells.csv", os.O_RDONLY)
        weakref.finalize(self, os.close, self._cells_csv)
        self._check_cells()
        self.check_unchanged()

    @property
    def facts(self) -> DataFacts:
        """Sizes and names that a network is built from."""
        labels = self._splits["train"].labels
        class_sizes = np.bincount(labels[labels >= 0], minlength=len(self.class_names))
        return replace(self._facts, class_sizes=class_sizes)

    def split(self, name: str) -> EncodedSplit:
        """Return ``train``, ``val`` or ``test``."""
        return self._splits[name]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """cells.csv: one line a cell, in file order."""
        (cells,) = self._read_cells(None)
        return cells

    def _read_cells(
        self, columns: list[str] | None, lines: int | None = None
    ) -> Iterator[pd.DataFrame]:
        """Read columns of cells.csv, all at once or some lines at a time."""
        text = dict.fromkeys(("cell_name", "split", "label", "batch", "time"), str)
        how: dict[str, Any] = {
            "usecols": columns,
            "dtype": text,
            "keep_default_na": False,  # a cell type may be called "NA"
            "lineterminator": "\n",  # and a lone carriage return is a character of a name
            "na_values": {"doublet_score": [""], "pct_counts_mt": [""]},
        }
        try:
            with os.fdopen(os.dup(self._cells_csv), "rb") as file:
                file.seek(0)
                if lines is None:
                    yield pd.read_csv(file, **how)
                else:
                    with pd.read_csv(file, chunksize=lines, **how) as parts:
                        yield from parts
        except (OSError, ValueError) as error:
            raise self._damaged("cells.csv", _one_line(error)) from None

    def _check_cells(self) -> None:
        """Compare cells.csv with the arrays, without holding a million lines."""
        splits = [np.zeros(0, dtype=np.int8)]
        needed = ["cell_name", "split", "label", "batch"]
        for part in self._read_cells(needed, CHECKED_LINES):
            splits.append(pd.Categorical(part["split"], categories=SPLITS).codes)
        found, n_cells = np.concatenate(splits), sum(self.n_cells.values())
        self._check(len(found) == n_cells, "cells.csv", f"{len(found)} lines, expected {n_cells}")
        for code, name in enumerate(SPLITS):
            agree = (found[self._splits[name].rows] == code).all()
            self._check(bool(agree), f"{name}/rows.npy", "not as in cells.csv")

    def _open_expression(self) -> Expression:
        n_cells, source = sum(self.n_cells.values()), self.meta["source"]
        indptr = self._array("counts/indptr.npy", (source["n_cells"] + 1,), ("int64",))
        ascending = indptr[0] == 0 and bool((np.diff(indptr) >= 0).all())
        self._check(ascending, "counts/indptr.npy", "not ascending from 0")
        self._array("counts/gene_index.npy", (int(indptr[-1]),), ("uint16", "int32"))
        self._array("counts/counts.npy", (int(indptr[-1]),), ("uint16", "int32"))
        rows = self._array("expression/rows.npy", (n_cells,), ("int64",))
        inside = n_cells == 0 or (rows.min() >= 0 and rows.max() < source["n_cells"])
        self._check(bool(inside), "expression/rows.npy", "cells beyond those of counts/")
        columns = self._array("expression/columns.npy", (source["n_genes"],), ("int64",))
        kept = columns[columns >= 0]
        in_order = np.array_equal(kept, np.arange(self.vocabulary.n_genes))
        self._check(in_order, "expression/columns.npy", "not the genes of the vocabulary")
        self._array("expression/library_size.npy", (n_cells,), ("float64",))
        return Expression.open(self.path)

    def expression(self, split: str) -> tuple[csr_matrix, NDArray[np.float64]]:
        """Return raw counts, ``(n, n_genes)`` float32 in memory, and library sizes over all genes.

        Rows are in the order of ``split(name)``.
        """
        rows = np.asarray(self.split(split).rows)
        return self.counts(rows), self._expression.library_size[rows]

    def counts(self, rows: NDArray[np.integer]) -> csr_matrix:
        """Return raw counts of any lines of cells.csv, ``(n, n_genes)`` float32 in memory."""
        try:
            taken = self._expression.take(rows)
        except ValueError as error:
            raise self._damaged("counts/gene_index.npy", str(error)) from None
        return taken.to_csr(self.vocabulary.n_genes)

    def check_unchanged(self) -> None:
        """Raise if the folder at this path is no longer the one that was opened.

        Who takes a file from the path, instead of from this object, asks afterwards.
        """
        try:
            same = read_checksums(self.path) == self._checksums
        except READ_ERRORS:
            same = False
        if not same:
            raise EncodedFolderError(f"{self.path}: was encoded again meanwhile; start again")

    def _open_split(self, name: str) -> EncodedSplit:
        n, t, s = self.n_cells[name], self.n_tokens, self.n_segments
        arrays = {
            array: self._array(f"{name}/{array}.npy", (n, t), (dtype,))
            for array, dtype in self.meta["arrays"].items()
        }
        lengths = self._array(f"{name}/lengths.npy", (n,), ("int32",))
        labels = self._array(f"{name}/labels.npy", (n,), ("int64",))
        rows = self._array(f"{name}/rows.npy", (n,), ("int64",))
        library_size = self._array(f"{name}/library_size.npy", (n, s), ("float32",))
        n_names = np.array(
            [len(names) for names in self._facts.conditions.values()], dtype=np.int64
        )
        conditions = self._array(f"{name}/conditions.npy", (n, len(n_names)), ("int64",))
        # Of train cells only a missing value is unknown.
        lowest = -1 if name == "train" else -1 - self.meta["source"]["n_cells"]
        known = bool(((conditions >= lowest) & (conditions < n_names)).all())
        self._check(known, f"{name}/conditions.npy", "codes without a name")
        least_label = 0 if self.class_names else -1
        for file, values, low, high in (
            ("lengths.npy", lengths, s, t),
            ("labels.npy", labels, least_label, len(self.class_names) - 1),
            ("rows.npy", rows, 0, sum(self.n_cells.values()) - 1),
        ):
            inside = n == 0 or (values.min() >= low and values.max() <= high)
            self._check(inside, f"{name}/{file}", f"values outside {low} to {high}")
        positions = None
        if self.meta["position_keys"]:
            positions = self._array(f"{name}/positions.npy", (n, 2), ("float32",))
            self._check(bool(np.isfinite(positions).all()), f"{name}/positions.npy", "no numbers")
        return EncodedSplit(
            name, arrays, lengths, labels, rows, library_size, conditions, self, positions
        )

    def _array(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> NDArray:
        """Open an array without reading it, if it is what it should be."""
        path = self.path / name
        try:
            array = open_npy(path)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(name, _one_line(error)) from None
        if array.shape != shape or array.dtype.name not in dtypes:
            raise self._damaged(
                name,
                f"found {array.dtype} {array.shape}, expected {' or '.join(dtypes)} {shape}",
            )
        return array

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except READ_ERRORS as error:
            raise self._damaged(name, _one_line(error)) from None

    def _check(self, good: bool, name: str, fault: str) -> None:
        if not good:
            raise self._damaged(name, fault)

    def _damaged(self, name: str, fault: str) -> EncodedFolderError:
        file = self.path / name
        if not file.exists():
            return EncodedFolderError(f"{file}: missing: the folder is not whole; {ADVICE}")
        return EncodedFolderError(f"{file}: damaged ({fault}); {ADVICE}")


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
