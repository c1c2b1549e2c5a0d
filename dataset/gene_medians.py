"""Non-zero median of every gene, exact, in memory that does not grow with the number of cells.

The float32 bits of positive numbers sort like the numbers, so a median can be found digit by
digit: count how many values share each leading digit, keep the digit that holds the middle one,
and count the next digit among the values that start like it. Each digit is one pass over the
cells with one small histogram a gene; nothing else is collected. With an even number of values
numpy's median lies half-way between the two middle ones; the upper of the two is the lower one
again, or the next value that occurs.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dataset.compiled import compiled
from dataset.csr_file import Rows
from dataset.log_expression import TARGET_SUM

DIGIT_BITS = 7  # 10 MB of histogram at 20,000 genes: larger ones fall out of the cache
NONE_ABOVE = np.iinfo(np.int64).max


class Block(NamedTuple):
    """Cells to count: their rows and how many counts each cell has over all genes."""

    rows: Rows
    library_size: NDArray[np.float64]  # (n_rows,); 0 = leave this cell out


def gene_medians(
    blocks: Callable[[], Iterable[Block]],
    n_genes: int,
    *,
    largest_library: float,
    n_threads: int = 1,
) -> NDArray[np.float32]:
    """Take the median of each gene's non-zero values, in counts per 10,000.

    Parameters
    ----------
    blocks
        Called once a pass; gives the same cells each time, a block at a time.
    n_genes
        Columns of the rows.
    largest_library
        Largest library size of a counted cell: bounds the values from below.
    n_threads
        Threads, each with its own genes; the result does not depend on it.

    Returns
    -------
    ``(n_genes,)``, equal to ``np.median`` over float32 values; NaN where no cell has the gene.
    """
    smallest, largest = _bits(TARGET_SUM / max(largest_library, 1.0)), _bits(TARGET_SUM)
    n_bits = max(int(largest - smallest).bit_length(), 1)
    widths = [len(part) for part in np.array_split(np.arange(n_bits), -(-n_bits // DIGIT_BITS))]

    prefix = np.zeros(n_genes, dtype=np.int64)  # leading digits of the lower middle value
    above = np.full(n_genes, NONE_ABOVE)  # smallest value beyond those that share them
    histogram = np.zeros((n_genes, 2 ** max(widths)), dtype=np.uint32)
    edges = np.linspace(0, n_genes, n_threads + 1).astype(np.int64)
    n_values = rank = upper = np.zeros(n_genes, dtype=np.int64)

    def count(block: Block, first: int, last: int) -> None:
        high, low = shift + width, shift
        _count_digits(
            *block.rows, block.library_size, first, last, smallest, high, low, prefix,
            histogram, above, low == 0,
        )  # fmt: skip

    shift = n_bits
    with ThreadPoolExecutor(n_threads) as pool:
        for width in widths:
            shift -= width
            histogram[:] = 0
            for block in blocks():
                list(pool.map(count, [block] * n_threads, edges[:-1], edges[1:]))
            if width + shift == n_bits:  # the first pass sees every value
                n_values = histogram.sum(axis=1, dtype=np.int64)
                rank = np.maximum(n_values - 1, 0) // 2
            digit, rank, upper = _pick_digit(histogram, rank)
            # The next value up: in the lower's own histogram if there is one, else beyond it.
            upper = np.where(upper >= 0, (prefix << width) | upper, above)
            prefix = (prefix << width) | digit

    lower_value = _values(prefix + smallest)
    upper = np.where((n_values % 2 == 1) | (upper == NONE_ABOVE), prefix, upper)
    medians = (lower_value + _values(upper + smallest)) / np.float32(2)
    return np.where(n_values > 0, medians, np.float32(np.nan))


def gene_medians_of(
    counts: csr_matrix, library_size: NDArray | None = None
) -> NDArray[np.float32]:
    """Take the medians of a matrix in memory; ``library_size`` defaults to its row sums."""
    if library_size is None:
        library_size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    block = Block(Rows.from_csr(counts), np.asarray(library_size, dtype=np.float64))
    largest = float(block.library_size.max(initial=1))
    return gene_medians(lambda: [block], counts.shape[1], largest_library=largest)


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _values(bits: NDArray[np.int64]) -> NDArray[np.float32]:
    return bits.astype(np.uint32).view(np.float32)


@compiled
def _count_digits(
    indptr, gene_index, counts, library_size, first_gene, last_gene, smallest, high, low, prefix,
    histogram, above, find_above,
):  # fmt: skip
    """Count, for genes [first, last), bits [low, high) of the values whose bits above match."""
    longest = np.int64(0)
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    value = np.empty(longest, np.float32)
    bits = value.view(np.uint32)
    mask = (1 << (high - low)) - 1
    for row in range(len(indptr) - 1):
        if library_size[row] <= 0:
            continue
        start, stop = indptr[row], indptr[row + 1]
        start, stop = (
            start + np.searchsorted(gene_index[start:stop], first_gene),
            start + np.searchsorted(gene_index[start:stop], last_gene),
        )
        for i in range(stop - start):
            value[i] = np.float32(counts[start + i] * 1e4 / library_size[row])
        for i in range(stop - start):
            gene = gene_index[start + i]
            offset = np.int64(bits[i]) - smallest
            head = offset >> high
            if head == prefix[gene]:
                histogram[gene, (offset >> low) & mask] += 1
            elif find_above and head > prefix[gene] and offset < above[gene]:
                above[gene] = offset


@compiled
def _pick_digit(histogram, rank):
    """Find each gene's bin holding the value of this rank, its rank inside, and the next one.

    ``following`` is the bin of the next value up: the same bin when it holds more, -1 when no
    later bin of this histogram is filled.
    """
    n_genes, n_bins = histogram.shape
    digit = np.zeros(n_genes, np.int64)
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
