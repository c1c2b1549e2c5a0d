"""Gzip-compressed HDF5 arrays, inflated about twice as fast as HDF5 does it.

Public atlases are gzip, and inflating is what reading them costs. HDF5 hands out the compressed
chunks as they are; ISA-L inflates them and lets go of Python's lock, so that threads which read
different cells do not wait for each other. Whatever is unusual about a chunk (missing, not
compressed, damaged) is left to HDF5 itself.
"""

from typing import Any

import h5py
import numpy as np

try:
    from isal import isal_zlib as inflater
except ImportError:  # a machine without wheels of isal: right, and slower
    import zlib as inflater  # type: ignore[no-redef]

InflateError: Any = inflater.error
DEFLATE, SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE


def fast_array(array: Any) -> Any:
    """Wrap a one-dimensional gzip dataset; return anything else as it came."""
    if not isinstance(array, h5py.Dataset) or array.ndim != 1 or array.chunks is None:
        return array
    properties = array.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if filters not in ([DEFLATE], [SHUFFLE, DEFLATE]) or array.dtype.kind not in "biuf":
        return array
    return GzipArray(array, shuffled=SHUFFLE in filters)


class GzipArray:
    """Reads slices like the dataset it wraps; made to be read from front to back."""

    def __init__(self, dataset: h5py.Dataset, *, shuffled: bool) -> None:
        self.dataset, self.shuffled = dataset, shuffled
        self.shape, self.dtype = dataset.shape, dataset.dtype
        self.chunk = dataset.chunks[0]
        # The chunk where the slice before ended is where the next one begins.
        self.kept_start, self.kept = -1, np.zeros(0, self.dtype)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Return the values of a slice without a step."""
        start, stop, _ = part.indices(self.shape[0])
        out = np.empty(max(0, stop - start), dtype=self.dtype)
        if start >= stop:
            return out
        first = start // self.chunk * self.chunk
        if first == self.kept_start:
            self._copy(self.kept, first, out, start)
            first += self.chunk
        for at in range(first, stop, self.chunk):
            self.kept_start, self.kept = at, self._values(at, self._raw(at))
            self._copy(self.kept, at, out, start)
        return out

    def _raw(self, at: int) -> bytes | None:
        try:
            filter_mask, raw = self.dataset.id.read_direct_chunk((at,))
        except (OSError, RuntimeError, ValueError):
            return None
        return raw if filter_mask == 0 else None

    def _values(self, at: int, compressed: bytes | None) -> np.ndarray:
        n_bytes = self.chunk * self.dtype.itemsize
        if compressed is not None:
            try:
                plain = inflater.decompress(compressed, bufsize=n_bytes)
            except InflateError:
                plain = b""
            if len(plain) == n_bytes:
                if not self.shuffled:
                    return np.frombuffer(plain, dtype=self.dtype)
                planes = np.frombuffer(plain, dtype=np.uint8).reshape(-1, self.chunk)
                return np.ascontiguousarray(planes.T).view(self.dtype)[:, 0]
        return self.dataset[at : at + self.chunk]

    def _copy(self, values: np.ndarray, at: int, out: np.ndarray, start: int) -> None:
        a, b = max(at, start), min(at + self.chunk, start + len(out), self.shape[0])
        out[a - start : b - start] = values[a - at : b - at]
