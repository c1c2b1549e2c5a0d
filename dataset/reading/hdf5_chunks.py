"""Gzip-compressed HDF5 arrays, inflated about twice as fast as HDF5 does it, and never too far.

Public atlases are gzip, and inflating is what reading them costs. HDF5 hands out the compressed
chunks as they are; ISA-L inflates them and lets go of Python's lock, so that threads which read
different cells do not wait for each other. Whatever is unusual about a chunk (not compressed,
damaged) is left to HDF5 itself, but for one that holds more than its data set declares: of such a
one HDF5 makes gigabytes in memory, and says nothing.
"""

from itertools import product
from typing import Any

import h5py
import numpy as np

from dataset.reading.cell_file import DamagedError

try:
    from isal import isal_zlib as inflater
except ImportError:  # a machine without wheels of isal: right, and slower
    import zlib as inflater  # type: ignore[no-redef]

InflateError: Any = inflater.error
DEFLATE, SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
CHECKSUM_BYTES = 4  # a filter may add a checksum to a chunk before it is compressed

REFERENCE_BYTES = 16  # what stands in a chunk for a string of any length: length, address, number


def fast_array(array: Any) -> Any:
    """Wrap a gzip vector or matrix of numbers; return anything else as it came."""
    if not isinstance(array, h5py.Dataset) or array.ndim not in (1, 2) or array.chunks is None:
        return array
    filters = _filters(array)
    if filters not in ([DEFLATE], [SHUFFLE, DEFLATE]) or array.dtype.kind not in "biuf":
        return array
    return GzipArray(array, shuffled=SHUFFLE in filters)


def check_inflated(array: h5py.Dataset) -> None:
    """Raise if a gzip chunk holds more than the data set declares.

    This inflates all of it, so it is for small arrays which HDF5 itself is to read: obs and var.
    """
    if array.chunks is None or DEFLATE not in _filters(array):
        return
    reader = ChunkReader(array)
    for at in product(*map(range, [0] * array.ndim, array.shape, array.chunks)):
        reader.read(at)


def _filters(array: h5py.Dataset) -> list[int]:
    properties = array.id.get_create_plist()
    return [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]


class ChunkReader:
    """Inflates the chunks of a gzip data set, each to the size that the data set declares."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.unpacked = 1 << _filters(dataset).index(DEFLATE)  # set of a chunk that is not gzip
        item = REFERENCE_BYTES if dataset.dtype.hasobject else dataset.dtype.itemsize
        self.n_bytes = int(np.prod(dataset.chunks, dtype=np.int64)) * item

    def read(self, at: tuple[int, ...]) -> bytes | None:
        """Return the bytes of the chunk that begins at ``at``; None if HDF5 is to read it.

        Raises
        ------
        DamagedError
            If there are more than the data set declares.
        """
        try:
            filter_mask, compressed = self.dataset.id.read_direct_chunk(at)
        except (OSError, RuntimeError, ValueError):
            return None
        if filter_mask & self.unpacked:
            return None
        stream, limit = inflater.decompressobj(), self.n_bytes + CHECKSUM_BYTES
        try:
            plain = stream.decompress(compressed, limit + 1)
        except InflateError:
            return None
        if len(plain) > limit:
            name = self.dataset.name.rpartition("/")[2]
            raise DamagedError(f"{name}: a chunk holds more than its {self.n_bytes:,} bytes")
        is_whole = stream.eof and len(plain) == self.n_bytes and filter_mask == 0
        return plain if is_whole else None


class GzipArray:
    """Reads slices of rows like the data set it wraps; made to be read from front to back."""

    def __init__(self, dataset: h5py.Dataset, *, shuffled: bool) -> None:
        self.dataset, self.shuffled, self.reader = dataset, shuffled, ChunkReader(dataset)
        self.shape, self.dtype, self.chunks = dataset.shape, dataset.dtype, dataset.chunks
        # Where the slice before ended is where the next one begins.
        self.kept_start, self.kept = -1, np.zeros((0, *self.shape[1:]), self.dtype)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Return the values of a slice without a step."""
        start, stop, _ = part.indices(self.shape[0])
        out = np.empty((max(0, stop - start), *self.shape[1:]), dtype=self.dtype)
        n_rows = self.chunks[0]
        for at in range(start // n_rows * n_rows, stop, n_rows) if start < stop else ():
            if at != self.kept_start:
                self.kept_start, self.kept = at, self._rows(at)
            a, b = max(at, start), min(at + n_rows, stop)
            out[a - start : b - start] = self.kept[a - at : b - at]
        return out

    def _rows(self, at: int) -> np.ndarray:
        """Read the chunks whose first row is ``at``, side by side."""
        columns = [
            range(0, n, size) for n, size in zip(self.shape[1:], self.chunks[1:], strict=True)
        ]
        inflated = [self.reader.read((at, *column)) for column in product(*columns)]
        chunks = [self._values(plain) for plain in inflated if plain is not None]
        if len(chunks) < len(inflated):
            return self.dataset[at : at + self.chunks[0]]
        return chunks[0] if len(self.shape) == 1 else np.hstack(chunks)[:, : self.shape[1]]

    def _values(self, plain: bytes) -> np.ndarray:
        if not self.shuffled:
            return np.frombuffer(plain, dtype=self.dtype).reshape(self.chunks)
        planes = np.frombuffer(plain, dtype=np.uint8).reshape(self.dtype.itemsize, -1)
        return np.ascontiguousarray(planes.T).view(self.dtype).reshape(self.chunks)
