"""Counts on disk: a CSR matrix in three .npy files, written and read a few rows at a time."""

import io
import math
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dataset.compiled import compiled

UINT16_MAX = 65_535
BLOCK_VALUES = 2**22
# numpy has Python parse the header of a .npy file, and in Python 3.11 two threads that parse at
# once can fail: "AST constructor recursion depth mismatch".
ONE_PARSER = threading.Lock()


class Rows(NamedTuple):
    """Rows of a CSR matrix as plain arrays: scipy would widen the 16-bit ones."""

    indptr: NDArray[np.int64]  # (n_rows + 1,), from 0
    gene_index: NDArray  # (n_values,), ascending in a row
    counts: NDArray  # (n_values,), never zero

    @classmethod
    def from_csr(cls, matrix: csr_matrix) -> Self:
        """Take the rows of a scipy matrix: sorted, duplicates summed, without stored zeros."""
        matrix = csr_matrix(matrix, copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return cls(matrix.indptr.astype(np.int64), matrix.indices, matrix.data)

    def to_csr(self, n_genes: int, dtype: type[np.generic] = np.float32) -> csr_matrix:
        """Return a scipy matrix with values of ``dtype``."""
        wide = np.int32 if len(self.counts) < 2**31 else np.int64
        data, indices, indptr = (
            self.counts.astype(dtype),
            self.gene_index.astype(wide),
            self.indptr.astype(wide),
        )
        return csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes))


def index_dtype(n_genes: int) -> np.dtype:
    """Return the type of a gene's column: 16 bits while they are enough."""
    return np.dtype(np.uint16 if n_genes <= UINT16_MAX + 1 else np.int32)


class NpyWriter:
    """A .npy file that grows: rows are appended; leaving the context completes the header.

    Plain writes, not a memory map: a full disk is then an ``OSError``, not a killed process.
    """

    def __init__(self, path: Path, dtype: np.dtype, row_shape: tuple[int, ...] = ()) -> None:
        self.dtype, self.row_shape, self.n_rows = np.dtype(dtype), row_shape, 0
        self.file = path.open("wb", buffering=0)
        self.header_bytes = len(self._header())

    def __enter__(self) -> Self:
        try:
            self._write(self._header())
        except OSError:
            self.file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.file:
            if kind is None:
                self._complete()

    def append(self, rows: NDArray) -> None:
        """Write rows at the end."""
        self._write(np.ascontiguousarray(rows, dtype=self.dtype).ravel().view(np.uint8).data)
        self.n_rows += len(rows)

    def _complete(self) -> None:
        """Say in the header how many rows there are."""
        self.file.seek(0)
        if self._write(self._header()) != self.header_bytes:
            raise RuntimeError(f"{self.file.name}: the .npy header changed its length")

    def _header(self) -> bytes:
        # numpy leaves room in the header for the first axis to grow.
        header = io.BytesIO()
        content = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.n_rows, *self.row_shape),
        }
        np.lib.format.write_array_header_1_0(header, content)
        return header.getvalue()

    def _write(self, data: bytes | memoryview) -> int:
        left = memoryview(data)
        while len(left):
            left = left[self.file.write(left) :]
        return len(data)


def create_npy(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Create an array of zeros whose rows ``NpyRows`` fills in, in any order."""
    with NpyWriter(path, dtype, shape[1:]) as writer:
        writer.n_rows = shape[0]
        row_bytes = writer.dtype.itemsize * math.prod(shape[1:])
        writer.file.truncate(writer.header_bytes + shape[0] * row_bytes)


class NpyRows:
    """An array on the disk whose rows are written anywhere, by anyone who has some of them.

    Plain writes, not a memory map: a full disk is then an ``OSError``, not a killed process.
    Written twice they are the same, so whoever is interrupted may start again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self.file = self.path.open("r+b", buffering=0)
        try:
            if np.lib.format.read_magic(self.file) != (1, 0):
                raise ValueError(f"{self.path}: expected .npy version 1.0")
            with ONE_PARSER:
                self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
        except (OSError, ValueError):
            self.file.close()
            raise
        self.header_bytes = self.file.tell()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, start: int, rows: NDArray) -> None:
        """Write rows from row ``start`` on."""
        if rows.shape[1:] != self.shape[1:] or start + len(rows) > self.shape[0]:
            raise ValueError(
                f"{self.path}: rows {rows.shape} from {start} on do not fit into {self.shape}"
            )
        at = self.header_bytes + start * self.dtype.itemsize * math.prod(self.shape[1:])
        left = np.ascontiguousarray(rows, dtype=self.dtype).ravel().view(np.uint8).data
        while len(left):
            n = os.pwrite(self.file.fileno(), left, at)
            left, at = left[n:], at + n


class CsrWriter:
    """Write a CSR matrix block by block; counts are 16 bits wide until one does not fit.

    Parameters
    ----------
    folder
        Created if it is not there; gets ``indptr.npy``, ``gene_index.npy`` and ``counts.npy``.
    n_genes
        Columns of the matrix.
    """

    def __init__(self, folder: Path, n_genes: int) -> None:
        self.folder, self.n_genes, self.n_values = folder, n_genes, 0

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        with ExitStack() as files:

            def add(name: str, dtype: np.dtype) -> NpyWriter:
                return files.enter_context(NpyWriter(self.folder / f"{name}.npy", dtype))

            self.indptr = add("indptr", np.dtype(np.int64))
            self.gene_index = add("gene_index", index_dtype(self.n_genes))
            self.counts = NpyWriter(self.folder / "counts.npy", np.dtype(np.uint16))
            files.push(lambda *error: self.counts.__exit__(*error))  # the one there is by then
            self.counts.__enter__()
            self.indptr.append(np.zeros(1, dtype=np.int64))
            self.files = files.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.files.__exit__(*error)  # type: ignore[arg-type]

    def append(self, rows: Rows) -> None:
        """Write the next rows."""
        if np.promote_types(counts_dtype(rows.counts), self.counts.dtype) != self.counts.dtype:
            self._widen(counts_dtype(rows.counts))
        self.indptr.append(rows.indptr[1:] + self.n_values)
        self.gene_index.append(rows.gene_index)
        self.counts.append(rows.counts)
        self.n_values += len(rows.counts)

    def _widen(self, dtype: np.dtype) -> None:
        """Copy the counts written so far to a wider type."""
        self.counts.__exit__(None)
        path, narrow = self.folder / "counts.npy", self.folder / "narrow.npy"
        path.rename(narrow)
        values = np.load(narrow, mmap_mode="r" if self.n_values else None)
        self.counts = NpyWriter(path, dtype)
        self.counts.__enter__()
        for start in range(0, len(values), BLOCK_VALUES):
            self.counts.append(values[start : start + BLOCK_VALUES])
        narrow.unlink()


def counts_dtype(counts: NDArray) -> np.dtype:
    """Return the narrower of uint16 and int32 that holds these counts."""
    return np.dtype(np.uint16 if counts.max(initial=0) <= UINT16_MAX else np.int32)


def open_npy(path: Path) -> NDArray:
    """Memory-map an array; an empty one cannot be mapped and is read. Nothing is unpickled."""
    with ONE_PARSER:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:
            array = np.load(path, allow_pickle=False)
            if array.size:
                raise
            return array


class CsrFile:
    """The three files, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.indptr, self.gene_index, self.counts = (
            np.asarray(open_npy(folder / f"{name}.npy"))
            for name in ("indptr", "gene_index", "counts")
        )

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def rows(self, start: int, stop: int) -> Rows:
        """Return rows ``start`` to ``stop``, still on the disk."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        indptr = self.indptr[start : stop + 1] - first
        return Rows(indptr, self.gene_index[first:last], self.counts[first:last])

    def take(self, rows: NDArray[np.integer], columns: NDArray[np.int64] | None = None) -> Rows:
        """Copy rows from the disk.

        Parameters
        ----------
        rows
            Any, in any order.
        columns
            New column of every gene, in the same order as before, -1: left out; None: the same.

        Raises
        ------
        ValueError
            If a gene is none of ``columns``.
        """
        rows = np.asarray(rows, dtype=np.int64)
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        counts = np.empty(indptr[-1], dtype=self.counts.dtype)
        if columns is None:
            taken = Rows(indptr, np.empty(indptr[-1], dtype=self.gene_index.dtype), counts)
            _copy_rows(self.indptr, self.gene_index, self.counts, rows, *taken)
            return taken
        gene_index = np.empty(indptr[-1], dtype=index_dtype(int(columns.max(initial=-1)) + 1))
        taken = Rows(indptr, gene_index, counts)
        n = _copy_columns(self.indptr, self.gene_index, self.counts, rows, columns, *taken)
        if n < 0:
            raise ValueError(f"{self.folder}: a gene beyond the {len(columns):,} that there are")
        return Rows(indptr, gene_index[:n], counts[:n])


def mark_columns(file: CsrFile, rows: NDArray[np.integer], marked: NDArray[np.bool_]) -> None:
    """Set ``marked`` where one of these rows has a value, ``(n_genes,)``."""
    _mark_columns(file.indptr, file.gene_index, np.asarray(rows, dtype=np.int64), marked)


@compiled
def _mark_columns(indptr, gene_index, rows, marked):
    for i in range(len(rows)):
        for j in range(indptr[rows[i]], indptr[rows[i] + 1]):
            marked[gene_index[j]] = True


@compiled
def _copy_rows(indptr, gene_index, counts, rows, new_indptr, new_gene_index, new_counts):
    for i in range(len(rows)):
        start, stop = indptr[rows[i]], indptr[rows[i] + 1]
        new_gene_index[new_indptr[i] : new_indptr[i + 1]] = gene_index[start:stop]
        new_counts[new_indptr[i] : new_indptr[i + 1]] = counts[start:stop]


@compiled
def _copy_columns(
    indptr, gene_index, counts, rows, columns, new_indptr, new_gene_index, new_counts
):
    n = 0
    for i in range(len(rows)):
        for j in range(indptr[rows[i]], indptr[rows[i] + 1]):
            if not 0 <= gene_index[j] < len(columns):
                return -1
            column = columns[gene_index[j]]
            if column >= 0:
                new_gene_index[n] = column
                new_counts[n] = counts[j]
                n += 1
        new_indptr[i + 1] = n
    return n
