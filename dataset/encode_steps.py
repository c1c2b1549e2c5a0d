"""What is done with some of the cells, by a thread or by a worker of a cluster.

Each step reads its cells from the disk and writes what comes of them to the disk, at a place that
follows from the cells alone; ``dataset/encode.py`` says in which order they go. A step that is
interrupted may be done again, by anyone, and ends with the same bytes.
"""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.previous.profiles import PreviousProfiles
from dataset.quality_control import Measures, measure_block
from dataset.reading.cells import CellFile
from dataset.store.csr_file import (
    CsrFile,
    CsrWriter,
    NpyRows,
    Rows,
    open_npy,
    size_kept,
    take_columns,
)
from dataset.store.layout import SPLITS
from dataset.tokenizers.medians import Block
from dataset.tokenizers.rank import rank_rows

BLOCK_CELLS = 512


class Share(NamedTuple):
    """Cells of one file that are read in one go."""

    file: CellFile
    start: int
    stop: int
    first_cell: int  # number of the first one among the cells of all files
    folder: Path  # where its counts are put aside

    def pieces(self, size: int) -> "list[Piece]":
        """Return the same cells, once they are put aside, ``size`` at a time."""
        n = self.stop - self.start
        return [Piece(self.folder, a, b, self.first_cell + a) for a, b in cut(0, n, size)]


class Piece(NamedTuple):
    """Cells whose counts were put aside."""

    folder: Path
    start: int
    stop: int
    first_cell: int


class Kept(NamedTuple):
    """The cells of a piece that stay."""

    folder: Path
    rows: NDArray[np.int64]  # in the folder
    place: int  # of the first one among all cells that stay


class ToRank(NamedTuple):
    """Consecutive cells among those that stay."""

    start: int
    split: NDArray[np.int8]  # (n,), of each
    places: tuple[int, ...]  # of the first one of each split, in that split


def cut(start: int, stop: int, size: int | None = None) -> list[tuple[int, int]]:
    """Cut a range into stretches of ``size`` cells, a block by default."""
    size = BLOCK_CELLS if size is None else size
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def put_aside(share: Share, measures: Path, is_mitochondrial: NDArray[np.bool_]) -> int:
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
    aside = share.folder.with_name(f".{share.folder.name}-{uuid.uuid4().hex}")
    measured = []
    with CsrWriter(aside, share.file.n_genes) as writer:
        for _, block in share.file.blocks(cut(share.start, share.stop)):
            writer.append(Rows(block.indptr, block.indices, block.data))
            measured.append(measure_block(block, is_mitochondrial))
    for name, parts in zip(Measures._fields, zip(*measured, strict=True), strict=True):
        with NpyRows(measures / f"{name}.npy") as rows:
            rows.write(share.first_cell, np.concatenate(parts))
    try:
        aside.rename(share.folder)
    except OSError:
        if not share.folder.exists():
            raise
        shutil.rmtree(aside)  # another worker was thought dead, and was not
    return share.stop - share.start


@dataclass(frozen=True)
class TrainBlocks:
    """The train cells of some pieces: what ``gene_medians`` counts."""

    pieces: list[Piece]
    is_train: Path  # .npy, (n_cells,)
    library_size: Path  # .npy, (n_cells,), over all genes

    def __call__(self) -> Iterator[Block]:
        """Read them, a block at a time."""
        is_train, library_size = open_npy(self.is_train), open_npy(self.library_size)
        for piece in self.pieces:
            these = slice(piece.first_cell, piece.first_cell + piece.stop - piece.start)
            rows = CsrFile(piece.folder).rows(piece.start, piece.stop)
            yield Block(rows, np.where(is_train[these], library_size[these], 0.0))


def size_counts(kept: Kept, columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Say how many values stay of each cell, and the largest."""
    return size_kept(CsrFile(kept.folder), kept.rows, columns)


def keep_counts(kept: Kept, columns: NDArray[np.int64], n_genes: int, folder: Path) -> None:
    """Write the counts of some cells and genes to their place in ``folder``."""
    counts = CsrFile(kept.folder)
    at = int(open_npy(folder / "indptr.npy")[kept.place])
    with (
        NpyRows(folder / "gene_index.npy") as new_gene_index,
        NpyRows(folder / "counts.npy") as new_counts,
    ):
        for a, b in cut(0, len(kept.rows)):
            rows = take_columns(counts.take(kept.rows[a:b]), columns, n_genes)
            new_gene_index.write(at, rows.gene_index)
            new_counts.write(at, rows.counts)
            at += len(rows.counts)


def rank_cells(
    cells: ToRank,
    folder: Path,
    medians: NDArray[np.float32],
    n_tokens: int,
    previous: PreviousProfiles | None,
) -> int:
    """Write the tokens of some cells to their places in ``train/``, ``val/`` and ``test/``.

    Returns
    -------
    Number of cells.
    """
    expression = CsrFile(folder / "expression")
    library_size = open_npy(folder / "expression" / "library_size.npy")
    for code, (split, place) in enumerate(zip(SPLITS, cells.places, strict=True)):
        of_split = cells.start + np.flatnonzero(cells.split == code)
        with ExitStack() as stack:
            arrays = {
                name: stack.enter_context(NpyRows(folder / split / f"{name}.npy"))
                for name in ("token_ids", "counts", "lengths", "library_size")
            }
            for a, b in cut(0, len(of_split)):
                rows = of_split[a:b]
                segments, libraries = [expression.take(rows)], [library_size[rows]]
                if previous is not None:
                    before, library = previous.of(rows)
                    segments.append(before)
                    libraries.append(library)
                ranked = rank_rows(
                    segments,
                    medians,
                    n_tokens=n_tokens,
                    token_dtype=arrays["token_ids"].dtype,
                    counts_dtype=arrays["counts"].dtype,
                )
                for name, part in ranked._asdict().items():
                    arrays[name].write(place + a, part)
                arrays["library_size"].write(place + a, np.stack(libraries, axis=1))
    return len(cells.split)
