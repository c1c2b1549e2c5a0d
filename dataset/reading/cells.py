"""Cells on disk -> raw counts in row blocks, gene ids and obs, all checked.

``open_cells`` looks at one file or many and says what it found; ``Cells.blocks`` then streams the
counts, a block of cells at a time, so a million cells need no more memory than a thousand. Files
are opened for the length of a pass and not kept open between passes.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from dataset.reading.cell_file import (
    CellFileError,
    fingerprint,
    named_errors,
    open_store,
    refuse_external_links,
)
from dataset.reading.cell_names import unique_names
from dataset.reading.cell_table import CellTable
from dataset.reading.cell_url import CellPath
from dataset.reading.count_values import FAULTS, check_counts
from dataset.reading.find_counts import find_counts, node_of
from dataset.reading.find_files import find_files
from dataset.reading.gene_names import gene_names, map_genes, merge_genes, read_gene_map
from dataset.reading.join_columns import compare_columns, join_column
from dataset.reading.matrix_rows import CscRows, CsrRows, DenseRows, Rows, open_matrix
from dataset.reading.obs_columns import ObsColumns
from dataset.reading.stored_table import read_table

__all__ = ["CellFile", "CellFileError", "Cells", "open_cells"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellFile:
    """One file of cells: where its counts are and how its genes map to the merged ones.

    Small, and complete: a worker on another machine can read its share of the cells with it.
    """

    path: CellPath
    n_cells: int
    n_genes: int  # merged genes
    counts_location: str  # "X", "raw" or "layers/NAME"
    found: str
    is_csc: bool  # stored as CSC: cannot be read from the middle
    fingerprint: tuple = field(repr=False)
    columns: np.ndarray | None = field(repr=False)  # merged column of each gene, -1: none

    def check_unchanged(self) -> None:
        """Raise if the file was rewritten since it was opened."""
        if fingerprint(self.path) != self.fingerprint:
            raise CellFileError(
                f"{self.path}: the file changed while it was being read; wait until nothing "
                "writes to it and start again"
            )

    def blocks(
        self, ranges: Iterable[tuple[int, int]], transposed: dict[CellPath, CscRows] | None = None
    ) -> Iterator[tuple[int, csr_matrix]]:
        """Stream the counts of some ranges of rows; see ``Cells.blocks``.

        Parameters
        ----------
        ranges
            First row and the row after the last, of each block.
        transposed
            Where a file stored by columns keeps its rows from one call to the next.
        """
        transposed = {} if transposed is None else transposed
        self.check_unchanged()
        with open_store(self.path) as root:
            matrix: CsrRows | CscRows | DenseRows | None = transposed.get(self.path)
            if matrix is None:
                with named_errors(self.path, f"reading {self.counts_location}"):
                    matrix = open_matrix(node_of(root, self.counts_location))
            for row, end in ranges:
                what = f"reading {self.counts_location} of cells {row:,} to {end:,}"
                with named_errors(self.path, what):
                    rows = matrix.rows(row, end)
                if isinstance(matrix, CscRows):
                    transposed[self.path] = matrix  # it has its rows in a file of its own now
                yield row, self._block(rows, row, matrix.shape[1])
        self.check_unchanged()

    def _block(self, rows: Rows, first_row: int, n_file_genes: int) -> csr_matrix:
        counts = np.empty(len(rows.data), dtype=np.int32)
        entry, fault = check_counts(rows.indices, rows.data, n_file_genes, counts)
        if fault:
            row = first_row + int(np.searchsorted(rows.indptr, entry, side="right")) - 1
            with open_store(self.path) as root:
                (name,) = CellTable.look(root, self.path).names(row, row + 1)
            raise CellFileError(
                f"{self.path}: {self.counts_location}: cell {name!r} "
                f"(number {row:,}) has a value that is {FAULTS[fault]} "
                f"({rows.data[entry]!s}, gene column {rows.indices[entry]}); raw counts are whole "
                "numbers from 0. Mend the file, or name another place for them (counts: ...)"
            )
        indices = rows.indices.astype(np.int32, copy=False)
        shape = (len(rows.indptr) - 1, n_file_genes)
        indptr = rows.indptr
        if self.columns is not None:
            indices = self.columns[indices]
            shape = (shape[0], self.n_genes)
            if not (kept := indices >= 0).all():
                indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
                indices, counts = indices[kept], counts[kept]
        block = csr_matrix((counts, indices, indptr.astype(np.int32)), shape=shape)
        block.sum_duplicates()
        if len(counts) and block.data.min() == 0:
            block.eliminate_zeros()
        return block


@dataclass(frozen=True)
class Cells(ObsColumns):
    """Raw counts of the cells of one file or several, never all in memory at once.

    Attributes
    ----------
    gene_ids, gene_symbols
        Of the merged genes, ``(n_genes,)``; ids are unique.
    counts_location, found
        Where the counts are (``X``, ``raw``, ``layers/NAME``), and what was found there.
    messages
        Everything that was noticed or changed on the way, for people.
    """

    files: list[CellFile]
    tables: list[CellTable]
    gene_ids: np.ndarray
    gene_symbols: np.ndarray
    messages: list[str]
    _names: pd.Index | None = field(default=None, repr=False)  # where they had to be changed
    _transposed: dict[CellPath, CscRows] = field(default_factory=dict, repr=False)

    @property
    def n_cells(self) -> int:
        """Number of cells of all files."""
        return sum(file.n_cells for file in self.files)

    @property
    def n_genes(self) -> int:
        """Number of merged genes."""
        return len(self.gene_ids)

    @property
    def counts_location(self) -> str:
        """Name of the matrix of counts, such as ``X``; file by file where files differ."""
        return self._of_files([file.counts_location for file in self.files])

    @property
    def found(self) -> str:
        """Description of the values there."""
        return self._of_files([file.found for file in self.files])

    def _of_files(self, texts: list[str]) -> str:
        if len(set(texts)) == 1:
            return texts[0]
        return "; ".join(f"{name}: {t}" for name, t in zip(self.file_names, texts, strict=True))

    @property
    def columns(self) -> list[str]:
        """Names of the obs columns of all files."""
        return list(dict.fromkeys(name for table in self.tables for name in table.columns))

    @property
    def file_names(self) -> list[str]:
        """Last parts of their paths."""
        return [file.path.name for file in self.files]

    def stored_column(self, key: str, *, needs_order: bool = False) -> pd.Series:
        """Read an obs column as it is stored, file by file."""
        parts = [table.column(key) if key in table.columns else None for table in self.tables]
        return join_column(key, parts, self.tables, needs_order=needs_order)

    def names(self, start: int, stop: int) -> np.ndarray:
        """Return the names of cells ``start`` to ``stop``, ``(n,)``; no two cells share one."""
        if self._names is not None:
            return self._names[start:stop].to_numpy(dtype=object)
        parts, offset = [np.empty(0, dtype=object)], 0
        for table in self.tables:
            first, last = max(start - offset, 0), min(stop - offset, table.n_cells)
            if first < last:
                parts.append(table.names(first, last))
            offset += table.n_cells
        return np.concatenate(parts)

    def blocks(self, max_cells: int = 1024) -> Iterator[tuple[int, csr_matrix]]:
        """Stream the counts in file order.

        Parameters
        ----------
        max_cells
            Most cells in a block; a block never spans two files.

        Yields
        ------
        Number of the block's first cell, and its counts: ``int32`` CSR, columns as in
        ``gene_ids``, sorted in a row, no zeros stored.

        Raises
        ------
        CellFileError
            Names the file, and the cell where a value is no count; also when the file cannot be
            read to its end or changes meanwhile.
        """
        first_cell = 0
        for file in self.files:
            starts = range(0, file.n_cells, max_cells)
            ranges = [(row, min(row + max_cells, file.n_cells)) for row in starts]
            for row, block in file.blocks(ranges, self._transposed):
                yield first_cell + row, block
            first_cell += file.n_cells

    def check_unchanged(self) -> None:
        """Raise if any of the files was rewritten since it was opened."""
        for file in self.files:
            file.check_unchanged()


def open_cells(
    input: str | CellPath | Sequence[str | CellPath],
    *,
    counts: str = "auto",
    gene_id_key: str | None = None,
    gene_symbol_key: str | None = None,
    gene_map: str | Path | None = None,
    genes: Literal["union", "intersection"] = "union",
) -> Cells:
    """Look at a file of cells, or several, and find the raw counts in each.

    Parameters
    ----------
    input
        Path, address, glob, or a list of them.
    counts
        ``X``, ``raw``, the name of a layer, or ``auto``: the first of X, raw and the layers
        usually named for counts that holds whole non-negative numbers.
    gene_id_key, gene_symbol_key
        Columns of var; ``var_names`` by default.
    gene_map
        Table of genes' names in two species: files of both get the names of its first column.
    genes
        Of several files, the genes of any (absent ones have no counts) or those of all.

    Raises
    ------
    CellFileError
        If a file is missing, damaged or has no raw counts; the message says what was found.
    """
    looks = [_look(path, counts, gene_id_key, gene_symbol_key) for path in find_files(input)]
    if gene_map is not None:
        names_of = read_gene_map(gene_map)
        for look in looks:
            look.gene_ids, message = map_genes(look.gene_ids, names_of, look.path)
            look.messages.append(message)
    messages = [message for look in looks for message in look.messages]
    named = [(look.path.name, look.gene_ids, look.gene_symbols) for look in looks]
    gene_ids, gene_symbols = merge_genes(named, genes, messages)
    column_of = {gene_id: column for column, gene_id in enumerate(gene_ids)}
    files = []
    for look in looks:
        columns = np.array([column_of.get(g, -1) for g in look.gene_ids], dtype=np.int32)
        same = len(columns) == len(gene_ids) and (columns == np.arange(len(columns))).all()
        files.append(
            CellFile(
                path=look.path,
                n_cells=look.table.n_cells,
                n_genes=len(gene_ids),
                counts_location=look.location,
                found=look.found,
                is_csc=look.is_csc,
                fingerprint=look.fingerprint,
                columns=None if same else columns,
            )
        )
    tables = [look.table for look in looks]
    compare_columns(tables, messages)
    names = unique_names(tables, messages)
    for message in messages:
        logger.info(message)
    return Cells(files, tables, gene_ids, gene_symbols, messages, names)


@dataclass
class _Look:
    """Result of a first look at one file."""

    path: CellPath
    fingerprint: tuple
    location: str
    found: str
    is_csc: bool
    table: CellTable
    gene_ids: np.ndarray
    gene_symbols: np.ndarray
    messages: list[str]


def _look(
    path: CellPath, counts: str, gene_id_key: str | None, gene_symbol_key: str | None
) -> _Look:
    mark = fingerprint(path)
    with open_store(path) as root:
        refuse_external_links(root, path)
        table = CellTable.look(root, path)
        location, found, messages = find_counts(root, path, counts)
        var = read_table(root, "raw/var" if location == "raw" else "var", path)
        with named_errors(path, f"opening {location}"):
            matrix = open_matrix(node_of(root, location))
            shape, is_csc = matrix.shape, isinstance(matrix, CscRows)
    if shape != (table.n_cells, len(var)):
        raise CellFileError(
            f"{path}: {location} is {shape[0]} x {shape[1]} but the file lists {table.n_cells} "
            f"cells and {len(var)} genes: the file is damaged, write it anew with anndata"
        )
    if 0 in shape:
        raise CellFileError(f"{path}: nothing to read: {shape[0]} cells x {shape[1]} genes")
    ids, symbols, gene_messages = gene_names(var, path, gene_id_key, gene_symbol_key)
    messages += gene_messages
    return _Look(path, mark, location, found, is_csc, table, ids, symbols, messages)
