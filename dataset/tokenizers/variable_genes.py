"""Highly variable genes of the train cells, from exact sums, in memory of a few numbers a gene.

The rule of Seurat v3 (Stuart et al. 2019, Methods; ``flavor="seurat_v3"`` in scanpy): the variance
of a gene's raw counts after each was standardized by the deviation that is usual for its mean,
and clipped. One deliberate difference: what is usual is a quadratic of the logarithms fitted to
all genes at once, not loess, which would need another library.

Sums of counts are whole numbers, exact in float64 up to 2^53: how the cells are divided among
workers changes nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dataset.tokenizers.tokenizer import CellCounts
from dataset.workers import Workers

Blocks = Callable[[], Iterable[CellCounts]]  # the same cells every time it is called


def highly_variable(
    workers: Workers, groups: Sequence[Blocks], n_cells: int, n_genes: int, *, n_top_genes: int
) -> NDArray[np.bool_]:
    """Say which genes vary most for their mean, ``(n_genes,)``; ties go by gene index.

    Parameters
    ----------
    workers
        Each sums a group of cells at a time.
    groups
        Of the train cells.
    n_cells, n_genes
        How many there are, genes without counts included.
    n_top_genes
        How many genes are wanted. Those without variance are not taken, so there may be fewer.
    """
    variance = standardized_variance(workers, groups, n_cells, n_genes)
    top = np.argsort(-variance, kind="stable")[:n_top_genes]
    chosen = np.zeros(n_genes, dtype=bool)
    chosen[top] = variance[top] > 0
    return chosen


def standardized_variance(
    workers: Workers, groups: Sequence[Blocks], n_cells: int, n_genes: int
) -> NDArray[np.float64]:
    """Return the variance of standardized, clipped counts, ``(n_genes,)``; 1 is as usual.

    A count is clipped where it lies further than ``sqrt(n_cells)`` usual deviations above the
    mean, so that one cell alone makes no gene variable.
    """
    nowhere = np.full(n_genes, np.inf)
    _, total, squares = _sum_groups(workers, groups, nowhere)
    mean = total / n_cells
    variance = (squares - n_cells * mean**2) / max(n_cells - 1, 1)
    varies = variance > 1e-12 * np.maximum(mean, 1)
    if varies.sum() < 3:  # a quadratic has three coefficients
        return np.where(varies, 1.0, 0.0)
    log_mean, log_variance = np.log10(mean[varies]), np.log10(variance[varies])
    usual = np.zeros(n_genes)
    usual[varies] = 10 ** np.polyval(np.polyfit(log_mean, log_variance, deg=2), log_mean)

    limit = np.where(varies, mean + np.sqrt(usual * n_cells), np.inf)
    n_above, total, squares = _sum_groups(workers, groups, limit)
    total[varies] += n_above[varies] * limit[varies]
    squares[varies] += n_above[varies] * limit[varies] ** 2
    clipped = n_cells * mean**2 + squares - 2 * mean * total
    return np.divide(clipped / max(n_cells - 1, 1), usual, out=np.zeros(n_genes), where=varies)


def sum_counts(blocks: Blocks, limit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum the counts of some cells that are not above each gene's limit.

    Returns
    -------
    Of each gene, ``(3, n_genes)``: how many counts are above, and of the others their sum and the
    sum of their squares.
    """
    sums = np.zeros((3, len(limit)))
    for (_, gene_index, counts), _ in blocks():
        counts = counts.astype(np.float64)
        is_above = counts > limit[gene_index]
        kept = np.where(is_above, 0.0, counts)
        for row, values in enumerate((is_above, kept, kept**2)):
            sums[row] += np.bincount(gene_index, values, minlength=len(limit))
    return sums


def _sum_groups(
    workers: Workers, groups: Sequence[Blocks], limit: NDArray[np.float64]
) -> NDArray[np.float64]:
    total = np.zeros((3, len(limit)))
    for of_group in workers.map(partial(sum_counts, limit=limit), groups):
        total += of_group
    return total
