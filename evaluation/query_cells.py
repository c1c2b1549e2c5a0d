"""Cells of a query for a model: counts, a block at a time, and what obs says of each cell.

A network that looks across cells gets whole sets of them. The cells of one set may lie far apart
in the file, so the counts of all are first written to a temporary folder, uncompressed.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dataset.batches import flat
from dataset.choose_cells import categories, condition_codes, read_positions
from dataset.encode_error import EncodeError
from dataset.quality_control import Measures
from dataset.reading.cells import Cells
from dataset.store.csr_file import CsrFile, CsrWriter, Rows
from evaluation.annotated_file import AnnotationError
from evaluation.trained_model import TrainedModel
from training.updates import Samples, cut_to_budget

BLOCK_CELLS = 1024  # read and predicted at a time

Profile = tuple[csr_matrix, NDArray[np.float64]]  # counts (n, n_genes), library sizes (n,)


class Block(NamedTuple):
    """Some cells of a query."""

    rows: NDArray[np.int64]  # (n,), of the query
    profiles: list[Profile]  # now, and at the time point before where the model needs it
    measures: Measures  # over all genes of the query
    sets: list[NDArray[np.int64]] | None = None  # cells of the block that are looked at together


class QueryObs(NamedTuple):
    """What a network is told of the cells of a query beside their counts."""

    conditions: NDArray[np.int64]  # (n_cells, k), codes known to the run; below 0: unknown
    positions: NDArray[np.float32] | None  # (n_cells, 2), for networks that read them
    sets: list[NDArray[np.int64]] | None  # rows of each, for networks that look across cells


def read_obs(model: TrainedModel, cells: Cells, messages: list[str]) -> QueryObs:
    """Read the obs columns that a network was trained with, as far as the query has them.

    Parameters
    ----------
    model
        A network.
    cells
        Of the query.
    messages
        Gets what is unknown of how many cells.

    Raises
    ------
    AnnotationError, CellFileError
        If the network needs positions, and the query has none.
    """
    known, n = model.facts.conditions, cells.n_cells
    conditions = np.full((n, len(known)), -1, dtype=np.int64)
    found = [key for key in known if key in cells.tables[0].columns]
    for column, (key, names) in enumerate(known.items()):
        if key in found:
            conditions[:, column] = condition_codes(categories(cells.column(key)), names)
        n_unknown = int((conditions[:, column] < 0).sum())
        why = "a value that the run does not know" if key in found else "no value: no such column"
        messages.append(f"condition {key!r}: {n_unknown:,} of {n:,} cells have {why}")
    sets, wanted = None, model.cell_sets
    if wanted is not None:
        samples = Samples(conditions[:, list(known).index(wanted.condition)], wanted.max_cells)
        sets = samples.sets(None if wanted.condition in found else np.arange(n))
    return QueryObs(conditions, _positions(model, cells), sets)


def _positions(model: TrainedModel, cells: Cells) -> NDArray[np.float32] | None:
    if not model.reads_positions:
        return None
    try:
        positions = read_positions(cells, list(model.facts.position_keys))
    except EncodeError as error:
        raise AnnotationError(f"{cells.files[0].path}: {error}") from None
    assert positions is not None
    if n_missing := int((~np.isfinite(positions)).any(axis=1).sum()):
        raise AnnotationError(
            f"{cells.files[0].path}: obs {' and '.join(model.facts.position_keys)}: {n_missing:,} "
            f"of {cells.n_cells:,} cells have no position, and {model.run.path} needs that of "
            "every cell: leave them out of the query"
        )
    return positions


def in_whole_sets(blocks: Iterator[Block], sets: list[NDArray[np.int64]]) -> Iterator[Block]:
    """Yield the cells of the blocks again, in blocks of whole sets.

    Parameters
    ----------
    blocks
        In file order.
    sets
        Rows of each set; every cell is in one.
    """
    with TemporaryDirectory(prefix="nanocell-") as folder:
        measures, library_sizes = [], []
        with ExitStack() as stack:
            writers: list[CsrWriter] = []
            for block in blocks:
                for i, (counts, _) in enumerate(block.profiles):
                    if i == len(writers):
                        writer = CsrWriter(Path(folder) / str(i), counts.shape[1])
                        writers.append(stack.enter_context(writer))
                    writers[i].append(Rows.from_csr(counts))
                library_sizes.append([library_size for _, library_size in block.profiles])
                measures.append(block.measures)
        files = [CsrFile(writer.folder) for writer in writers]
        library_size = [np.concatenate(parts) for parts in zip(*library_sizes, strict=True)]
        measured: list[NDArray] = [np.concatenate(parts) for parts in zip(*measures, strict=True)]
        each_one = np.ones(len(library_size[0]), dtype=np.int64)
        for of_block in cut_to_budget(sets, each_one, BLOCK_CELLS):
            rows = flat(of_block)
            ends = np.cumsum([len(of_set) for of_set in of_block])
            yield Block(
                rows,
                [
                    (file.take(rows).to_csr(writer.n_genes, np.int32), sizes[rows])
                    for file, writer, sizes in zip(files, writers, library_size, strict=True)
                ],
                Measures(*(column[rows] for column in measured)),
                np.split(np.arange(len(rows)), ends[:-1]),
            )
