"""Rank tokens: the detected genes of a cell, ordered by median-scaled expression."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix

from configs.base import Config
from dataset.compiled import compiled
from dataset.previous.config import PreviousConfig
from dataset.store.csr_file import Rows, counts_dtype, index_dtype
from dataset.tokenizers.medians import gene_medians
from dataset.tokenizers.tokenizer import CellCounts, Tokens, TrainCounts
from dataset.vocabulary import CLS, N_SPECIALS, PAD, SEP
from dataset.workers import Workers

if TYPE_CHECKING:
    from torch import Tensor

    from dataset.batches import Batch


class RankConfig(Config):
    """Geneformer's encoding, with the count behind every token kept beside it."""

    kind: Literal["rank"] = "rank"
    n_tokens: int = Field(
        default=2048, ge=1, description="most genes of a cell (of each half, with two)"
    )
    previous: PreviousConfig | None = Field(default=None, description="null: one time point")
    is_ranked: ClassVar[bool] = True

    @property
    def n_segments(self) -> int:
        """Profiles in a row: now, or now and previous."""
        return 1 if self.previous is None else 2

    @property
    def row_length(self) -> int:
        """Tokens in a stored row: the genes and ``<cls>``, and ``<sep>`` between two halves."""
        return self.n_segments * (1 + self.n_tokens)

    def fit(self, train: TrainCounts, workers: Workers) -> dict[str, NDArray]:
        """Learn the median of each gene's non-zero values, in counts per 10,000."""
        medians = gene_medians(
            workers,
            train.groups(workers.n_workers),
            train.n_genes,
            largest_library=float(train.library_size.max()),
        )
        return {"medians": medians}

    def arrays(self, n_genes: int, counts_dtype: np.dtype) -> dict[str, np.dtype]:
        """Store the token and the count behind it."""
        return {"token_ids": token_dtype(n_genes), "counts": counts_dtype}

    def encode(
        self,
        segments: Sequence[CellCounts],
        learned: Mapping[str, NDArray],
        dtypes: Mapping[str, np.dtype],
    ) -> Tokens:
        """Rank the genes of each segment by count over median."""
        ranked = rank_rows(
            [segment.rows for segment in segments],
            learned["medians"],
            n_tokens=self.n_tokens,
            token_dtype=dtypes["token_ids"],
            counts_dtype=dtypes["counts"],
        )
        arrays = {"token_ids": ranked.token_ids, "counts": ranked.counts}
        return Tokens(arrays, ranked.lengths)

    def reorder(self, batch: "Batch", learned: "dict[str, Tensor]") -> "Batch":
        """Rank the genes of each cell again after its counts have changed, as ``rank_rows`` does.

        Genes that have lost all counts leave the row.

        Parameters
        ----------
        batch
            Cells as ``to_device`` gives them.
        learned
            ``medians`` of the genes, ``(n_genes,)``, on the batch's device.
        """
        from dataset.batches import keep_tokens, sort_segments  # torch: encoding does without

        is_special = batch["token_ids"] < N_SPECIALS
        batch = keep_tokens(batch, is_special | (batch["counts"] > 0))
        gene = (batch["token_ids"] - N_SPECIALS).clamp(min=0)
        return sort_segments(batch, batch["counts"] / learned["medians"][gene])


class RankedCells(NamedTuple):
    """Rows of the token arrays; ``t`` is ``row_length``."""

    token_ids: NDArray  # (n_cells, t), uint16 or int32
    counts: NDArray  # (n_cells, t), the count behind every token, 0 at the special ones
    lengths: NDArray[np.int32]  # (n_cells,), tokens that are not padding


def rank_tokens(
    counts: csr_matrix,
    gene_medians: NDArray[np.float32],
    *,
    n_tokens: int,
    previous: csr_matrix | None = None,
) -> RankedCells:
    """Order the detected genes of each cell by median-scaled expression.

    The value of a gene is its count over its median. The library size and the 10,000 are common
    to a cell and change no order, so they are left out: scaling a cell's counts leaves its tokens
    (genes whose values agree to seven digits may change places, unless scaled by 2, 4, 8 ...).

    Parameters
    ----------
    counts
        Raw counts, ``(n_cells, n_genes)``, columns in vocabulary order.
    gene_medians
        Non-zero median of each gene over the train split, ``(n_genes,)``, in counts per 10,000.
    n_tokens
        Most genes of a cell; longer cells keep their highest ranks, shorter ones are padded.
    previous
        Counts of the same cells at the time point before: a second half behind ``<sep>``.

    Returns
    -------
    Rows of ``<cls>`` and the genes (and ``<sep>`` and the previous genes); a gene with zero
    counts never appears.

    Raises
    ------
    ValueError
        If a count is negative or not finite, or a median is not positive.

    References
    ----------
    Theodoris et al. 2023, Methods. Ties are broken by gene index here, for determinism.
    """
    gene_medians = np.asarray(gene_medians, dtype=np.float32)
    segments = [
        _checked_rows(profile, gene_medians, name)
        for profile, name in ((counts, "counts"), (previous, "previous"))
        if profile is not None
    ]
    if len(n_cells := {len(rows.indptr) - 1 for rows in segments}) > 1:
        raise ValueError(f"cells and previous profiles differ in number: {sorted(n_cells)}")
    dtype = max((counts_dtype(rows.counts) for rows in segments), key=lambda d: d.itemsize)
    return rank_rows(
        segments,
        gene_medians,
        n_tokens=n_tokens,
        token_dtype=token_dtype(len(gene_medians)),
        counts_dtype=dtype,
    )


def rank_rows(
    segments: Sequence[Rows],
    gene_medians: NDArray[np.float32],
    *,
    n_tokens: int,
    token_dtype: np.dtype,
    counts_dtype: np.dtype,
) -> RankedCells:
    """Rank rows known to be canonical and valid: what ``rank_tokens`` does, without its checks.

    ``segments`` holds one profile of each cell, or its profiles now and at the time point before.
    """
    n_cells = len(segments[0].indptr) - 1
    row_length = len(segments) * (1 + n_tokens)
    cells = RankedCells(
        np.full((n_cells, row_length), PAD, dtype=token_dtype),
        np.zeros((n_cells, row_length), dtype=counts_dtype),
        np.zeros(n_cells, dtype=np.int32),
    )
    for marker, rows in zip((CLS, SEP), segments, strict=False):
        longest = int(np.diff(rows.indptr).max(initial=1))
        # A position in the row needs no more bits than a gene's column.
        order = np.empty((2, max(longest, 1)), dtype=index_dtype(len(gene_medians)))
        _append_ranked(*rows, gene_medians, marker, n_tokens, order, *cells)
    return cells


def token_dtype(n_genes: int) -> np.dtype:
    """Return the type of a stored token id: 16 bits while every id fits."""
    return np.dtype(np.uint16 if N_SPECIALS + n_genes <= 2**16 else np.int32)


def _checked_rows(profile: csr_matrix, gene_medians: NDArray, name: str) -> Rows:
    if profile.shape[1] != len(gene_medians):
        raise ValueError(f"{name}: {profile.shape[1]} genes but {len(gene_medians)} medians")
    rows = Rows.from_csr(profile)
    if not np.isfinite(rows.counts).all() or (rows.counts < 0).any():
        raise ValueError(f"{name}: negative or non-finite values cannot be ranked")
    detected = gene_medians[rows.gene_index]
    if not (detected > 0).all() or not np.isfinite(detected).all():
        raise ValueError("gene_medians: expected positive numbers for every detected gene")
    return rows


@compiled
def _append_ranked(
    indptr, gene_index, counts, gene_medians, marker, n_tokens, order, token_ids, token_counts,
    lengths,
):  # fmt: skip
    """Put the marker and the ranked genes behind what already stands in each row.

    A stable radix sort, least significant digit first: 11, 11 and 10 bits of the inverted float32
    bits. Positive floats sort like their bits, inverting them makes the order descending, and
    stability leaves ties in the order of their columns.
    """
    longest = order.shape[1]
    value = np.empty(longest, np.float32)
    bits = value.view(np.uint32)
    keys = np.empty((2, longest), np.uint32)
    filled = np.empty(3 * 2048, np.int32)
    for row in range(len(indptr) - 1):
        start = indptr[row]
        n = indptr[row + 1] - start
        at = lengths[row]
        token_ids[row, at] = marker
        at += 1
        lengths[row] = at + min(n, n_tokens)
        if n == 0:
            continue

        filled[:] = 0
        for i in range(n):
            value[i] = np.float32(counts[start + i]) / gene_medians[gene_index[start + i]]
        for i in range(n):
            key = ~bits[i]
            keys[0, i] = key
            order[0, i] = i
            filled[key & 2047] += 1
            filled[2048 + ((key >> 11) & 2047)] += 1
            filled[4096 + (key >> 22)] += 1
        now = 0
        for digit in range(3):
            shift = np.uint32(11 * digit)
            base = 2048 * digit
            if filled[base + ((keys[now, 0] >> shift) & 2047)] == n:
                continue  # one digit shared by all
            total = 0
            for b in range(base, base + 2048):
                here = filled[b]
                filled[b] = total
                total += here
            for i in range(n):
                key = keys[now, i]
                b = base + ((key >> shift) & 2047)
                index = filled[b]
                filled[b] = index + 1
                keys[1 - now, index] = key
                order[1 - now, index] = order[now, i]
            now = 1 - now

        for i in range(min(n, n_tokens)):
            j = start + order[now, i]
            token_ids[row, at + i] = gene_index[j] + N_SPECIALS
            token_counts[row, at + i] = counts[j]
