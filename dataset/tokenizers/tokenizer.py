"""The protocol of a tokenizer, and the counts that it is given.

A tokenizer is one file in this folder, which holds its config class, and one line in
``dataset/__init__.py``. It may learn something of each gene from the train cells; then it turns
the counts of any cells into rows of equal length. What it learned and what it wrote is stored
under the names it gives (``learned/<name>.npy``, ``<split>/<name>.npy``); nothing else knows them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dataset.previous.config import PreviousConfig
from dataset.store.blocks import cut_blocks
from dataset.store.csr_file import CsrFile, Rows
from dataset.workers import Workers


class CellCounts(NamedTuple):
    """Counts of some cells; columns in vocabulary order, but for what ``fit`` is given."""

    rows: Rows
    library_size: NDArray[np.float64]  # (n,), counts of each cell over all genes of its file


class Tokens(NamedTuple):
    """Rows of tokens; ``t`` is the tokenizer's ``row_length``."""

    arrays: dict[str, NDArray]  # (n, t) each, padded at the end, with 0 in ``token_ids``
    lengths: NDArray[np.int32]  # (n,), tokens that are not padding


@dataclass(frozen=True)
class TrainBlocks:
    """Some of the train cells, a block at a time; each call gives the same ones again."""

    counts: Path
    cells: NDArray[np.int64]  # (n,), rows of ``counts``, ascending
    library_size: NDArray[np.float64]  # (n,)

    def __call__(self) -> Iterator[CellCounts]:
        """Read them."""
        counts = CsrFile(self.counts)
        for a, b in cut_blocks(0, len(self.cells)):
            cells = self.cells[a:b]
            first, last = int(cells[0]), int(cells[-1]) + 1
            # Neighbors are read where they lie, without a copy.
            rows = counts.rows(first, last) if last - first == b - a else counts.take(cells)
            yield CellCounts(rows, self.library_size[a:b])


@dataclass(frozen=True)
class TrainCounts:
    """All train cells, on the disk: what a tokenizer may learn from.

    Attributes
    ----------
    counts
        Folder of a CSR matrix, of all cells and genes of the files.
    cells
        The rows of it that are train cells, ascending.
    library_size
        Counts of each train cell over all genes, ``(n_cells,)``.
    n_genes
        Genes of the files, columns of ``counts``. Those without a count in any train cell are not
        in the vocabulary, and nothing that is learned of them is kept.
    """

    counts: Path
    cells: NDArray[np.int64]
    library_size: NDArray[np.float64]
    n_genes: int

    def groups(self, n_groups: int) -> list[TrainBlocks]:
        """Divide the cells among workers; what is learned must not depend on how."""
        edges = np.linspace(0, len(self.cells), min(n_groups, len(self.cells)) + 1).astype(int)
        return [
            TrainBlocks(self.counts, self.cells[a:b], self.library_size[a:b])
            for a, b in pairwise(edges)
        ]


class Tokenizer(Protocol):
    """A pydantic config, with a ``kind`` of its own, that has these."""

    @property
    def is_ranked(self) -> bool:
        """Whether a cell's genes stand by falling expression, for networks that read ranks."""

    @property
    def previous(self) -> PreviousConfig | None:
        """Source of a second segment, the profile at the time point before; None: no such."""

    @property
    def n_segments(self) -> int:
        """Profiles of a cell: 1, or 2 with ``previous``."""

    @property
    def row_length(self) -> int:
        """Most tokens of a cell."""

    def fit(self, train: TrainCounts, workers: Workers) -> dict[str, NDArray]:
        """Learn something of each gene, ``(n_genes, ...)``, by name.

        Numbers are finite where a train cell has the gene. A tokenizer that makes only some genes
        tokens says which by ``is_variable``, bool.
        """

    def arrays(self, n_genes: int, counts_dtype: np.dtype) -> dict[str, np.dtype]:
        """Name the arrays that ``encode`` returns, and their types.

        ``counts_dtype`` holds every count that there is.
        """

    def encode(
        self,
        segments: Sequence[CellCounts],
        learned: Mapping[str, NDArray],
        dtypes: Mapping[str, np.dtype],
    ) -> Tokens:
        """Turn cells into rows of tokens.

        Parameters
        ----------
        segments
            Profiles of the same cells: now, and with ``previous`` at the time point before.
        learned, dtypes
            What ``fit`` and ``arrays`` returned.
        """
