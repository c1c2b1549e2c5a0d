"""Gene tokens with a value each: the genes of a cell and how much each is there.

The input of scGPT (Cui et al. 2024, Methods, "Input embeddings"). Genes stand in the order of the
vocabulary, which means nothing; what a gene's expression is stands beside it, as ``values``.
Bins are relative to the cell: the edges are quantiles of its own non-zero values. Deliberate
differences:

- values that are equal share a bin, the middle one of those that the original would draw from at
  random (``random_bins`` draws, but from numbers that follow from the cell alone)
- edges are never written down. Of ``n`` sorted values the edge ``k`` of ``e + 1`` lies at
  ``k (n - 1) / e``, so that a value's bin follows from how many values are below it, in whole
  numbers. It does not matter then whether they are counts or their logarithms
- all genes are tokens unless ``n_top_genes`` asks for the highly variable ones: on val of PBMC 3k
  1,200 or 3,000 of them lost six points of accuracy or more
- a cell of too many genes is not cut to a random choice: it keeps those of the highest counts

Legend: ``n`` non-zero genes of all cells, end to end.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from configs.base import Config
from dataset.log_expression import TARGET_SUM
from dataset.tokenizers.rank import token_dtype
from dataset.tokenizers.tokenizer import CellCounts, Tokens, TrainCounts
from dataset.tokenizers.variable_genes import highly_variable
from dataset.vocabulary import CLS, N_SPECIALS, PAD
from dataset.workers import Workers

if TYPE_CHECKING:
    from torch import Tensor

    from dataset.batches import Batch


class GeneValuesConfig(Config):
    """Which genes are tokens, and what the value of one is."""

    kind: Literal["gene_values"] = "gene_values"
    n_top_genes: int | None = Field(
        default=None,
        ge=1,
        description="highly variable genes of the train cells, the only tokens; null: all genes",
    )
    n_tokens: int = Field(
        default=4096, ge=1, description="most genes of a cell, those of the highest counts"
    )
    values: Literal["bins", "random_bins", "log1p"] = Field(
        default="bins",
        description="bins: quantiles of the cell, the same for equal counts; random_bins: equal "
        "counts are spread over bins at random, as in the original; log1p: of counts per 10,000",
    )
    n_bins: int = Field(default=51, ge=3, le=2**16, description="bin 0, of zeros, included")
    include_zeros: bool = Field(
        default=False, description="true: a gene without counts is a token too, of value 0"
    )
    is_ranked: ClassVar[bool] = False
    n_segments: ClassVar[int] = 1
    previous: ClassVar[None] = None

    @model_validator(mode="after")
    def _check(self) -> "GeneValuesConfig":
        n_genes = self.n_top_genes
        if self.include_zeros and (n_genes is None or n_genes > self.n_tokens):
            raise ValueError(
                "include_zeros makes each gene a token of every cell, and a cell has at most "
                f"n_tokens, {self.n_tokens:,}; expected no more n_top_genes, found "
                f"{n_genes or 'null, all genes'}; say n_top_genes: {min(1200, self.n_tokens)}"
            )
        return self

    @property
    def row_length(self) -> int:
        """Tokens in a stored row: ``<cls>`` and the genes."""
        return 1 + min(self.n_tokens, self.n_top_genes or self.n_tokens)

    def fit(self, train: TrainCounts, workers: Workers) -> dict[str, NDArray]:
        """Choose the highly variable genes, if they alone are to be tokens."""
        if self.n_top_genes is None:
            return {}
        is_variable = highly_variable(
            workers,
            train.groups(workers.n_workers),
            len(train.cells),
            train.n_genes,
            n_top_genes=self.n_top_genes,
        )
        return {"is_variable": is_variable}

    def arrays(self, n_genes: int, counts_dtype: np.dtype) -> dict[str, np.dtype]:
        """Store the token, the count behind it and its value."""
        bins = np.dtype(np.uint8 if self.n_bins <= 2**8 else np.uint16)
        values = np.dtype(np.float32) if self.values == "log1p" else bins
        return {"token_ids": token_dtype(n_genes), "counts": counts_dtype, "values": values}

    def encode(
        self,
        segments: Sequence[CellCounts],
        learned: Mapping[str, NDArray],
        dtypes: Mapping[str, np.dtype],
    ) -> Tokens:
        """Lay out the genes of each cell that are tokens, with their counts and values."""
        ((indptr, gene, counts), library_size) = segments[0]
        n_cells = len(indptr) - 1
        cell = np.repeat(np.arange(n_cells), np.diff(indptr))  # (n,)
        if self.n_top_genes is not None:
            is_kept = learned["is_variable"][gene]
            cell, gene, counts = cell[is_kept], gene[is_kept], counts[is_kept]
        n_detected = np.bincount(cell, minlength=n_cells)
        if len(cell) and n_detected.max() > self.n_tokens:
            is_kept = _highest(counts, cell, n_detected, self.n_tokens)
            cell, gene, counts = cell[is_kept], gene[is_kept], counts[is_kept]
            n_detected = np.minimum(n_detected, self.n_tokens)

        shape = (n_cells, self.row_length)
        arrays = {name: np.zeros(shape, dtype) for name, dtype in dtypes.items()}
        arrays["token_ids"][:] = PAD
        arrays["token_ids"][:, 0] = CLS
        if self.include_zeros:
            variable = np.flatnonzero(learned["is_variable"])
            place = 1 + np.searchsorted(variable, gene)  # (n,), in the row
            arrays["token_ids"][:, 1 : len(variable) + 1] = N_SPECIALS + variable
            lengths = np.full(n_cells, 1 + len(variable))
        else:
            place = 1 + np.arange(len(cell)) - (np.cumsum(n_detected) - n_detected)[cell]
            arrays["token_ids"][cell, place] = gene.astype(np.int64) + N_SPECIALS
            lengths = 1 + n_detected
        arrays["counts"][cell, place] = counts
        arrays["values"][cell, place] = self._values(counts, cell, library_size)
        return Tokens(arrays, lengths.astype(np.int32))

    def reorder(self, batch: "Batch", learned: "dict[str, Tensor]") -> "Batch":
        """Give each token its value again after counts have changed, as ``encode`` does.

        Genes that have lost all counts leave the row, unless it has those without counts too.
        """
        import torch  # which encoding does without

        from dataset.batches import cell_of_token, keep_tokens

        if not self.include_zeros:
            is_special = batch["token_ids"] < N_SPECIALS
            batch = keep_tokens(batch, is_special | (batch["counts"] > 0))
        counts, cell = batch["counts"].cpu().numpy(), cell_of_token(batch).cpu().numpy()
        (found,) = np.nonzero(counts)
        library_size = batch["library_size"][:, 0].cpu().numpy().astype(np.float64)
        values = np.zeros(len(counts), dtype=np.float32)
        values[found] = self._values(counts[found].astype(np.int64), cell[found], library_size)
        given = batch["values"]
        return {**batch, "values": torch.from_numpy(values).to(given)}

    def _values(self, counts: NDArray, cell: NDArray, library_size: NDArray) -> NDArray:
        """Return the values of non-zero counts, ``(n,)``, cell after cell."""
        if self.values == "log1p":
            return np.log1p(counts * (TARGET_SUM / np.maximum(library_size, 1))[cell])
        lowest, highest = admissible_bins(counts, cell, n_bins=self.n_bins)
        if self.values == "bins":
            return (lowest + highest) // 2
        return lowest + np.floor(_draw(counts, cell) * (highest - lowest + 1)).astype(np.int64)


def admissible_bins(
    counts: NDArray, cell: NDArray, *, n_bins: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lowest and the highest bin that a value may be in, ``(n,)`` each, from 1.

    The edges of a cell are ``np.quantile(values, np.linspace(0, 1, n_bins - 1))``. A value's
    highest bin is the number of edges up to it, itself included, and the lowest the number of
    edges below it and one more; they differ where several edges are equal to it.

    Parameters
    ----------
    counts
        Positive numbers, those of a cell one after the other, ``(n,)``.
    cell
        Of each, ascending, ``(n,)``.
    n_bins
        Bins, that of zeros included; one more than there are edges.
    """
    order = np.lexsort((counts, cell))
    of_cell, sorted_counts = cell[order], counts[order]
    n_values = np.bincount(cell)
    start = (np.cumsum(n_values) - n_values)[of_cell]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (np.diff(sorted_counts.astype(np.int64)) != 0) | (np.diff(of_cell) != 0)
    first = np.flatnonzero(is_first)
    n_equal = np.diff(np.append(first, len(order)))
    n_below = np.repeat(first, n_equal) - start  # values of the cell below this one
    last = n_below + np.repeat(n_equal, n_equal) - 1  # index of the last that is equal

    steps, n_gaps = n_bins - 2, n_values[of_cell] - 1
    is_alone = n_gaps == 0  # all edges are this one value
    n_gaps = np.maximum(n_gaps, 1)
    edges_below = np.where(is_alone, 0, -(-n_below * steps // n_gaps))
    edges_up_to = np.where(is_alone, steps, last * steps // n_gaps) + 1
    highest, lowest = np.empty_like(order), np.empty_like(order)
    highest[order] = edges_up_to
    lowest[order] = np.minimum(edges_below + 1, edges_up_to)
    return lowest, highest


def _highest(counts: NDArray, cell: NDArray, n_detected: NDArray, n_genes: int) -> NDArray:
    """Say which are of the ``n_genes`` highest counts of their cell, ``(n,)``; ties by gene."""
    order = np.lexsort((-counts.astype(np.int64), cell))  # stable: the first gene of equal ones
    nth = np.arange(len(cell)) - (np.cumsum(n_detected) - n_detected)[cell[order]]
    is_kept = np.zeros(len(cell), dtype=bool)
    is_kept[order[nth < n_genes]] = True
    return is_kept


def _draw(counts: NDArray, cell: NDArray) -> NDArray[np.float64]:
    """Draw a number from [0, 1) for each value, ``(n,)``, by a seed made of the cell's counts."""
    edges = np.flatnonzero(np.diff(cell)) + 1
    cells = np.split(counts.astype(np.int64), edges)
    drawn = [np.random.default_rng(crc32(one.tobytes())).random(len(one)) for one in cells]
    return np.concatenate(drawn)
