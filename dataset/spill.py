"""The counts of all cells, read once and spilled to disk; then those of the cells that stay."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.encode_steps import Kept, Share, keep_counts, size_counts, spill_counts
from dataset.quality_control import Measures, mitochondrial_genes
from dataset.reading.cell_url import CellUrl
from dataset.reading.cells import Cells
from dataset.store.blocks import cut, cut_shares
from dataset.store.csr_file import counts_dtype, create_npy, index_dtype, open_npy
from dataset.workers import Steps


def read_counts(
    cells: Cells, folder: Path, mitochondrial_prefix: str, steps: Steps
) -> tuple[list[Share], Measures]:
    """Read the files once: measure every cell, spill the counts.

    Returns
    -------
    The cells in shares, whose counts are on the disk uncompressed, and the measures of all cells,
    memory-mapped.
    """
    folder.mkdir()
    shares: list[Share] = []
    offset = 0
    for file in cells.files:
        # Columns are transposed in one go, and an address is asked as rarely as can be.
        whole = file.is_csc or isinstance(file.path, CellUrl)
        parts = cut(0, file.n_cells, file.n_cells) if whole else cut_shares(0, file.n_cells)
        for start, stop in parts:
            spill = folder / f"{len(shares):06d}"
            shares.append(Share(file, start, stop, offset + start, spill))
        offset += file.n_cells
    for name, dtype in zip(Measures._fields, (np.int64, np.float64, np.float64), strict=True):
        create_npy(folder / f"{name}.npy", np.dtype(dtype), (cells.n_cells,))
    is_mitochondrial = mitochondrial_genes(cells, mitochondrial_prefix)
    step = partial(spill_counts, measures=folder, is_mitochondrial=is_mitochondrial)
    steps.finish("read", step, shares)
    return shares, Measures(*(open_npy(folder / f"{name}.npy") for name in Measures._fields))


def find_kept(shares: list[Share], rows: NDArray[np.integer]) -> list[Kept]:
    """Say where in the spilled pieces some cells are, given by ascending numbers."""
    kept = []
    for piece in (piece for share in shares for piece in share.pieces()):
        last = piece.first_cell + piece.stop - piece.start
        a, b = np.searchsorted(rows, [piece.first_cell, last]).tolist()
        if a < b:
            of_piece = np.asarray(rows[a:b], dtype=np.int64) - (piece.first_cell - piece.start)
            kept.append(Kept(piece.folder, of_piece, a))
    return kept


def keep_cells(
    shares: list[Share],
    rows: NDArray[np.integer],
    columns: NDArray[np.int64],
    n_genes: int,
    folder: Path,
    steps: Steps,
) -> None:
    """Write the counts of some cells and genes as one CSR matrix, and drop what was spilled.

    Parameters
    ----------
    shares
        All cells, spilled.
    rows
        Cells to keep, ascending.
    columns, n_genes
        New column of every gene (-1: left out), and how many there are.
    folder
        To write; may exist.
    """
    kept = find_kept(shares, rows)
    folder.mkdir(exist_ok=True)
    indptr, largest = np.zeros(len(rows) + 1, dtype=np.int64), 0
    sizes = steps.run("sizes", partial(size_counts, columns=columns), kept)
    for cells, (n_values, most) in zip(kept, sizes, strict=True):
        indptr[cells.first + 1 : cells.first + 1 + len(n_values)] = n_values
        largest = max(largest, most)
    np.cumsum(indptr, out=indptr)
    np.save(folder / "indptr.npy", indptr)
    n_all = (int(indptr[-1]),)
    create_npy(folder / "gene_index.npy", index_dtype(n_genes), n_all)
    create_npy(folder / "counts.npy", counts_dtype(np.array([largest])), n_all)
    del indptr
    step = partial(keep_counts, columns=columns, n_genes=n_genes, folder=folder)
    for i, _ in enumerate(steps.run("counts", step, kept)):
        # What is done with goes at once: it would crowd the rest out of the disk cache.
        if i + 1 == len(kept) or kept[i + 1].folder != kept[i].folder:
            shutil.rmtree(kept[i].folder)
