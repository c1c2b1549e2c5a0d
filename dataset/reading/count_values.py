"""Tell raw counts from normalized, logged and scaled values."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dataset.compiled import compiled
from dataset.reading.matrix_rows import Rows

LARGEST_COUNT = 2**31 - 1


class Found(NamedTuple):
    """Kind of the values of a matrix: a word for code, a phrase for people."""

    kind: str  # "raw counts", "logged", "normalized", "scaled", "not finite", "no values", ...
    text: str


def describe_values(samples: list[Rows], *, rows_are_cells: bool = True) -> Found:
    """Say what the values are, from blocks of rows.

    Parameters
    ----------
    samples
        Blocks of the matrix, such as its first, middle and last cells.
    rows_are_cells
        False when the blocks are stretches of columns: then no sum over a cell is known.
    """
    values = np.concatenate([block.data for block in samples])
    if values.dtype.kind not in "biuf":
        return Found("not numbers", f"values of type {values.dtype}, not numbers")
    stored = values.dtype
    values = values.astype(np.float64)
    values = values[values != 0]
    if values.size == 0:
        return Found("no values", "no value other than zero")
    if not np.isfinite(values).all():
        return Found("not finite", "values that are not finite (NaN or infinity)")
    if values.min() < 0:
        return Found("scaled", f"scaled or centered values (smallest {values.min():.4g})")
    if (values == np.floor(values)).all():
        return Found("raw counts", f"raw counts (whole numbers stored as {stored})")
    sums = np.concatenate([_row_sums(block, np.asarray) for block in samples])
    if rows_are_cells and _constant(sums):
        return Found("normalized", f"counts normalized to {np.median(sums):,.0f} a cell")
    # exp of a normalized value beyond this is no count: expm1(30) = 1e13.
    if values.max() < 30:
        for name, inverse in (("log1p", np.expm1), ("log2(x + 1)", lambda x: np.exp2(x) - 1)):
            whole = inverse(values)
            if np.allclose(whole, np.round(whole), rtol=1e-5, atol=1e-4):
                return Found("logged", f"{name} of raw counts")
            sums = np.concatenate([_row_sums(block, inverse) for block in samples])
            if rows_are_cells and _constant(sums):
                target = f"{np.median(sums):,.0f}"
                return Found("logged", f"{name} of counts normalized to {target} a cell")
        return Found("logged", f"fractions up to {values.max():.4g}, most likely logged")
    return Found("normalized", f"fractions up to {values.max():.6g}, most likely normalized")


def _row_sums(block: Rows, transform: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(transform(block.data.astype(np.float64)))])
    return np.diff(sums[block.indptr])


def _constant(sums: np.ndarray) -> bool:
    sums = sums[sums > 0]
    return sums.size > 1 and np.ptp(sums) < 0.01 * sums.mean()


FAULTS = {
    1: "negative",
    2: "not finite",
    3: "fractional",
    4: f"larger than {LARGEST_COUNT:,}",
    5: "of a gene outside the matrix",
}


@compiled
def check_counts(
    indices: np.ndarray, data: np.ndarray, n_genes: int, counts: np.ndarray
) -> tuple[int, int]:
    """Copy values into integer ``counts``; return entry and fault of the first that is no count.

    Returns
    -------
    ``(-1, 0)`` when every value is a count, else the entry's position and a key of ``FAULTS``.
    """
    for i in range(data.size):
        value = data[i]
        if value < 0:
            return i, 1
        if not np.isfinite(value):
            return i, 2
        if value != np.floor(value):
            return i, 3
        if value > LARGEST_COUNT:
            return i, 4
        if indices[i] < 0 or indices[i] >= n_genes:
            return i, 5
        counts[i] = np.int32(value)
    return -1, 0
