"""Non-zero median of every gene, exact, in memory that does not grow with the number of cells.

The float32 bits of positive numbers sort like the numbers, so a median can be found digit by
digit: count how many values share each leading digit, keep the digit that holds the middle one,
and count the next digit among the values that start like it. Each digit is one pass over the
cells with one small histogram a gene; nothing else is collected. With an even number of values
numpy's median lies half-way between the two middle ones; the upper of the two is the lower one
again, or the next value that occurs, for which one more pass looks where it is far away.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dataset.compiled import compiled
from dataset.log_expression import TARGET_SUM
from dataset.store.csr_file import Rows
from dataset.tokenizers.tokenizer import CellCounts
from dataset.workers import Workers, start_workers

DIGIT_BITS = 7  # 10 MB of histogram at 20,000 genes: larger ones fall out of the cache
NONE_ABOVE = np.int32(2**31 - 1)


class Digit(NamedTuple):
    """Digit that a pass counts: bits [low, high) of the offset from the smallest value's bits."""

    smallest: int
    high: int
    low: int


def gene_medians(
    workers: Workers,
    groups: Sequence[Callable[[], Iterable[CellCounts]]],
    n_genes: int,
    *,
    largest_library: float,
) -> NDArray[np.float32]:
    """Take the median of each gene's non-zero values, in counts per 10,000.

    Parameters
    ----------
    workers
        Each counts a group of cells at a time.
    groups
        Each gives the same cells every time it is called, a block at a time; called once a pass.
        How the cells are grouped does not change the result. A cell without counts is left out.
    n_genes
        Columns of the rows.
    largest_library
        Largest library size of a counted cell: bounds the values from below.

    Returns
    -------
    ``(n_genes,)``, equal to ``np.median`` over float32 values; NaN where no cell has the gene.
    """
    smallest, largest = _bits(TARGET_SUM / max(largest_library, 1.0)), _bits(TARGET_SUM)
    n_bits = max(int(largest - smallest).bit_length(), 1)
    widths = [len(part) for part in np.array_split(np.arange(n_bits), -(-n_bits // DIGIT_BITS))]

    lower = np.zeros(n_genes, dtype=np.int32)  # leading digits of the lower middle value
    n_values = rank = upper = np.zeros(n_genes, dtype=np.int64)
    shift = n_bits
    for width in widths:
        digit = Digit(smallest, shift, shift - width)
        shift -= width
        counted = workers.map(partial(count_digit, prefix=lower, digit=digit), groups)
        histogram = np.require(next(counted), requirements="W")  # a cluster's cannot be written to
        for of_group in counted:
            histogram += of_group
        if width + shift == n_bits:  # the first pass sees every value
            n_values = histogram.sum(axis=1, dtype=np.int64)
            rank = np.maximum(n_values - 1, 0) // 2
        value, rank, upper = _pick_digit(histogram, rank)
        del histogram  # before the next one: 10 MB at 20,000 genes
        # The next value up, if it differs in the last digit at most.
        upper = np.where(upper >= 0, (lower << width) | upper, -1)
        lower = (lower << width) | value

    beyond = (n_values > 0) & (n_values % 2 == 0) & (upper < 0)
    if beyond.any():
        upper[beyond] = NONE_ABOVE
        for above in workers.map(
            partial(next_values, beyond=beyond, lower=lower, smallest=smallest), groups
        ):
            upper[beyond] = np.minimum(upper, above)[beyond]
    upper = np.where(n_values % 2 == 1, lower, upper)
    medians = (_values(lower + smallest) + _values(upper + smallest)) / np.float32(2)
    return np.where(n_values > 0, medians, np.float32(np.nan))


def count_digit(
    blocks: Callable[[], Iterable[CellCounts]], prefix: NDArray[np.int32], digit: Digit
) -> NDArray[np.uint32]:
    """Count one digit of the values of some cells, those that share the gene's prefix.

    Returns
    -------
    ``(n_genes, 128)``: one worker's part of a pass, to be summed.
    """
    histogram = np.zeros((len(prefix), 2 ** (digit.high - digit.low)), dtype=np.uint32)
    for block in blocks():
        _count_digit(*block.rows, block.library_size, prefix, *digit, histogram)
    return histogram


def next_values(
    blocks: Callable[[], Iterable[CellCounts]],
    beyond: NDArray[np.bool_],
    lower: NDArray[np.int32],
    smallest: int,
) -> NDArray[np.int32]:
    """Find the smallest offset above ``lower`` among some cells, for the genes ``beyond``.

    These have an even number of values and the upper middle one far from the lower: rare genes,
    so few values take part in this pass.
    """
    floor = np.where(beyond, lower, NONE_ABOVE)
    above = np.full(len(lower), NONE_ABOVE)
    for block in blocks():
        _find_next(*block.rows, block.library_size, floor, smallest, above)
    return above


def gene_medians_of(
    counts: csr_matrix, library_size: NDArray | None = None
) -> NDArray[np.float32]:
    """Take the medians of a matrix in memory; ``library_size`` defaults to its row sums."""
    if library_size is None:
        library_size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    block = CellCounts(Rows.from_csr(counts), np.asarray(library_size, dtype=np.float64))
    largest = float(block.library_size.max(initial=1))
    with start_workers(1) as workers:
        return gene_medians(workers, [lambda: [block]], counts.shape[1], largest_library=largest)


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _values(bits: NDArray[np.integer]) -> NDArray[np.float32]:
    return bits.astype(np.uint32).view(np.float32)


@compiled
def _cell_bits(counts, library_size, value):
    """Put counts per 10,000 into ``value`` and return their bits."""
    for i in range(len(counts)):
        value[i] = np.float32(counts[i] * 1e4 / library_size)
    return value.view(np.uint32)


@compiled
def _longest(indptr):
    longest = np.int64(0)
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    return longest


@compiled
def _count_digit(indptr, gene_index, counts, library_size, prefix, smallest, high, low, histogram):
    value = np.empty(_longest(indptr), np.float32)
    mask = (1 << (high - low)) - 1
    for row in range(len(indptr) - 1):
        if library_size[row] <= 0:
            continue
        start, stop = indptr[row], indptr[row + 1]
        bits = _cell_bits(counts[start:stop], library_size[row], value)
        for i in range(stop - start):
            gene = gene_index[start + i]
            offset = np.int64(bits[i]) - smallest
            if offset >> high == prefix[gene]:
                histogram[gene, (offset >> low) & mask] += 1


@compiled
def _find_next(indptr, gene_index, counts, library_size, floor, smallest, above):
    value = np.empty(_longest(indptr), np.float32)
    for row in range(len(indptr) - 1):
        if library_size[row] <= 0:
            continue
        start, stop = indptr[row], indptr[row + 1]
        bits = _cell_bits(counts[start:stop], library_size[row], value)
        for i in range(stop - start):
            gene = gene_index[start + i]
            offset = np.int64(bits[i]) - smallest
            if offset > floor[gene] and offset < above[gene]:
                above[gene] = offset


@compiled
def _pick_digit(histogram, rank):
    """Find each gene's bin holding the value of this rank, its rank inside, and the next one.

    ``following`` is the bin of the next value up: the same bin when it holds more, -1 when no
    later bin of this histogram is filled.
    """
    n_genes, n_bins = histogram.shape
    digit = np.zeros(n_genes, np.int32)
    inside = np.zeros(n_genes, np.int64)
    following = np.full(n_genes, -1, np.int64)
    for gene in range(n_genes):
        before = np.int64(0)
        found = False
        for b in range(n_bins):
            n = np.int64(histogram[gene, b])
            if n == 0:
                continue
            if found:
                following[gene] = b
                break
            if before + n > rank[gene]:
                digit[gene] = b
                inside[gene] = rank[gene] - before
                if inside[gene] + 1 < n:
                    following[gene] = b
                    break
                found = True
            before += n
    return digit, inside, following
