"""The steps of an encoding, each on some of the cells, by a thread or by a cluster's worker.

Each step reads its cells from the disk and returns what is small, or writes it in rows that follow
from the cells alone; ``dataset/encode.py`` says in which order they go. A step that is
interrupted may be done again, by anyone, and ends with the same bytes.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.previous.profiles import PreviousProfiles
from dataset.reading.cells import CellFile
from dataset.store.blocks import cut_blocks
from dataset.store.csr_file import (
    CsrFile,
    NpyRows,
    Rows,
    counts_dtype,
    index_dtype,
    mark_columns,
)
from dataset.store.expression import Expression
from dataset.store.layout import SPLITS
from dataset.tokenizers.tokenizer import CellCounts, Tokenizer


class Share(NamedTuple):
    """Cells of one file that are read in one go."""

    file: CellFile
    start: int
    stop: int


class ToEncode(NamedTuple):
    """Consecutive cells among those that stay."""

    start: int
    split: NDArray[np.int8]  # (n,), of each
    first: tuple[int, ...]  # index of the first one of each split, in that split


def read_counts(share: Share) -> list[Rows]:
    """Read cells and check them; return their counts, some rows after others."""
    return list(stream_counts(share))


def stream_counts(share: Share) -> Iterator[Rows]:
    """Do what ``read_counts`` does, a block at a time."""
    index = index_dtype(share.file.n_genes)
    for _, block in share.file.blocks(cut_blocks(share.start, share.stop)):
        counts = block.data.astype(counts_dtype(block.data), copy=False)
        yield Rows(block.indptr, block.indices.astype(index, copy=False), counts)


def detect_genes(rows: NDArray[np.integer], counts: Path, n_genes: int) -> NDArray[np.bool_]:
    """Say which genes have a count in these rows of a CSR matrix, ``(n_genes,)``."""
    detected = np.zeros(n_genes, dtype=np.bool_)
    mark_columns(CsrFile(counts), rows, detected)
    return detected


def encode_cells(
    cells: ToEncode,
    folder: Path,
    tokenizer: Tokenizer,
    learned: Mapping[str, NDArray],
    dtypes: Mapping[str, np.dtype],
    previous: PreviousProfiles | None,
) -> int:
    """Write the tokens of some cells to ``train/``, ``val/`` and ``test/``.

    Returns
    -------
    Number of cells.
    """
    expression = Expression.open(folder)
    for code, (split, first) in enumerate(zip(SPLITS, cells.first, strict=True)):
        of_split = cells.start + np.flatnonzero(cells.split == code)
        with ExitStack() as stack:
            arrays = {
                name: stack.enter_context(NpyRows(folder / split / f"{name}.npy"))
                for name in (*dtypes, "lengths", "library_size")
            }
            for a, b in cut_blocks(0, len(of_split)):
                rows = of_split[a:b]
                segments = [CellCounts(expression.take(rows), expression.library_size[rows])]
                if previous is not None:
                    segments.append(CellCounts(*previous.of(rows)))
                tokens = tokenizer.encode(segments, learned, dtypes)
                libraries = np.stack([segment.library_size for segment in segments], axis=1)
                arrays["lengths"].write(first + a, tokens.lengths)
                arrays["library_size"].write(first + a, libraries)
                for name, part in tokens.arrays.items():
                    arrays[name].write(first + a, part)
    return len(cells.split)
