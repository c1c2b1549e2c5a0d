"""The steps of an encoding, each on some of the cells, by a thread or by a cluster's worker.

Each step reads its cells from the disk and writes what comes of them to the disk, at a place that
follows from the cells alone; ``dataset/encode.py`` says in which order they go. A step that is
interrupted may be done again, by anyone, and ends with the same bytes.
"""

import shutil
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.previous.profiles import PreviousProfiles
from dataset.quality_control import Measures, measure_block
from dataset.reading.cells import CellFile
from dataset.store.blocks import cut_blocks, cut_shares
from dataset.store.csr_file import (
    CsrFile,
    CsrWriter,
    NpyRows,
    Rows,
    mark_columns,
    open_npy,
    size_kept,
    take_columns,
)
from dataset.store.layout import SPLITS
from dataset.tokenizers.tokenizer import CellCounts, Tokenizer


class Share(NamedTuple):
    """Cells of one file that are read in one go."""

    file: CellFile
    start: int
    stop: int
    first_cell: int  # number of the first one among the cells of all files
    folder: Path  # where its counts are spilled to

    def pieces(self) -> "list[Piece]":
        """Return the same cells, once they are spilled, a worker's share at a time."""
        n = self.stop - self.start
        return [Piece(self.folder, a, b, self.first_cell + a) for a, b in cut_shares(0, n)]


class Piece(NamedTuple):
    """Cells whose counts were spilled."""

    folder: Path
    start: int
    stop: int
    first_cell: int


class Kept(NamedTuple):
    """The cells of a piece that are wanted."""

    folder: Path
    rows: NDArray[np.int64]  # in the folder
    first: int  # index of the first one among all that are wanted


class ToEncode(NamedTuple):
    """Consecutive cells among those that stay."""

    start: int
    split: NDArray[np.int8]  # (n,), of each
    first: tuple[int, ...]  # index of the first one of each split, in that split


def spill_counts(share: Share, measures: Path, is_mitochondrial: NDArray[np.bool_]) -> int:
    """Read cells, check and measure them, and write their counts uncompressed.

    Parameters
    ----------
    share
        What to read.
    measures
        Folder of the arrays of ``Measures`` of all cells.
    is_mitochondrial
        Of each gene.

    Returns
    -------
    Number of cells.
    """
    partial = share.folder.with_name(f".{share.folder.name}-{uuid.uuid4().hex}")
    measured = []
    with CsrWriter(partial, share.file.n_genes) as writer:
        for _, block in share.file.blocks(cut_blocks(share.start, share.stop)):
            writer.append(Rows(block.indptr, block.indices, block.data))
            measured.append(measure_block(block, is_mitochondrial))
    for name, parts in zip(Measures._fields, zip(*measured, strict=True), strict=True):
        with NpyRows(measures / f"{name}.npy") as rows:
            rows.write(share.first_cell, np.concatenate(parts))
    try:
        partial.rename(share.folder)
    except OSError:
        if not share.folder.exists():
            raise
        shutil.rmtree(partial)  # another worker was thought dead, and was not
    return share.stop - share.start


def detect_genes(kept: Kept, n_genes: int) -> NDArray[np.bool_]:
    """Say which genes have a count in these cells, ``(n_genes,)``."""
    detected = np.zeros(n_genes, dtype=np.bool_)
    mark_columns(CsrFile(kept.folder), kept.rows, detected)
    return detected


def size_counts(kept: Kept, columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Say how many values stay of each cell, and the largest."""
    return size_kept(CsrFile(kept.folder), kept.rows, columns)


def keep_counts(kept: Kept, columns: NDArray[np.int64], n_genes: int, folder: Path) -> None:
    """Write the counts of some cells and genes to their place in ``folder``."""
    counts = CsrFile(kept.folder)
    at = int(open_npy(folder / "indptr.npy")[kept.first])
    with (
        NpyRows(folder / "gene_index.npy") as new_gene_index,
        NpyRows(folder / "counts.npy") as new_counts,
    ):
        for a, b in cut_blocks(0, len(kept.rows)):
            rows = take_columns(counts.take(kept.rows[a:b]), columns, n_genes)
            new_gene_index.write(at, rows.gene_index)
            new_counts.write(at, rows.counts)
            at += len(rows.counts)


def encode_cells(
    cells: ToEncode,
    folder: Path,
    tokenizer: Tokenizer,
    learned: Mapping[str, NDArray],
    dtypes: Mapping[str, np.dtype],
    previous: PreviousProfiles | None,
) -> int:
    """Write the tokens of some cells to their places in ``train/``, ``val/`` and ``test/``.

    Returns
    -------
    Number of cells.
    """
    expression = CsrFile(folder / "expression")
    library_size = open_npy(folder / "expression" / "library_size.npy")
    for code, (split, first) in enumerate(zip(SPLITS, cells.first, strict=True)):
        of_split = cells.start + np.flatnonzero(cells.split == code)
        with ExitStack() as stack:
            arrays = {
                name: stack.enter_context(NpyRows(folder / split / f"{name}.npy"))
                for name in (*dtypes, "lengths", "library_size")
            }
            for a, b in cut_blocks(0, len(of_split)):
                rows = of_split[a:b]
                segments = [CellCounts(expression.take(rows), library_size[rows])]
                if previous is not None:
                    segments.append(CellCounts(*previous.of(rows)))
                tokens = tokenizer.encode(segments, learned, dtypes)
                libraries = np.stack([segment.library_size for segment in segments], axis=1)
                arrays["lengths"].write(first + a, tokens.lengths)
                arrays["library_size"].write(first + a, libraries)
                for name, part in tokens.arrays.items():
                    arrays[name].write(first + a, part)
    return len(cells.split)
