"""Cells on disk -> raw counts in row blocks, gene ids and obs, all checked.

``open_cells`` looks at one file or many and says what it found; ``Cells.blocks`` then streams the
counts, a block of cells at a time, so a million cells need no more memory than a thousand. Files
are opened for the length of a pass and not kept open between passes.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from dataset.cell_file import (
    CellFileError,
    file_sha256,
    fingerprint,
    named_errors,
    open_store,
    read_table,
)
from dataset.cell_url import CellPath
from dataset.count_values import FAULTS, Found, check_counts, describe_values
from dataset.gene_names import gene_names
from dataset.matrix_rows import CscRows, CsrRows, DenseRows, Rows, open_matrix
from dataset.sources import resolve

__all__ = ["CellFile", "CellFileError", "Cells", "open_cells"]

logger = logging.getLogger(__name__)

# Layers that "auto" looks in, in this order, after X and raw.
COUNT_LAYERS = ("counts", "raw_counts", "raw", "count", "umi", "umis", "umi_counts", "spliced")
PEEK_CELLS = 256


@dataclass(frozen=True)
class CellFile:
    """One file of cells: where its counts are and how its genes map to the merged ones."""

    path: CellPath
    n_cells: int
    counts_location: str  # "X", "raw" or "layers/NAME"
    found: str
    fingerprint: tuple = field(repr=False)
    columns: np.ndarray | None = field(repr=False)  # merged column of each gene, -1: none

    def sha256(self) -> str:
        """Hash the file's bytes."""
        return file_sha256(self.path)

    def check_unchanged(self) -> None:
        """Raise if the file was rewritten since it was opened."""
        if fingerprint(self.path) != self.fingerprint:
            raise CellFileError(
                f"{self.path}: the file changed while it was being read; wait until nothing "
                "writes to it and start again"
            )


@dataclass(frozen=True)
class Cells:
    """Raw counts of the cells of one file or several, never all in memory at once.

    Attributes
    ----------
    obs
        Columns of all cells; the index is the cell name and unique.
    gene_ids, gene_symbols
        Of the merged genes, ``(n_genes,)``; ids are unique.
    counts_location, found
        Where the counts are (``X``, ``raw``, ``layers/NAME``), and what was found there.
    messages
        Everything that was noticed or changed on the way, for people.
    """

    files: list[CellFile]
    obs: pd.DataFrame
    gene_ids: np.ndarray
    gene_symbols: np.ndarray
    messages: list[str]
    _turned: dict[int, CscRows] = field(default_factory=dict, repr=False)

    @property
    def n_cells(self) -> int:
        """Number of cells of all files."""
        return len(self.obs)

    @property
    def n_genes(self) -> int:
        """Number of merged genes."""
        return len(self.gene_ids)

    @property
    def counts_location(self) -> str:
        """Where the counts are; file by file where files differ."""
        return self._of_files([file.counts_location for file in self.files])

    @property
    def found(self) -> str:
        """What was found there."""
        return self._of_files([file.found for file in self.files])

    def _of_files(self, texts: list[str]) -> str:
        if len(set(texts)) == 1:
            return texts[0]
        return "; ".join(f"{f.path.name}: {t}" for f, t in zip(self.files, texts, strict=True))

    def column(self, key: str) -> pd.Series:
        """Return an obs column, or say which ones there are."""
        if key not in self.obs:
            columns = ", ".join(map(str, self.obs.columns)) or "none"
            names = ", ".join(file.path.name for file in self.files)
            raise CellFileError(f"{names}: no obs column {key!r}; columns: {columns}")
        return self.obs[key]

    def blocks(
        self,
        max_cells: int = 1024,
        *,
        start: int = 0,
        stop: int | None = None,
        n_threads: int = 2,
    ) -> Iterator[tuple[int, csr_matrix]]:
        """Stream the counts in file order.

        Parameters
        ----------
        max_cells
            Most cells in a block; a block never spans two files.
        start, stop
            Range of cells to read; all by default.
        n_threads
            Threads that inflate; with two or more the next block is read while the caller works
            on this one. The blocks are the same.

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
        stop = self.n_cells if stop is None else min(stop, self.n_cells)
        yield from self._blocks(max_cells, start, stop, None, n_threads)

    def _blocks(
        self,
        max_cells: int,
        start: int,
        stop: int,
        wanted: np.ndarray | None,
        n_threads: int,
    ) -> Iterator[tuple[int, csr_matrix]]:
        """Yield the blocks between ``start`` and ``stop`` that hold a cell ``wanted`` (sorted)."""
        offset = 0
        for file in self.files:
            first, last = max(start - offset, 0), min(stop - offset, file.n_cells)
            starts = np.arange(first, last, max_cells)
            if wanted is not None and len(starts):
                n_before = np.searchsorted(wanted, [*(offset + starts), offset + last])
                starts = starts[np.diff(n_before) > 0]
            if len(starts):
                ranges = [(row, min(row + max_cells, last)) for row in starts.tolist()]
                yield from self._file_blocks(file, offset, ranges, n_threads)
            offset += file.n_cells

    def _file_blocks(
        self, file: CellFile, offset: int, ranges: list[tuple[int, int]], n_threads: int
    ) -> Iterator[tuple[int, csr_matrix]]:
        file.check_unchanged()
        with (
            open_store(file.path) as root,
            ThreadPoolExecutor(max(1, n_threads)) as inflaters,
            ThreadPoolExecutor(1) as reader,
        ):
            threads = inflaters if n_threads > 1 else None
            matrix: CsrRows | CscRows | DenseRows | None = self._turned.get(offset)
            if matrix is None:
                with named_errors(file.path, f"reading {file.counts_location}"):
                    matrix = open_matrix(_node(root, file.counts_location), threads)
            ahead = reader.submit(matrix.rows, *ranges[0]) if n_threads > 1 else None
            for i, (row, end) in enumerate(ranges):
                with named_errors(
                    file.path, f"reading {file.counts_location} of cells {row:,} to {end:,}"
                ):
                    rows = ahead.result() if ahead else matrix.rows(row, end)
                if isinstance(matrix, CscRows):
                    self._turned[offset] = matrix  # it has its rows in a file of its own now
                if ahead and i + 1 < len(ranges):
                    ahead = reader.submit(matrix.rows, *ranges[i + 1])
                yield offset + row, self._block(file, rows, offset + row, matrix.shape[1])
        file.check_unchanged()

    def _block(self, file: CellFile, rows: Rows, first_cell: int, n_file_genes: int) -> csr_matrix:
        counts = np.empty(len(rows.data), dtype=np.int32)
        entry, fault = check_counts(rows.indices, rows.data, n_file_genes, counts)
        if fault:
            row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
            raise CellFileError(
                f"{file.path}: {file.counts_location}: cell {self.obs.index[first_cell + row]!r} "
                f"(number {first_cell + row:,}) has a value that is {FAULTS[fault]} "
                f"({rows.data[entry]!s}, gene column {rows.indices[entry]}); raw counts are whole "
                "numbers from 0. Mend the file, or name another place for them (counts: ...)"
            )
        indices = rows.indices.astype(np.int32, copy=False)
        shape = (len(rows.indptr) - 1, n_file_genes)
        indptr = rows.indptr
        if file.columns is not None:
            indices = file.columns[indices]
            shape = (shape[0], self.n_genes)
            if not (kept := indices >= 0).all():
                indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
                indices, counts = indices[kept], counts[kept]
        block = csr_matrix((counts, indices, indptr.astype(np.int32)), shape=shape)
        block.sum_duplicates()
        if len(counts) and block.data.min() == 0:
            block.eliminate_zeros()
        return block

    def to_anndata(self, rows: np.ndarray | Sequence[int] | None = None) -> ad.AnnData:
        """Gather cells in memory, for figures and for scanpy.

        Parameters
        ----------
        rows
            Numbers of the cells wanted, in the order wanted, or a boolean mask; all by default.
        """
        wanted = np.arange(self.n_cells) if rows is None else np.asarray(rows)
        if wanted.dtype == bool:
            wanted = np.flatnonzero(wanted)
        ordered = np.unique(wanted)
        parts = [csr_matrix((0, self.n_genes), dtype=np.int32)]
        for start, block in self._blocks(1024, 0, self.n_cells, ordered, 2):
            a, b = np.searchsorted(ordered, [start, start + block.shape[0]])
            parts.append(block[ordered[a:b] - start])
        counts = vstack(parts, format="csr")[np.searchsorted(ordered, wanted)]
        var = pd.DataFrame({"gene_symbol": self.gene_symbols}, index=self.gene_ids)
        return ad.AnnData(counts.astype(np.float32), obs=self.obs.iloc[wanted].copy(), var=var)

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
    genes: Literal["union", "intersection"] = "union",
) -> Cells:
    """Look at a file of cells, or several, and find the raw counts in each.

    Parameters
    ----------
    input
        Path, address, glob, name of ``dataset.sources.SOURCES``, or a list of them.
    counts
        ``X``, ``raw``, the name of a layer, or ``auto``: the first of X, raw and the layers
        usually named for counts that holds whole non-negative numbers.
    gene_id_key, gene_symbol_key
        Columns of var; ``var_names`` by default.
    genes
        Of several files, the genes of any (absent ones have no counts) or those of all.

    Raises
    ------
    CellFileError
        If a file is missing, damaged or has no raw counts; the message says what was found.
    """
    looks = [_look(path, counts, gene_id_key, gene_symbol_key) for path in resolve(input)]
    messages = [message for look in looks for message in look.messages]
    gene_ids, gene_symbols = _merge_genes(looks, genes, messages)
    column_of = {gene_id: column for column, gene_id in enumerate(gene_ids)}
    files = []
    for look in looks:
        columns = np.array([column_of.get(g, -1) for g in look.gene_ids], dtype=np.int32)
        same = len(columns) == len(gene_ids) and (columns == np.arange(len(columns))).all()
        files.append(
            CellFile(
                path=look.path,
                n_cells=len(look.obs),
                counts_location=look.location,
                found=look.found,
                fingerprint=look.fingerprint,
                columns=None if same else columns,
            )
        )
    obs = _merge_obs(looks, messages)
    for message in messages:
        logger.info(message)
    return Cells(files, obs, gene_ids, gene_symbols, messages)


@dataclass
class _Look:
    """What a first look at one file found."""

    path: CellPath
    fingerprint: tuple
    location: str
    found: str
    obs: pd.DataFrame
    gene_ids: np.ndarray
    gene_symbols: np.ndarray
    messages: list[str]


def _look(
    path: CellPath, counts: str, gene_id_key: str | None, gene_symbol_key: str | None
) -> _Look:
    mark = fingerprint(path)
    with open_store(path) as root:
        obs = read_table(root, "obs", path)
        location, found, messages = _find_counts(root, path, counts)
        var = read_table(root, "raw/var" if location == "raw" else "var", path)
        with named_errors(path, f"opening {location}"):
            shape = open_matrix(_node(root, location)).shape
    if shape != (len(obs), len(var)):
        raise CellFileError(
            f"{path}: {location} is {shape[0]} x {shape[1]} but the file lists {len(obs)} cells "
            f"and {len(var)} genes: the file is damaged, write it anew with anndata"
        )
    if 0 in shape:
        raise CellFileError(f"{path}: nothing to read: {shape[0]} cells x {shape[1]} genes")
    ids, symbols, gene_messages = gene_names(var, path, gene_id_key, gene_symbol_key)
    return _Look(path, mark, location, found, obs, ids, symbols, messages + gene_messages)


def _node(root: Any, location: str) -> Any:
    return root["raw/X" if location == "raw" else location]


def _places(root: Any) -> list[str]:
    """List where the file keeps matrices of cells by genes: X, raw, then its layers."""
    places = [
        place for place in ("X", "raw") if (f"{place}/X" if place == "raw" else place) in root
    ]
    return (
        places + [f"layers/{name}" for name in sorted(root["layers"])]
        if "layers" in root
        else places
    )


def _inspect(root: Any, path: CellPath, place: str) -> Found:
    with named_errors(path, f"reading {place}"):
        matrix = open_matrix(_node(root, place))
        blocks = matrix.peek(PEEK_CELLS)
        return describe_values(blocks, rows_are_cells=not isinstance(matrix, CscRows))


def _find_counts(root: Any, path: CellPath, counts: str) -> tuple[str, str, list[str]]:
    places = _places(root)
    if counts != "auto":
        place = counts if counts in ("X", "raw") else f"layers/{counts.removeprefix('layers/')}"
        if place not in places:
            raise CellFileError(
                f"{path}: counts: {counts}: no such matrix; the file has {', '.join(places)}"
            )
        found = _inspect(root, path, place)
        if found.kind in ("raw counts", "no values"):
            return place, found.text, [f"{path.name}: {place} holds {found.text}, as configured"]
        searched = {place: found}
    else:
        searched = {}
    names = {place.removeprefix("layers/").lower(): place for place in reversed(places)}
    known: list[str] = [place for place in ("X", "raw") if place in places]
    known += [names[name] for name in COUNT_LAYERS if names.get(name, "").startswith("layers/")]
    for place in known + [place for place in places if place not in known]:
        found = searched.get(place) or _inspect(root, path, place)
        searched[place] = found
        if found.kind == "raw counts":
            break
    if counts == "auto" and found.kind == "raw counts" and place in known:
        passed = [f"{p} holds {f.text}" for p, f in searched.items() if p != place]
        note = f" ({'; '.join(passed)})" if passed else ""
        return (
            place,
            found.text,
            [f"{path.name}: counts are read from {place}: {found.text}{note}"],
        )
    listed = "; ".join(f"{p} holds {f.text}" for p, f in searched.items()) or "no matrix at all"
    if found.kind == "raw counts":
        advice = f"say counts: {place.removeprefix('layers/')}, if those are the counts"
    else:
        advice = (
            "nanocell needs raw counts, whole numbers from 0: get the file with the counts in X, "
            "in raw or in a layer"
        )
    raise CellFileError(
        f"{path}: no raw counts in {counts}. Found: {listed}. What to do: {advice}"
    )


def _merge_genes(
    looks: list[_Look], genes: str, messages: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    symbol_of: dict[str, str] = {}
    shared = set(looks[0].gene_ids)
    for look in looks:
        for gene_id, symbol in zip(look.gene_ids, look.gene_symbols, strict=True):
            symbol_of.setdefault(gene_id, symbol)
        shared &= set(look.gene_ids)
    if len(looks) > 1:
        if not shared:
            firsts = "; ".join(f"{look.path.name}: {look.gene_ids[0]}, ..." for look in looks)
            raise CellFileError(
                f"the files have no gene in common ({firsts}); expected the same kind of gene "
                "ids in all: see gene_id_key"
            )
        messages.append(
            f"{len(looks)} files: {len(shared):,} genes in all of them, {len(symbol_of):,} in "
            f"any; the {genes} is used"
        )
    chosen = [g for g in symbol_of if genes == "union" or g in shared]
    symbols = [symbol_of[g] for g in chosen]
    return np.array(chosen, dtype=object), np.array(symbols, dtype=object)


def _merge_obs(looks: list[_Look], messages: list[str]) -> pd.DataFrame:
    names = []
    for look in looks:
        index = look.obs.index
        if n_duplicates := int(index.duplicated().sum()):
            example = index[index.duplicated()][0]
            messages.append(
                f"{look.path.name}: {n_duplicates} cells share the name of another (such as "
                f"{example!r}); -1, -2, ... is added to the later ones"
            )
        names.append(_unique(index))
    if len(looks) == 1:
        obs = looks[0].obs
        obs.index = names[0]
        return obs
    together = names[0].append(names[1:])
    if n_shared := int(together.duplicated().sum()):
        stems = [look.path.stem for look in looks]
        if len(set(stems)) < len(stems):
            stems = [f"{look.path.parent.name}-{look.path.stem}" for look in looks]
        names = [index + f"-{stem}" for index, stem in zip(names, stems, strict=True)]
        messages.append(
            f"{n_shared} cell names are in more than one file; the file's name is added to all"
        )
        together = _unique(names[0].append(names[1:]))
    columns = list(dict.fromkeys(column for look in looks for column in look.obs.columns))
    for look in looks:
        if lacking := [str(column) for column in columns if column not in look.obs]:
            messages.append(f"{look.path.name}: no obs columns {', '.join(lacking)}: left empty")
    merged = {
        column: _join_column([look.obs.get(column) for look in looks], looks) for column in columns
    }
    if "source_file" not in merged:
        merged["source_file"] = pd.Categorical(
            np.repeat([look.path.name for look in looks], [len(look.obs) for look in looks])
        )
    return pd.DataFrame(merged, index=together)


def _join_column(parts: list[pd.Series | None], looks: list[_Look]) -> np.ndarray | pd.Categorical:
    arrays, dtypes = [], {str(part.dtype) for part in parts if part is not None}
    same = len(dtypes) == 1 and not any(part is None for part in parts)
    if same and dtypes != {"category"}:
        return np.concatenate([part.to_numpy() for part in parts])  # type: ignore[union-attr]
    for part, look in zip(parts, looks, strict=True):
        if part is None:
            arrays.append(np.full(len(look.obs), np.nan, dtype=object))
        else:
            arrays.append(part.to_numpy(dtype=object))
    values = np.concatenate(arrays)
    if dtypes == {"category"}:
        return pd.Categorical(values)
    return pd.Series(values).infer_objects().to_numpy()


def _unique(index: pd.Index) -> pd.Index:
    """Add -1, -2, ... to the later cells of one name, never making a name that is taken."""
    if index.is_unique:
        return index
    taken, names = set(index), []
    seen: dict[str, int] = {}
    for name, repeated in zip(index, index.duplicated(), strict=True):
        new = name
        while repeated and new in taken:
            seen[name] = seen.get(name, 0) + 1
            new = f"{name}-{seen[name]}"
        taken.add(new)
        names.append(new)
    return pd.Index(names)
