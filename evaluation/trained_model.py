"""``TrainedModel``: a finished run that predicts new cells, each independent of the others."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from scipy.sparse import csr_matrix

from configs.base import ConfigError
from dataset import read_tokenizer
from dataset.batches import EncodedCells
from dataset.config import QualityControlConfig
from dataset.previous.history import History
from dataset.store.csr_file import Rows, counts_dtype
from dataset.tokenizers.tokenizer import CellCounts
from evaluation.annotated_file import AnnotationError
from evaluation.calibration import apply_temperature, confidence_threshold
from models.learner import Learner
from models.network import CellSets
from models.objectives.base import Bank
from training.checkpoint import WEIGHTS, CheckpointError, load_weights
from training.config import TrainConfig
from training.distributed import Ranks, choose_device
from training.predict import predict_cells
from training.runs import BANK, Run, SplitPredictions

DEVICES = ("auto", "cpu", "cuda", "mps")


class TrainedModel:
    """A finished run, ready to predict new cells.

    Attributes
    ----------
    run
        The run folder.
    facts, vocabulary, class_names
        Of the data that the model was trained on.
    temperature, threshold
        Of the probabilities, as stored in the run, and of ``uncertain``; of the run's val cells.
        A run that predicts no classes has none.
    quality_control, min_detected_genes
        Which cells the run was trained on: its thresholds, and the fewest genes of the vocabulary
        that a train cell has.
    members, weights
        Of a committee, for ``combine``; empty and None for every other model.
    bank
        The train cells that the model, or a committee's first network, looks up; None where it
        looks up none.
    previous_layer
        Layer that holds a query cell's previous profile; None where the model needs none.

    Parameters
    ----------
    path
        Of the run.
    device
        One of ``DEVICES``.
    needs_classes
        Whether a run that predicts none, as a pretraining, is refused.

    Raises
    ------
    AnnotationError, RunFolderError
        If the run cannot predict new cells.
    """

    def __init__(
        self, path: str | Path, *, device: str = "auto", needs_classes: bool = True
    ) -> None:
        if device not in DEVICES:
            raise AnnotationError(f"device: {device!r}; expected one of {', '.join(DEVICES)}")
        self.run = Run(path)
        self.config: TrainConfig = self.run.config
        self.facts = self.run.facts
        self.vocabulary = self.facts.vocabulary
        self.class_names = self.run.class_names
        if self.config.is_transductive:
            raise AnnotationError(
                f"{self.run.path}: its {self.config.model.kind} saw the cells that it predicts "
                "while it was fitted (it is transductive), and knows no others; annotate with "
                "another run"
            )
        self._read_meta()
        self.device = choose_device(device)
        self.bank: SplitPredictions | None = None
        val = self.run.predictions("val")
        if needs_classes and not val.has_classes:
            raise AnnotationError(
                f"{self.run.path}: predicts no classes; train a run with the objective classify, "
                f"which may start from this one (init_from={self.run.path})"
            )
        if val.has_classes:
            self.temperature: float = self.run.metrics["temperature"]
            calibrated = apply_temperature(val.probabilities, self.temperature)
            self.threshold = confidence_threshold(val.labels, calibrated)
        model, self.baseline = self.config.model, None
        self.members = [TrainedModel(member.path, device=device) for member in self.run.members]
        self.weights = self.run.weights()["weights"] if self.members else None
        if self.run.is_baseline:
            self.baseline = self._baseline(model)
        elif self.members:  # the embedding is that of its first network
            networks = (member for member in self.members if member.run.is_network)
            self.bank = next((member.bank for member in networks), None)
        else:
            self.learner = self._learner(model)

    def _read_meta(self) -> None:
        try:
            self.tokenizer = read_tokenizer(self.run.meta["tokenizer"])
            self.quality_control = QualityControlConfig(**self.run.meta["quality_control"])
            self.min_detected_genes = _number_of_genes(self.run.meta["min_detected_genes"])
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            fault = str(error).splitlines()[0]
            raise AnnotationError(
                f"{self.run.path}: data/meta.json does not say which cells the run was trained on "
                f"({type(error).__name__}: {fault}), or an older version wrote it: preprocess and "
                "train again"
            ) from None

    def _learner(self, model: Any) -> Learner:
        previous = self.tokenizer.previous
        if previous is not None and previous.shuffle:
            raise AnnotationError(
                f"{self.run.path}: was trained on histories of other cells (previous.shuffle), as "
                "a control; annotate with the run that it is compared with"
            )
        if previous is not None and previous.layer is None and self.history is None:
            raise AnnotationError(
                f"{self.run.path}: was trained on two time points, and data/history, which gives "
                "new cells their previous profile, is missing; train again"
            )
        learner = Learner(model, self.config.objectives, self.facts)
        tensors = {name: torch.from_numpy(array) for name, array in self.run.weights().items()}
        try:
            load_weights(learner, tensors, self.run.path / WEIGHTS)
        except CheckpointError as error:
            raise AnnotationError(f"{error}; annotate with another run, or train again") from None
        learner = learner.to(self.device).eval()
        if learner.bank_size:
            self.bank = self.run.bank()
            self._remember(learner, self.bank)
        return learner

    def _remember(self, learner: Learner, bank: SplitPredictions) -> None:
        embeddings, labels = torch.from_numpy(bank.embeddings), torch.from_numpy(bank.labels)
        if embeddings.shape[1] != learner.network.d_model:
            raise AnnotationError(
                f"{self.run.path}/{BANK}: embeddings of another network, {embeddings.shape[1]} "
                f"wide and not {learner.network.d_model}; annotate with another run, or train "
                "again"
            )
        nobody = torch.full_like(labels, -1)  # a query's cells are none of them
        learner.remember(Bank(*(a.to(self.device) for a in (embeddings, labels, nobody))))

    def _baseline(self, model: Any) -> Any:
        """Rebuild a baseline, and check on a cell without counts that it fits the run."""
        arrays = self.run.weights()
        try:
            baseline = model.from_arrays(arrays)
            nothing = csr_matrix((1, self.vocabulary.n_genes), dtype=np.int32)
            shape = baseline.predict_proba(nothing, np.zeros(1)).shape
            if shape != (1, len(self.class_names)):
                raise ValueError(f"it predicts {shape[-1]} classes")
        except ConfigError:  # a package that is not installed
            raise
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise AnnotationError(
                f"{self.run.path}/{WEIGHTS}: is not this run's {model.kind} "
                f"({type(error).__name__}: {error}); annotate with another run, or train again"
            ) from None
        return baseline

    @property
    def needs_time(self) -> bool:
        """Whether a cell's previous profile is worked out from its time point."""
        previous = self.tokenizer.previous
        return self.baseline is None and previous is not None and previous.layer is None

    @property
    def previous_layer(self) -> str | None:
        """Layer of the query that holds the previous profiles; None where none is read."""
        previous = self.tokenizer.previous
        return None if self.baseline is not None or previous is None else previous.layer

    @property
    def cell_sets(self) -> CellSets | None:
        """Which cells the model looks at together; None: at each by itself."""
        return None if self.baseline is not None else self.learner.config.cell_sets

    @property
    def reads_positions(self) -> bool:
        """Whether the model needs the position of each cell."""
        return self.baseline is None and self.learner.config.reads_positions

    @cached_property
    def history(self) -> History | None:
        """Profiles of the time point before, for new cells; None for one time point."""
        folder = self.run.path / "data" / "history"
        return History.load(folder) if folder.is_dir() else None

    def predict(
        self,
        profiles: Sequence[tuple[csr_matrix, np.ndarray]],
        *,
        conditions: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        sets: list[np.ndarray] | None = None,
        batch_size: int = 64,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict a block of cells.

        Parameters
        ----------
        profiles
            Raw counts, ``(n_cells, n_genes)``, columns in vocabulary order, and counts of each
            cell over all its genes, ``(n_cells,)``; for a network of two time points those of the
            time point before too.
        conditions
            Codes known to the run, ``(n_cells, k)``; None: all unknown.
        positions
            Of the cells, ``(n_cells, 2)``, for a network that reads them.
        sets
            Rows of the block, for a network that looks at several cells together.
        batch_size
            Cells computed at a time. It does not change a cell's prediction, nor do cells outside
            of its set: float sums may differ in the last digits (below 1e-5 in a probability).

        Returns
        -------
        Calibrated probabilities ``(n_cells, n_classes)`` and embeddings ``(n_cells, d)``.

        Raises
        ------
        AnnotationError
            If the profiles of a cell are not as many as the network was trained on, or a
            prediction is NaN.
        """
        embedding = None
        if self.baseline is not None:
            probabilities = self.baseline.predict_proba(*profiles[0])
        else:
            if len(profiles) != self.tokenizer.n_segments:
                raise AnnotationError(
                    f"{self.run.path}: the network was trained on {self.tokenizer.n_segments} "
                    f"profile(s) of a cell and is given {len(profiles)}"
                )
            cells = self.encode(profiles, conditions, positions)
            alone = Ranks(rank=0, world_size=1, device=self.device)
            found = predict_cells(self.learner, cells, alone, batch_size=batch_size, sets=sets)
            probabilities, embedding = found["probabilities"], found["embeddings"]
        calibrated = apply_temperature(probabilities, self.temperature)
        if bad := int((~np.isfinite(calibrated).all(axis=1)).sum()):
            raise AnnotationError(
                f"{self.run.path}: {bad:,} of {len(calibrated):,} cells get probabilities that "
                "are NaN; annotate with another run"
            )
        return calibrated, embedding

    def combine(
        self, members: Sequence[tuple[np.ndarray, np.ndarray | None]]
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Return a committee's predictions, from what ``predict`` of each member returns.

        Returns
        -------
        Calibrated probabilities ``(n_cells, n_classes)``, embeddings ``(n_cells, d)`` of the first
        network, and the share of the members that predict the committee's class, ``(n_cells,)``.
        """
        of_each = [probabilities for probabilities, _ in members]
        model: Any = self.config.model
        averaged = model.average(self.weights, of_each)
        same = [p.argmax(axis=1) == averaged.argmax(axis=1) for p in of_each]
        embedding = next((embedding for _, embedding in members if embedding is not None), None)
        return apply_temperature(averaged, self.temperature), embedding, np.mean(same, axis=0)

    def encode(
        self,
        profiles: Sequence[tuple[csr_matrix, np.ndarray]],
        conditions: np.ndarray | None = None,
        positions: np.ndarray | None = None,
    ) -> EncodedCells:
        """Encode cells in memory with the run's tokenizer; what is given is as in ``predict``."""
        segments = [CellCounts(Rows.from_csr(rows), size) for rows, size in profiles]
        dtype = max((counts_dtype(s.rows.counts) for s in segments), key=lambda d: d.itemsize)
        dtypes = self.tokenizer.arrays(self.vocabulary.n_genes, dtype)
        tokens = self.tokenizer.encode(segments, self.facts.learned, dtypes)
        unknown = np.full((len(tokens.lengths), len(self.facts.conditions)), -1, dtype=np.int64)
        return EncodedCells(
            arrays=tokens.arrays,
            lengths=tokens.lengths,
            library_size=np.stack([s.library_size for s in segments], axis=1).astype(np.float32),
            labels=np.full(len(tokens.lengths), -1, dtype=np.int64),
            conditions=unknown if conditions is None else conditions,
            positions=positions,
        )


def _number_of_genes(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"min_detected_genes {value!r} is no number of genes")
    return value
