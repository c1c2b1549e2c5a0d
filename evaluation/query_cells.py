"""Cells of a query for a model: counts, a block at a time, and what obs says of each cell.

A network that looks across cells gets whole sets of them. The cells of one set may lie far apart
in the file, so the counts of all are first written to a temporary folder, uncompressed.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from dataset.batches import flat
from dataset.choose_cells import categories, condition_codes, read_positions
from dataset.encode_error import EncodeError
from dataset.previous.history import time_names
from dataset.quality_control import Measures
from dataset.reading.cells import Cells
from dataset.store.csr_file import CsrFile, CsrWriter, Rows
from dataset.vocabulary import GeneMatch
from evaluation.annotated_file import AnnotationError
from evaluation.trained_model import TrainedModel
from training.updates import cut_to_budget, read_samples

logger = logging.getLogger(__name__)

BLOCK_CELLS = 1024  # read and predicted at a time

Profile = tuple[csr_matrix, NDArray[np.float64]]  # counts (n, n_genes), library sizes (n,)


class Block(NamedTuple):
    """Some cells of a query, in the query's genes."""

    rows: NDArray[np.int64]  # (n,), of the query
    profiles: list[Profile]  # now, and of each layer that a model reads
    measures: Measures  # over all genes of the query
    sets: list[NDArray[np.int64]] | None = None  # cells of the block that are looked at together


class QueryObs(NamedTuple):
    """What a network is told of the cells of a query beside their counts."""

    conditions: NDArray[np.int64]  # (n_cells, k), codes known to the run; below 0: unknown
    positions: NDArray[np.float32] | None  # (n_cells, 2), for networks that read them
    sets: list[NDArray[np.int64]] | None  # rows of each, for networks that look across cells


class QueryGenes:
    """The query's counts in the genes of a vocabulary.

    Attributes
    ----------
    match
        Which genes of the vocabulary the query has.
    """

    def __init__(self, model: TrainedModel, cells: Cells, min_match_rate: float) -> None:
        self.match = match_genes(model, cells, min_match_rate)
        known = self.match.columns >= 0
        ones = np.ones(int(known.sum()), dtype=np.int32)
        rows_columns = (np.flatnonzero(known), self.match.columns[known])
        shape = cells.n_genes, model.vocabulary.n_genes
        self._align = csr_matrix((ones, rows_columns), shape=shape)  # 0 or 1
        self._knows_all_genes = model.run.meta["source"].get("all_genes", True)

    def align(self, profile: Profile) -> Profile:
        """Return the profile in vocabulary order.

        Library sizes stay those over all genes, as in training; where training knew only genes
        that several files share, or that a ``gene_map`` has, they become those over these.
        """
        counts, library_size = profile
        aligned = csr_matrix(counts @ self._align)
        aligned.sort_indices()
        if not self._knows_all_genes:
            library_size = np.asarray(aligned.sum(axis=1), dtype=np.float64).ravel()
        return aligned, library_size


class ModelQuery:
    """A query as one model is given it.

    Parameters
    ----------
    model, genes
        The model, and the query in its genes.
    cells, time_key
        Of the query.
    layers
        The layers of a block's profiles, in their order.
    messages
        Gets what was noticed.
    """

    def __init__(
        self,
        model: TrainedModel,
        genes: QueryGenes,
        cells: Cells,
        time_key: str | None,
        layers: Sequence[str],
        messages: list[str],
    ) -> None:
        self.model, self.genes = model, genes
        self.obs = None if model.run.is_baseline else read_obs(model, cells, messages)
        self.times = read_times(model, cells, time_key) if model.needs_time else None
        layer = model.previous_layer
        self.layer = None if layer is None else 1 + layers.index(layer)

    @property
    def sets(self) -> list[NDArray[np.int64]] | None:
        """Rows of each set of cells that the model looks at together; None: at each by itself."""
        return None if self.obs is None else self.obs.sets

    def predict(
        self, block: Block, now: Profile, batch_size: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        """Return calibrated probabilities and embeddings of a block, ``now`` in the genes."""
        profiles = [now]
        if self.layer is not None:
            profiles.append(self.genes.align(block.profiles[self.layer]))
        elif self.times is not None and self.model.history is not None:
            profiles.append(self.model.history.profiles(*now, self.times[block.rows]))
        obs = self.obs
        return self.model.predict(
            profiles,
            conditions=None if obs is None else obs.conditions[block.rows],
            positions=None if obs is None or obs.positions is None else obs.positions[block.rows],
            sets=None if self.sets is None else block.sets,
            batch_size=batch_size,
        )


def sets_of(queries: list[ModelQuery]) -> list[NDArray[np.int64]] | None:
    """Return the sets of cells that come together, the same for all members that look at sets."""
    found = {query.model.cell_sets: query.sets for query in queries if query.sets is not None}
    if len(found) > 1:
        folder = queries[0].model.run.path.parent.parent
        raise AnnotationError(
            f"{folder}: its members look at different sets of cells; annotate with one of them"
        )
    return next(iter(found.values()), None)


def match_genes(model: TrainedModel, cells: Cells, min_match_rate: float) -> GeneMatch:
    """Find the model's genes in the query, or say which are missing."""
    match = model.vocabulary.match(cells.gene_ids.tolist(), cells.gene_symbols.tolist())
    n_genes = model.vocabulary.n_genes
    logger.info("%d of the model's %d genes found", n_genes - len(match.missing), n_genes)
    if match.match_rate < min_match_rate:
        raise AnnotationError(
            f"{cells.files[0].path}: has {match.match_rate:.1%} of the model's genes, at least "
            f"{min_match_rate:.0%} are needed. The model knows genes such as "
            f"{', '.join(match.missing[:8])}; the file has {', '.join(cells.gene_ids[:8])}. Are "
            "they of the same species, and named the same way? (A gene_map gives genes the names "
            "of its first column.)"
        )
    return match


def profiles(
    cells: Cells, genes: QueryGenes, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], Profile]]:
    """Yield some cells' rows and their profiles in the run's genes, a block at a time."""
    for first, block in cells.blocks():
        here = rows[(rows >= first) & (rows < first + block.shape[0])]
        counts = block[here - first]
        library_size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        yield here, genes.align((counts, library_size))


def take(cells: Cells, genes: QueryGenes, rows: NDArray[np.int64]) -> Profile:
    """Return the profiles of some cells, whose ``rows`` ascend."""
    found = (profile for _, profile in profiles(cells, genes, rows))
    counts, library_sizes = zip(*found, strict=True)
    return csr_matrix(vstack(counts, "csr")), np.concatenate(library_sizes)


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
        samples = read_samples(wanted, list(known), conditions)
        is_unknown = wanted.condition is not None and wanted.condition not in found
        sets = samples.sets(np.arange(n) if is_unknown else None)
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


def read_times(model: TrainedModel, cells: Cells, time_key: str | None) -> NDArray[np.str_]:
    """Return the time point of every cell, all of them known to the run's history."""
    if time_key is None:
        columns = ", ".join(cells.tables[0].columns) or "it has none"
        raise AnnotationError(
            f"{model.run.path}: was trained on two time points and needs the time of every query "
            f"cell: give time_key, an obs column of the query ({columns})"
        )
    column = cells.column(time_key)
    if n_missing := int(column.isna().sum()):
        raise AnnotationError(
            f"{cells.files[0].path}: obs {time_key!r}: {n_missing:,} of {cells.n_cells:,} cells "
            "have no time point"
        )
    times = time_names(column)
    known = model.history.time_points if model.history is not None else []
    if unknown := sorted(set(times.tolist()) - set(known)):
        shown = ", ".join(name[:40] for name in unknown[:5]) + ", ..." * (len(unknown) > 5)
        raise AnnotationError(
            f"{cells.files[0].path}: obs {time_key!r}: time points {shown} are not known to the "
            f"run; expected {', '.join(known)}"
        )
    return times


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
