"""Rows of a stored matrix, a block at a time: CSR, CSC or dense, HDF5 or zarr, memory flat.

Each reader takes the group or array that holds the matrix and answers ``rows(start, stop)``.
Nothing here judges the values; ``dataset/reading/count_values.py`` does.
"""

import tempfile
import weakref
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from dataset.reading.cell_file import DamagedError, EncodingError
from dataset.reading.hdf5_chunks import fast_array

# Entries held at once when a column-wise matrix is transposed: about 50 MB with the sorting.
STRIPE_ENTRIES = 2_000_000
# Starts of rows held at once.
WINDOW = 16_384
# Bytes of a dense matrix held at once.
DENSE_BYTES = 16_000_000


class Rows(NamedTuple):
    """Consecutive rows as stored: ``indptr`` starts at 0; order and values are unchecked."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray


def open_matrix(node: Any) -> "CsrRows | CscRows | DenseRows":
    """Return the reader for a matrix as anndata stores it.

    Raises
    ------
    ValueError
        If the node is not a matrix, or its parts do not fit together.
    """
    if hasattr(node, "shape"):
        return DenseRows(node)
    attributes = dict(node.attrs)
    encoding = attributes.get("encoding-type") or attributes.get("h5sparse_format")
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if shape is None or encoding not in ("csr_matrix", "csc_matrix", "csr", "csc"):
        raise EncodingError(f"expected a CSR, CSC or dense matrix, found {encoding!r}")
    try:
        n_rows, n_columns = (int(n) for n in shape)
    except (TypeError, ValueError):
        raise DamagedError(f"the shape is {shape!r}, expected two numbers") from None
    reader = CsrRows if encoding.startswith("csr") else CscRows
    return reader(node, n_rows, n_columns)


class Starts:
    """``indptr`` of a sparse matrix, read in ranges: a million rows are never held.

    Raises
    ------
    ValueError
        If the parts of the matrix do not fit together.
    """

    def __init__(self, node: Any, n_major: int) -> None:
        for part, kinds in (("data", None), ("indices", "iu"), ("indptr", "iu")):
            _check_vector(part, node[part], kinds)
        self.stored, self.n_entries = node["indptr"], int(node["data"].shape[0])
        if self.stored.shape[0] != n_major + 1:
            raise DamagedError(
                f"indptr has {self.stored.shape[0]} entries, expected {n_major + 1}"
            )
        if node["indices"].shape[0] != self.n_entries:
            raise DamagedError(f"{node['indices'].shape[0]} indices but {self.n_entries} values")
        if int(self.stored[0]) != 0 or int(self.stored[n_major]) != self.n_entries:
            raise DamagedError(f"indptr does not rise from 0 to {self.n_entries}")
        self.first, self.window = 0, np.zeros(0, dtype=np.int64)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Return the starts of a slice without a step."""
        start, stop, _ = part.indices(self.stored.shape[0])
        if not (self.first <= start and stop <= self.first + len(self.window)):
            end = max(stop, start + WINDOW)
            self.first = start
            self.window = np.asarray(self.stored[start:end], dtype=np.int64)
            rising = (np.diff(self.window) >= 0).all()
            inside = self.window.min() >= 0 and self.window.max() <= self.n_entries
            if not (rising and inside):
                raise DamagedError(f"indptr does not rise from 0 to {self.n_entries}")
        return self.window[start - self.first : stop - self.first]


def _check_vector(name: str, array: Any, kinds: str | None) -> None:
    if len(getattr(array, "shape", None) or ()) != 1:
        raise DamagedError(f"{name} is not an array of one dimension")
    if kinds is not None and array.dtype.kind not in kinds:
        raise DamagedError(f"{name} holds {array.dtype}, expected whole numbers")


def _plain(values: Any) -> np.ndarray:
    """Return numbers of a type that numba and scipy know: native, no half floats, no booleans."""
    values = np.asarray(values)
    if values.dtype == np.float16 or values.dtype == bool:
        return values.astype(np.float32 if values.dtype == np.float16 else np.uint8)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


class CsrRows:
    """Row-wise sparse matrix: the rows asked for are one stretch of the stored arrays."""

    def __init__(self, node: Any, n_rows: int, n_columns: int) -> None:
        self.shape = (n_rows, n_columns)
        self.starts = Starts(node, n_rows)
        self.indices = fast_array(node["indices"])
        self.data = fast_array(node["data"])
        self.dtype = self.data.dtype

    def rows(self, start: int, stop: int) -> Rows:
        """Return rows ``start`` to ``stop``."""
        starts = self.starts[start : stop + 1]
        a, b = int(starts[0]), int(starts[-1])
        indptr = starts - a
        return Rows(indptr, _plain(self.indices[a:b]), _plain(self.data[a:b]))

    def peek(self, n_rows: int) -> list[Rows]:
        """Return the first, middle and last rows: enough to say what the values are."""
        n = self.shape[0]
        starts = sorted({0, max(0, n // 2 - n_rows // 2), max(0, n - n_rows)})
        return [self.rows(start, min(n, start + n_rows)) for start in starts]


class DenseRows:
    """Dense matrix: read a stripe of rows at a time, keep what is not zero."""

    def __init__(self, node: Any) -> None:
        if len(node.shape or ()) != 2:
            raise EncodingError(f"expected a matrix, found an array of shape {node.shape}")
        if node.dtype.kind not in "biufc":
            raise EncodingError(f"expected a matrix of numbers, found {node.dtype}")
        self.shape = (int(node.shape[0]), int(node.shape[1]))
        self.node = fast_array(node)
        self.dtype = node.dtype
        # Whole chunks, so that none is inflated twice.
        chunk_rows = node.chunks[0] if node.chunks else 1
        wanted = DENSE_BYTES // max(1, self.shape[1] * node.dtype.itemsize)
        self.stripe_rows = max(1, chunk_rows, wanted // chunk_rows * chunk_rows)
        self.stripe_start, self.stripe = -1, csr_matrix((0, 0))

    def rows(self, start: int, stop: int) -> Rows:
        """Return rows ``start`` to ``stop``."""
        parts = []
        while start < stop:
            first = start // self.stripe_rows * self.stripe_rows
            last = min(first + self.stripe_rows, self.shape[0])
            if first != self.stripe_start:
                self.stripe = csr_matrix(_plain(self.node[first:last]))
                self.stripe_start = first
            end = min(stop, last)
            parts.append(_slice_rows(self.stripe, start - first, end - first))
            start = end
        return _join_rows(parts)

    def peek(self, n_rows: int) -> list[Rows]:
        """Return the first, middle and last rows: enough to say what the values are."""
        return CsrRows.peek(self, n_rows)  # type: ignore[arg-type]


class CscRows:
    """Column-wise sparse matrix, transposed once through a temporary file.

    A first pass counts the entries of each row, which divides the rows into stripes that fit in
    memory; a second appends each entry to its stripe in the file. Both read the stored arrays
    from front to back, so memory stays flat and nothing is read twice as often as needed.
    """

    def __init__(self, node: Any, n_rows: int, n_columns: int) -> None:
        self.shape = (n_rows, n_columns)
        self.column_start = Starts(node, n_columns)[: n_columns + 1]
        self.indices = fast_array(node["indices"])
        self.data = fast_array(node["data"])
        self.dtype = self.data.dtype
        self.files: tuple | None = None
        self.stripe_number, self.stripe = -1, csr_matrix((0, 0))

    def rows(self, start: int, stop: int) -> Rows:
        """Return rows ``start`` to ``stop``."""
        if self.files is None:
            self._transpose()
        parts = []
        while start < stop:
            number = int(np.searchsorted(self.stripe_rows, start, side="right")) - 1
            first, last = (int(row) for row in self.stripe_rows[number : number + 2])
            if number != self.stripe_number:
                self.stripe = self._read_stripe(number, last - first)
                self.stripe_number = number
            end = min(stop, last)
            parts.append(_slice_rows(self.stripe, start - first, end - first))
            start = end
        return _join_rows(parts)

    def peek(self, n_rows: int) -> list[Rows]:
        """Return the first, middle and last columns' values, as rows of unknown cells."""
        del n_rows
        n = int(self.column_start[-1])
        size = min(n, STRIPE_ENTRIES // 4)
        starts = sorted({0, (n - size) // 2, n - size})
        return [
            Rows(np.array([0, size]), np.zeros(0, np.int32), _plain(self.data[a : a + size]))
            for a in starts
        ]

    def _transpose(self) -> None:
        n_entries = int(self.column_start[-1])
        steps = range(0, n_entries, STRIPE_ENTRIES)
        row_entries = np.zeros(self.shape[0], dtype=np.int64)
        for a in steps:
            rows = self._row_numbers(a)
            row_entries += np.bincount(rows, minlength=self.shape[0])
        entries_before = np.concatenate([[0], np.cumsum(row_entries)])
        self.stripe_rows = _stripe_boundaries(entries_before)
        self.stripe_entries = entries_before[self.stripe_rows]
        stripe_of_row = np.repeat(
            np.arange(len(self.stripe_rows) - 1, dtype=np.int32), np.diff(self.stripe_rows)
        )
        # Anonymous files: they vanish with this process, however it ends.
        files = tuple(tempfile.TemporaryFile() for _ in range(3))
        for file in files:
            weakref.finalize(self, file.close)
        position = self.stripe_entries[:-1].copy()
        for a in steps:
            rows = self._row_numbers(a)
            b = a + len(rows)
            values = _plain(self.data[a:b])
            # Column of each entry: columns that begin inside [a, b) cut it into stretches.
            edges = np.clip(self.column_start, a, b)
            columns = np.repeat(np.arange(self.shape[1], dtype=np.int32), np.diff(edges))
            stripes = stripe_of_row[rows]
            order = np.argsort(stripes, kind="stable")  # columns stay ascending in a stripe
            n_of_stripe = np.bincount(stripes, minlength=len(position))
            ends = np.cumsum(n_of_stripe)
            arrays = rows[order].astype(np.int32), columns[order], values[order]
            for stripe in np.flatnonzero(n_of_stripe):
                part = slice(ends[stripe] - n_of_stripe[stripe], ends[stripe])
                for file, array in zip(files, arrays, strict=True):
                    file.seek(int(position[stripe]) * array.itemsize)
                    file.write(array[part].tobytes())
            position += n_of_stripe
        self.files = files  # only now: what is half written is never read

    def _row_numbers(self, a: int) -> np.ndarray:
        rows = _plain(self.indices[a : a + STRIPE_ENTRIES])
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            raise DamagedError(f"a row number outside 0..{self.shape[0] - 1}")
        return rows

    def _read_stripe(self, number: int, n_rows: int) -> csr_matrix:
        assert self.files is not None
        a, b = (int(entry) for entry in self.stripe_entries[number : number + 2])
        arrays = []
        dtypes = [np.dtype(np.int32), np.dtype(np.int32), _plain(np.zeros(0, self.dtype)).dtype]
        for file, dtype in zip(self.files, dtypes, strict=True):
            file.seek(a * dtype.itemsize)
            arrays.append(np.frombuffer(file.read((b - a) * dtype.itemsize), dtype=dtype))
        rows, columns, values = arrays
        rows = rows - np.int32(self.stripe_rows[number])
        return coo_matrix((values, (rows, columns)), shape=(n_rows, self.shape[1])).tocsr()


def _stripe_boundaries(entries_before: np.ndarray) -> np.ndarray:
    """Cut the rows into stretches of about ``STRIPE_ENTRIES`` entries, at least a row each."""
    boundaries, n_rows = [0], len(entries_before) - 1
    while boundaries[-1] < n_rows:
        limit = entries_before[boundaries[-1]] + STRIPE_ENTRIES
        row = int(np.searchsorted(entries_before, limit, side="right")) - 1
        boundaries.append(min(n_rows, max(row, boundaries[-1] + 1)))
    return np.array(boundaries, dtype=np.int64)


def _slice_rows(matrix: csr_matrix, start: int, stop: int) -> Rows:
    a, b = matrix.indptr[start], matrix.indptr[stop]
    indptr = matrix.indptr[start : stop + 1].astype(np.int64) - a
    return Rows(indptr, matrix.indices[a:b], matrix.data[a:b])


def _join_rows(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Rows(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    lengths = np.concatenate([np.diff(part.indptr) for part in parts])
    return Rows(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.data for part in parts]),
    )
