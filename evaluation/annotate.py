"""Annotate the cells of a new file with a trained run.

The run folder is all that is needed: weights, vocabulary, gene medians and class names lie in it,
and so does the temperature that calibrates its probabilities, fitted on its own val cells.

A cell is ``uncertain`` by rule before it is so by low confidence: it would not have passed the
quality control of the run's own cells, or has fewer genes than any of its train cells. A model
predicts such a cell too, often with great confidence, and knows nothing of it.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from dataset.previous.layer import of_layer
from dataset.quality_control import (
    Measures,
    Reasons,
    drop_cells,
    measure_block,
    mitochondrial_genes,
)
from dataset.reading.cell_file import open_store
from dataset.reading.cell_url import CellPath
from dataset.reading.cells import Cells, open_cells
from dataset.sources import resolve
from dataset.store.csr_file import Rows
from dataset.vocabulary import GeneMatch, Vocabulary
from evaluation.annotated_file import (
    AnnotationError,
    check_output,
    check_query,
    write_annotated,
)
from evaluation.nearest import NEAREST, nearest_train_cells
from evaluation.query_cells import (
    BLOCK_CELLS,
    Block,
    ModelQuery,
    QueryGenes,
    in_whole_sets,
    sets_of,
)
from evaluation.trained_model import TrainedModel

__all__ = ["Annotation", "AnnotationError", "TrainedModel", "annotate"]

logger = logging.getLogger(__name__)

EMBEDDING_KEY = "X_nanocell"
PROBABILITIES_KEY = "class_probabilities"
COLUMNS = ("predicted_cell_type", "confidence", "uncertain", "uncertain_reason")
AGREE = "members_agree"  # of a committee only


@dataclass(frozen=True)
class Annotation:
    """The result of ``annotate``.

    Attributes
    ----------
    cells
        ``predicted_cell_type``, ``confidence``, ``uncertain`` and ``uncertain_reason``, one row a
        cell; of a committee also ``members_agree``, the share of its members whose most probable
        type is this one; of a run that looks up train cells also ``nearest_train_cell``, its
        name, and ``nearest_similarity``, from -1 to 1.
    probabilities
        Of each class, calibrated, ``(n_cells, n_classes)``.
    embedding
        The ``<cls>`` embedding, ``(n_cells, d)``, of a committee that of its first network; None
        without a network.
    class_names
        Columns of ``probabilities``.
    match
        Which genes of the model's vocabulary the query has.
    temperature, threshold
        Of the run's val cells: of the probabilities, and of low confidence.
    counts_location
        Where the query's counts were found: ``X``, ``raw`` or ``layers/NAME``.
    messages
        What was noticed on the way, for people.
    output
        The file written.
    """

    cells: pd.DataFrame
    probabilities: np.ndarray
    embedding: np.ndarray | None
    class_names: list[str]
    match: GeneMatch
    temperature: float
    threshold: float
    counts_location: str
    messages: list[str]
    output: Path


class QueryPredictions(NamedTuple):
    """Predictions for cells of the query, and the measures that quality control looks at."""

    probabilities: NDArray[np.float64]  # (n, n_classes), calibrated
    embedding: NDArray[np.float32] | None  # (n, d)
    agree: NDArray[np.float64] | None  # (n,), share of a committee's members that say the same
    measures: Measures  # over all genes of the query
    n_known_genes: NDArray[np.int64]  # (n,), detected genes of the model's vocabulary


def annotate(
    run: str | Path,
    query: str | Path,
    output: str | Path,
    *,
    counts: str = "auto",
    time_key: str | None = None,
    gene_map: str | Path | None = None,
    min_match_rate: float = 0.5,
    batch_size: int = 64,
    device: str = "auto",
) -> Annotation:
    """Write the query again with cell types, probabilities and embedding.

    Parameters
    ----------
    run
        Folder of a finished run.
    query
        ``.h5ad`` file of new cells, or a name in ``dataset/sources.py``; no labels are looked at.
    output
        The file to write: everything that is in the query, and
        ``obs["predicted_cell_type"]``, ``obs["confidence"]`` (calibrated probability of that
        type), ``obs["uncertain"]`` and ``obs["uncertain_reason"]``, of a committee
        ``obs["members_agree"]``, of a run that looks up train cells ``obs["nearest_train_cell"]``
        and ``obs["nearest_similarity"]``,
        ``obsm["class_probabilities"]``, ``obsm["X_nanocell"]`` (the embedding; networks only) and
        ``uns["nanocell"]``. What the query has under these names is replaced. A file that is there
        already is replaced if this function wrote it.
    counts
        Where the query's counts are, as in the preprocess config.
    time_key
        obs column of the time point; needed by a network trained on histories.
    gene_map
        csv of one-to-one orthologs, as in the preprocess config: for cells of another species
        than those whose gene names the run knows.
    min_match_rate
        Smallest fraction of the model's genes that the query must have, above 0.
    batch_size, device
        As in ``TrainedModel``.

    Raises
    ------
    AnnotationError, CellFileError, RunFolderError
        If the genes do not match, or a file cannot be used. Nothing is written then.
    """
    texts = {"run": run, "query": query, "output": output, "counts": counts}
    given = {"time_key": time_key, "gene_map": gene_map}
    texts |= {name: value for name, value in given.items() if value is not None}
    for name, value in texts.items():
        if not isinstance(value, str | Path):
            raise AnnotationError(f"{name}: {value!r}; expected a text")
    if not (isinstance(min_match_rate, int | float) and 0 < min_match_rate <= 1):
        raise AnnotationError(
            f"min_match_rate: {min_match_rate!r}; expected a fraction above 0 and up to 1"
        )
    if not (isinstance(batch_size, int) and batch_size >= 1):
        raise AnnotationError(f"batch_size: {batch_size!r}; expected a whole number from 1")
    path = _one_file(query)
    try:
        output = Path(output).expanduser()
    except RuntimeError as error:  # a ~name of nobody
        raise AnnotationError(f"output: {output}: {error}") from None
    check_output(output, path)
    model = TrainedModel(run, device=device)
    columns = [*COLUMNS, *([AGREE] if model.members else []), *(NEAREST if model.bank else [])]
    with open_store(path) as root:
        check_query(root, path, columns)
        replaced = [name for name in columns if name in root["obs"]]
    cells = open_cells(path, counts=counts, gene_map=gene_map)
    messages = list(cells.messages)
    if replaced:
        messages.append(f"obs columns of the query are replaced: {', '.join(replaced)}")
    genes = {m.vocabulary: QueryGenes(m, cells, min_match_rate) for m in [*model.members, model]}
    predictions = _predict_query(model, genes, cells, time_key, batch_size, messages)
    reasons = why_uncertain(model, predictions, messages)
    confidence = predictions.probabilities.max(axis=1)
    table = pd.DataFrame(
        {
            "predicted_cell_type": pd.Categorical.from_codes(
                predictions.probabilities.argmax(axis=1), categories=pd.Index(model.class_names)
            ),
            "confidence": confidence,
            "uncertain": ~reasons.kept,
            "uncertain_reason": pd.Categorical.from_codes(
                reasons.codes, categories=pd.Index(reasons.texts)
            ),
        },
        index=pd.Index(cells.names(0, cells.n_cells)),
    )
    if predictions.agree is not None:
        table[AGREE] = predictions.agree
    if model.bank is not None and predictions.embedding is not None:
        table = table.assign(**nearest_train_cells(model.bank, predictions.embedding))
    obsm: dict[str, np.ndarray] = {PROBABILITIES_KEY: predictions.probabilities}
    if predictions.embedding is not None:
        obsm[EMBEDDING_KEY] = predictions.embedding
    uns = {
        "run": model.run.path.resolve().name,
        "class_names": np.array(model.class_names, dtype=object),
        "gene_match_rate": genes[model.vocabulary].match.match_rate,
        "temperature": model.temperature,
        "uncertain_below": model.threshold,
        "min_detected_genes": model.min_detected_genes,
    }
    write_annotated(
        path, output, obs=table, obsm=obsm, uns=uns, check_unchanged=cells.check_unchanged
    )
    for message in messages:
        logger.info(message)
    return Annotation(
        table,
        predictions.probabilities,
        predictions.embedding,
        model.class_names,
        genes[model.vocabulary].match,
        model.temperature,
        model.threshold,
        cells.counts_location,
        messages,
        output,
    )


def why_uncertain(
    model: TrainedModel, predictions: QueryPredictions, messages: list[str]
) -> Reasons:
    """Return the reason why each cell is uncertain: by rule first, by low confidence last.

    Parameters
    ----------
    model
        Its thresholds: quality control, fewest genes of a train cell, confidence.
    predictions
        Of the cells.
    messages
        Gets what could not be checked.
    """
    settings, measures = model.quality_control, predictions.measures
    if settings.max_percent_mitochondrial is not None and np.isnan(measures.pct_counts_mt).all():
        messages.append(
            "max_percent_mitochondrial of the run is not checked: no gene symbol of the query "
            f"starts with {settings.mitochondrial_prefix!r}"
        )
        settings = settings.model_copy(update={"max_percent_mitochondrial": None})
    reasons = Reasons(len(predictions.n_known_genes))
    drop_cells(reasons, measures, settings)
    reasons.drop(
        predictions.n_known_genes < model.min_detected_genes, "fewer genes than any training cell"
    )
    reasons.drop(predictions.probabilities.max(axis=1) < model.threshold, "low confidence")
    return reasons


def _predict_query(
    model: TrainedModel,
    genes: dict[Vocabulary, QueryGenes],
    cells: Cells,
    time_key: str | None,
    batch_size: int,
    messages: list[str],
) -> QueryPredictions:
    """Predict every cell, a block at a time, which every member of a committee is given."""
    asked = model.members or [model]
    layers = sorted({m.previous_layer for m in asked if m.previous_layer is not None})
    messages += [f"previous profiles are read from layers/{layer}" for layer in layers]
    queries = [
        ModelQuery(m, genes[m.vocabulary], cells, time_key, layers, messages) for m in asked
    ]
    blocks = _blocks(cells, layers, _mitochondrial(model, cells, genes[model.vocabulary].match))
    if (sets := sets_of(queries)) is not None:
        blocks = in_whole_sets(blocks, sets)
    parts, rows = [], []
    with tqdm(total=cells.n_cells, unit="cell", desc="annotate", mininterval=1.0) as bar:
        for block in blocks:
            now = {v: of_vocabulary.align(block.profiles[0]) for v, of_vocabulary in genes.items()}
            found = [q.predict(block, now[q.model.vocabulary], batch_size) for q in queries]
            (p, embedding), agree = found[0], None
            if model.members:
                p, embedding, agree = model.combine(found)
            n_known_genes = np.diff(now[model.vocabulary][0].indptr)
            parts.append(QueryPredictions(p, embedding, agree, block.measures, n_known_genes))
            rows.append(block.rows)
            bar.update(len(block.rows))
    back = np.argsort(np.concatenate(rows))  # to the order of the file

    def together(columns: Iterable[NDArray | None]) -> NDArray | None:
        there = [column for column in columns if column is not None]
        return np.concatenate(there)[back] if there else None

    measures = map(np.concatenate, zip(*(part.measures for part in parts), strict=True))
    return QueryPredictions(
        np.concatenate([part.probabilities for part in parts])[back],
        together(part.embedding for part in parts),
        together(part.agree for part in parts),
        Measures(*(column[back] for column in measures)),
        np.concatenate([part.n_known_genes for part in parts])[back],
    )


def _blocks(
    cells: Cells, layers: list[str], is_mitochondrial: NDArray[np.bool_]
) -> Iterator[Block]:
    """Read the query's cells, in file order."""
    others = [of_layer(cells, layer).blocks(BLOCK_CELLS) for layer in layers]
    for start, block in cells.blocks(BLOCK_CELLS):
        rows = np.arange(start, start + block.shape[0])
        profiles = [block, *(next(other)[1] for other in others)]
        sizes = [np.asarray(p.sum(axis=1), dtype=np.float64).ravel() for p in profiles]
        counts = Rows(block.indptr, block.indices, block.data)
        measures = measure_block(counts, is_mitochondrial)
        yield Block(rows, list(zip(profiles, sizes, strict=True)), measures)


def _mitochondrial(model: TrainedModel, cells: Cells, match: GeneMatch) -> NDArray[np.bool_]:
    """Say which genes of the query are mitochondrial, by its symbols or by the vocabulary's."""
    prefix = model.quality_control.mitochondrial_prefix
    known = [symbol.upper().startswith(prefix.upper()) for symbol in model.vocabulary.gene_symbols]
    in_vocabulary = np.array([*known, False])[match.columns]  # -1: the last, no gene of it
    return mitochondrial_genes(cells.gene_symbols, prefix) | in_vocabulary


def _one_file(query: str | Path) -> CellPath:
    paths = resolve(query)
    if len(paths) != 1 or paths[0].suffix != ".h5ad" or paths[0].is_dir():
        names = ", ".join(path.name for path in paths[:5])
        raise AnnotationError(
            f"{query}: expected one .h5ad file, found {names}; a zarr store or another format is "
            "read with anndata and written with its write_h5ad"
        )
    return paths[0]
