"""Name the cells of a new file with a trained run: one cell at a time in all but speed.

The run folder is all that is needed: weights, vocabulary, gene medians and class names lie in it,
and the temperature that makes its probabilities honest is fitted on its own val predictions.
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import write_elem
from safetensors.numpy import load_file
from scipy.sparse import csr_matrix
from tqdm import tqdm

from configs.schema import TrainConfig
from dataset.cell_url import CellPath
from dataset.history import History, time_names
from dataset.npy_dataset import collate, padded_length, to_device
from dataset.read import Cells, open_cells
from dataset.sources import resolve
from dataset.tokenizers.rank import RankConfig, rank_tokens
from dataset.vocabulary import GeneMatch
from evaluation.calibration import apply_temperature, confidence_threshold, fit_temperature
from evaluation.run_folder import RunFolder
from models.rank_transformer import RankTransformer, RankTransformerConfig
from training.checkpoint import flush_to_disk, load_tensors, load_weights
from training.distributed import choose_device

logger = logging.getLogger(__name__)

BLOCK_CELLS = 1024  # read and ranked at a time
EMBEDDING_KEY = "X_nanocell"
PROBABILITIES_KEY = "class_probabilities"


class AnnotationError(ValueError):
    """The query cannot be annotated with this run; nothing was written."""


@dataclass(frozen=True)
class Annotation:
    """What ``annotate`` found and wrote.

    Attributes
    ----------
    cells
        ``predicted_cell_type``, ``confidence`` and ``uncertain``, one row a cell.
    probabilities
        Of each class, calibrated, ``(n_cells, n_classes)``.
    embedding
        The ``<cls>`` embedding, ``(n_cells, d)``; None for a baseline.
    class_names
        Columns of ``probabilities``.
    match
        Which genes of the model's vocabulary the query has.
    temperature, threshold
        Fitted on the run's val cells: of the probabilities, and of ``uncertain``.
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
    output: Path


class TrainedModel:
    """A finished run, ready to answer for new cells.

    Attributes
    ----------
    run
        The run folder.
    vocabulary, gene_medians, class_names
        What the model was trained with.
    temperature, threshold
        Of the probabilities and of ``uncertain``, fitted on the run's val cells.
    """

    def __init__(self, path: str | Path, *, device: str = "auto") -> None:
        self.run = RunFolder(path)
        self.config: TrainConfig = self.run.config
        self.vocabulary, self.gene_medians = self.run.vocabulary, self.run.gene_medians
        self.class_names = self.run.class_names
        self.tokenizer = RankConfig(**self.run.meta["tokenizer"])
        self.device = choose_device(device)
        val = self.run.predictions("val")
        self.temperature = fit_temperature(val.labels, val.probabilities)
        calibrated = apply_temperature(val.probabilities, self.temperature)
        self.threshold = confidence_threshold(val.labels, calibrated)
        weights = self.run.path / "model.safetensors"
        if not weights.exists():
            raise AnnotationError(
                f"{path}: this run keeps no weights ({self.config.model.kind} cannot be saved "
                "without pickling); annotate with another run"
            )
        model = self.config.model
        if isinstance(model, RankTransformerConfig):
            self.baseline = None
            self.network = self._network(model, weights)
        else:
            self.baseline = model.from_arrays(load_file(weights))

    def _network(self, model: RankTransformerConfig, weights: Path) -> RankTransformer:
        network = model.build(
            n_vocabulary=self.vocabulary.n_tokens,
            n_classes=len(self.class_names),
            n_tokens=self.tokenizer.row_length,
            n_segments=self.tokenizer.n_segments,
        )
        tensors, _ = load_tensors(weights)
        load_weights(network, tensors, weights)
        return network.to(self.device).eval()

    @property
    def needs_time(self) -> bool:
        """Whether a cell's previous profile is worked out from its time point."""
        return self.baseline is None and self.history is not None

    @cached_property
    def history(self) -> History | None:
        """What gives a new cell its previous profile; None for one time point."""
        folder = self.run.path / "data" / "history"
        return History.load(folder) if folder.is_dir() else None

    def predict(
        self,
        counts: csr_matrix,
        library_size: np.ndarray,
        *,
        previous: tuple[csr_matrix, np.ndarray] | None = None,
        batch_size: int = 64,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict a block of cells.

        Parameters
        ----------
        counts
            Raw counts, ``(n_cells, n_genes)``, columns in vocabulary order.
        library_size
            Counts of each cell over all its genes, ``(n_cells,)``.
        previous
            The same of the time point before, for a model of two time points.
        batch_size
            Cells computed at a time. It does not change a cell's answer, nor do its neighbours:
            every cell is padded to the same multiple of 64 tokens whoever stands beside it. Float
            sums may still differ in the last digits (below 1e-5 in a probability).

        Returns
        -------
        Calibrated probabilities ``(n_cells, n_classes)`` and embeddings ``(n_cells, d)``.
        """
        if self.baseline is not None:
            probabilities = self.baseline.predict_proba(counts, library_size)
            return apply_temperature(probabilities, self.temperature), None
        ranked = rank_tokens(
            counts,
            self.gene_medians,
            n_tokens=self.tokenizer.n_tokens,
            previous=None if previous is None else previous[0],
        )
        sizes = [library_size] if previous is None else [library_size, previous[1]]
        arrays = {
            "token_ids": ranked.token_ids,
            "counts": ranked.counts,
            "library_size": np.stack(sizes, axis=1).astype(np.float32),
            "labels": np.zeros(len(ranked.lengths), dtype=np.int64),
            "cell_index": np.arange(len(ranked.lengths)),
        }
        widths = np.array(
            [padded_length(int(n), self.tokenizer.row_length) for n in ranked.lengths]
        )
        n_cells = len(widths)
        logits = np.zeros((n_cells, len(self.class_names)), dtype=np.float32)
        embedding = np.zeros(
            (n_cells, self.network.gene_embedding.embedding_dim), dtype=np.float32
        )
        with torch.inference_mode():
            for cells, longest in _batches(widths, batch_size):
                rows = {name: array[cells] for name, array in arrays.items()}
                for name in ("token_ids", "counts"):
                    rows[name] = rows[name][:, :longest]
                output = self.network(to_device(collate(rows), self.device))
                logits[cells] = output.logits.float().cpu().numpy()
                embedding[cells] = output.cell_embedding.float().cpu().numpy()
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        return apply_temperature(probabilities, self.temperature), embedding


def annotate(
    run: str | Path,
    query: str | Path,
    output: str | Path,
    *,
    counts: str = "auto",
    time_key: str | None = None,
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
        type), ``obs["uncertain"]``, ``obsm["class_probabilities"]``, ``obsm["X_nanocell"]`` (the
        embedding; networks only) and ``uns["nanocell"]``.
    counts
        Where the query's counts are, as in the preprocess config.
    time_key
        obs column of the time point; needed by a run of two time points only.
    min_match_rate
        Smallest share of the model's genes that the query must have.
    batch_size, device
        As in ``TrainedModel``.

    Raises
    ------
    AnnotationError, CellFileError, RunFolderError
        If the genes do not match, or a file cannot be used. Nothing is written then.
    """
    (path,) = _one_file(query)
    output = Path(output)
    if output.suffix != ".h5ad":
        raise AnnotationError(f"{output}: the output must end in .h5ad")
    if isinstance(path, Path) and output.exists() and output.samefile(path):
        raise AnnotationError(f"{output}: is the query itself; give another output")
    model = TrainedModel(run, device=device)
    cells = open_cells(path, counts=counts)
    match = match_genes(model, cells, min_match_rate)
    found = list(_predict(model, cells, match, time_key, batch_size))
    probabilities = np.concatenate([part[0] for part in found])
    embedding = None
    if found[0][1] is not None:
        embedding = np.concatenate([part[1] for part in found])
    confidence = probabilities.max(axis=1)
    table = pd.DataFrame(
        {
            "predicted_cell_type": pd.Categorical.from_codes(
                probabilities.argmax(axis=1), categories=pd.Index(model.class_names)
            ),
            "confidence": confidence,
            "uncertain": confidence < model.threshold,
        },
        index=cells.obs.index,
    )
    annotation = Annotation(
        table,
        probabilities,
        embedding,
        model.class_names,
        match,
        model.temperature,
        model.threshold,
        output,
    )
    _write(annotation, path, Path(run).name)
    return annotation


def match_genes(model: TrainedModel, cells: Cells, min_match_rate: float) -> GeneMatch:
    """Find the model's genes in the query, or say which are missing."""
    match = model.vocabulary.match(cells.gene_ids.tolist(), cells.gene_symbols.tolist())
    n_genes = model.vocabulary.n_genes
    logger.info("%d of the model's %d genes found", n_genes - len(match.missing), n_genes)
    if match.rate < min_match_rate:
        raise AnnotationError(
            f"{cells.files[0].path}: has {match.rate:.1%} of the model's genes, at least "
            f"{min_match_rate:.0%} are needed. The model knows genes such as "
            f"{', '.join(match.missing[:8])}; the file has {', '.join(cells.gene_ids[:8])}. Are "
            "they of the same species, and named the same way?"
        )
    return match


def _predict(
    model: TrainedModel, cells: Cells, match: GeneMatch, time_key: str | None, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    times = None
    if model.needs_time:
        if time_key is None:
            raise AnnotationError(
                f"{model.run.path}: was trained on two time points and needs the time of every "
                f"query cell: give time_key, one of {', '.join(map(str, cells.obs.columns))}"
            )
        times = time_names(cells.column(time_key))
    known = match.columns >= 0
    shape = (cells.n_genes, model.vocabulary.n_genes)
    ones = np.ones(int(known.sum()), dtype=np.int32)
    align = csr_matrix((ones, (np.flatnonzero(known), match.columns[known])), shape=shape)
    with tqdm(total=cells.n_cells, unit="cell", desc="annotate", mininterval=1.0) as bar:
        for start, block in cells.blocks(BLOCK_CELLS):
            library_size = np.asarray(block.sum(axis=1), dtype=np.float64).ravel()
            counts = csr_matrix(block @ align)
            counts.sort_indices()
            previous = None
            if times is not None and model.history is not None:
                now = times[start : start + block.shape[0]]
                previous = model.history.profiles(counts, library_size, now)
            yield model.predict(counts, library_size, previous=previous, batch_size=batch_size)
            bar.update(block.shape[0])


def _batches(widths: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cells of one padded length together, at most ``batch_size`` of them."""
    for width in np.unique(widths):
        cells = np.flatnonzero(widths == width)
        for start in range(0, len(cells), batch_size):
            yield cells[start : start + batch_size], int(width)


def _one_file(query: str | Path) -> list[CellPath]:
    paths = resolve(query)
    if len(paths) != 1 or paths[0].suffix != ".h5ad":
        names = ", ".join(path.name for path in paths)
        raise AnnotationError(f"{query}: expected one .h5ad file, found {names}")
    return paths


def _write(annotation: Annotation, query: CellPath, run_name: str) -> None:
    """Copy the query and add to the copy, so that its matrices are never held in memory."""
    output = annotation.output
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.partial")
    try:
        with query.open("rb") as source, aside.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        with h5py.File(aside, "r+") as file:
            _add_columns(file, annotation.cells)
            _replace(file.require_group("obsm"), PROBABILITIES_KEY, annotation.probabilities)
            if annotation.embedding is not None:
                _replace(file["obsm"], EMBEDDING_KEY, annotation.embedding)
            about = {
                "run": run_name,
                "class_names": np.array(annotation.class_names, dtype=object),
                "gene_match_rate": annotation.match.rate,
                "temperature": annotation.temperature,
                "uncertain_below": annotation.threshold,
            }
            _replace(file.require_group("uns"), "nanocell", about)
        flush_to_disk(aside)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)


def _add_columns(file: h5py.File, columns: pd.DataFrame) -> None:
    obs = file["obs"]
    order = [str(name) for name in obs.attrs["column-order"]]
    for name in map(str, columns):
        values = columns[name]
        _replace(obs, name, values.array if values.dtype == "category" else values.to_numpy())
    order += [name for name in map(str, columns) if name not in order]
    obs.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())


def _replace(group: h5py.Group, key: str, value: Any) -> None:
    if key in group:
        del group[key]
    write_elem(group, key, value)
