"""``Run``: a finished run, opened and checked; it is complete in itself.

``training/run_writer.py`` writes what is read here, under the names that stand here. A folder of
another version of this code is told from one that was damaged.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from configs.base import ConfigError
from configs.user_error import UserError
from dataset import TokenizerConfig
from dataset.store.checksums import CHECKSUMS, changed_files, read_checksums
from dataset.store.data_facts import DataFacts, FactsError, read_class_names, read_facts
from dataset.store.encoded_folder import SCHEMA_VERSION
from dataset.store.meta import Fold
from training.checkpoint import ADVICE, WEIGHTS
from training.config import TrainConfig
from training.same_run import folds_key, model_key
from training.tracking import MetricsError, read_metrics

RUN_VERSION = 3  # 3: temperature and sizes of the classes in train; in metrics.json
CONFIG, METRICS, CURVES = "config.yaml", "metrics.json", "metrics.jsonl"
DATA, MEMBERS = "data", "members"
SPLITS = ("val", "test")  # those that are predicted, test unless the config says test: false
BANK = "bank.npz"  # of a run whose objectives look up train cells
CELLS = ("cell_names", "batches", "labels")  # of every predictions file, and of the bank
# Of every finished run, be it a network or a baseline.
ALWAYS_THERE = (
    CONFIG,
    METRICS,
    "predictions_val.npz",
    *(f"{DATA}/{name}" for name in ("meta.json", "vocabulary.json", "class_names.json")),
)
SHOWN_FILES = 4  # changed ones that a sentence names


class RunFolderError(UserError):
    """A run folder is not there, not finished, not what was written, or of another run."""


def other_version(path: Path, reason: object) -> RunFolderError:
    """Return the error for a folder that another version of this code wrote."""
    return RunFolderError(
        f"{path}: was written by another version of this code ({_one_line(reason)}); {ADVICE}"
    )


def member_folders(config: TrainConfig) -> list[str]:
    """Return where a committee's run keeps its members, below its folder."""
    names = [Path(member).name for member in config.members]
    return [f"{MEMBERS}/{i}_{name}" for i, name in enumerate(names, start=1)]


class _Table(BaseModel):
    """A JSON file: the keys it must have at least; others are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


Scores = dict[str, Annotated[float, Field(allow_inf_nan=False)]]


class _Metrics(_Table):
    """metrics.json."""

    val: Scores
    data_sha256: str
    split_sha256: str
    train_class_sizes: list[int]
    temperature: float | None  # of runs that predict classes
    seed: int
    seconds: float
    peak_memory_mb: float
    n_parameters: int | None
    wandb_url: str | None = None


class _TestedMetrics(_Metrics):
    """metrics.json of a run whose config does not say test: false."""

    test: Scores


class _Meta(_Table):
    """data/meta.json: what is used of it."""

    name: str
    fold: Fold | None = None
    n_cells: dict[str, int]
    tokenizer: dict[str, Any]
    n_tokens: int
    n_segments: int
    condition_keys: list[str]
    position_keys: list[str]
    learned: dict[str, Any]


@dataclass(frozen=True)
class SplitPredictions:
    """A run's predictions for the cells of one split; ``c`` classes, ``d`` embedding width.

    Attributes
    ----------
    cell_names, batches, labels
        Of the cells, ``(n,)`` each: names, donor or batch, class ids (-1: unlabeled).
    arrays
        By name, one row a cell: ``probabilities`` ``(n, c)`` where classes are predicted,
        ``embeddings`` ``(n, d)`` of a network, and whatever else the run's objectives predict.
    """

    cell_names: NDArray[np.str_]
    batches: NDArray[np.str_]
    labels: NDArray[np.int64]
    arrays: dict[str, NDArray]

    @property
    def has_classes(self) -> bool:
        """Whether classes are predicted: a pretrained network has none."""
        return "probabilities" in self.arrays

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities of the classes, ``(n, c)``; see ``has_classes``."""
        return self.arrays["probabilities"]

    @property
    def embeddings(self) -> NDArray[np.float32] | None:
        """Embeddings of the cells, ``(n, d)``; None for a baseline."""
        return self.arrays.get("embeddings")


class Run:
    """Checked reader of ``runs/<name>/``.

    Every file is compared with its checksum as the folder is opened: half a second for a run on a
    million cells, of whose large files a sample is read.

    Attributes
    ----------
    path, name
        The folder and its name.
    config
        The resolved config.
    metrics
        metrics.json: scores of val and test, temperature, cost, hashes of cells and split, train
        cells of each class, commit, versions.
    meta, class_names
        Of the encoded data it was trained on.

    Raises
    ------
    RunFolderError
        In one sentence.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        if not self.path.is_dir():
            raise RunFolderError(f"{self.path}: no such run folder; train first")
        self.checksums = self._read_checksums()
        named = {*ALWAYS_THERE, *map(_predictions, SPLITS)}
        there = [name for name in named if (self.path / name).exists()]
        if changed := changed_files(self.path, self.checksums, {*self.checksums, *there}):
            raise self._changed(changed)
        try:
            self.config = TrainConfig.load(self.path / CONFIG)
        except ConfigError as error:
            raise other_version(self.path, error) from None
        if lacking := sorted({*ALWAYS_THERE, *map(_predictions, self.splits)} - {*there}):
            raise other_version(self.path, f"it has no {', '.join(lacking)}")
        scores = _TestedMetrics if self.config.test else _Metrics
        self.metrics: dict[str, Any] = self._table(METRICS, scores, version=RUN_VERSION)
        self.meta: dict[str, Any] = self._table(
            f"{DATA}/meta.json", _Meta, schema_version=SCHEMA_VERSION
        )
        try:
            TypeAdapter(TokenizerConfig).validate_python(self.meta["tokenizer"])
        except ValidationError as error:
            raise other_version(self.path, f"data/meta.json: {_first_fault(error)}") from None
        self.class_names = self._class_names()

    @property
    def data(self) -> Path:
        """The run's copy of what was learned from the train cells."""
        return self.path / DATA

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it predicted."""
        return SPLITS if self.config.test else ("val",)

    @property
    def is_baseline(self) -> bool:
        """Whether it is one of scikit-learn's."""
        return self.config.is_baseline

    @property
    def is_network(self) -> bool:
        """Whether it is a network: no baseline, and no committee."""
        return self.config.is_network

    @cached_property
    def facts(self) -> DataFacts:
        """Sizes and names of the data, as ``EncodedFolder.facts``."""
        try:
            return read_facts(self.data, self.meta)
        except FactsError as error:
            raise self._damaged(f"{DATA}/{error.file}", error.fault) from None

    @cached_property
    def curves(self) -> list[dict[str, float]]:
        """Lines of metrics.jsonl, in the order of the steps; none for a baseline."""
        try:
            return read_metrics(self.path / CURVES)
        except (OSError, MetricsError) as error:
            raise self._damaged(CURVES, error) from None

    @cached_property
    def members(self) -> list["Run"]:
        """The runs that a committee is of, in their order; none for every other model."""
        return [Run(self.path / name) for name in member_folders(self.config)]

    def model_key(self, *, history: bool = True) -> str:
        """Return the identity of its model, without its seed, as text (``same_run.model_key``)."""
        members = [member.model_key(history=history) for member in self.members]
        began_with = self.metrics.get("init_from", {}).get("model_sha256")
        return model_key(
            self.config, self.data, history=history, members=members, began_with=began_with
        )

    @property
    def fold(self) -> Fold | None:
        """Which fold of its data it was trained on; None where these are not split in folds."""
        fold = self.meta.get("fold")
        return None if fold is None else Fold.model_validate(fold)

    def folds_key(self) -> str:
        """Return what it shares with the runs of the other folds (``same_run.folds_key``)."""
        members = [member.folds_key() for member in self.members]
        return folds_key(self.config, self.data, members=members)

    def weights(self) -> dict[str, NDArray]:
        """Read model.safetensors, all of it finite.

        A baseline may hold minus infinity, for a class that can never be; nothing else may.
        """
        try:
            arrays = load_file(self.path / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(WEIGHTS, error) from None
        for key, array in arrays.items():
            good = np.isfinite(array) | (self.is_baseline & np.isneginf(array))
            if not good.all():
                raise self._damaged(WEIGHTS, f"{key!r} holds NaN or infinite values")
        return arrays

    def predictions(self, split: str) -> SplitPredictions:
        """Return the predictions of one of ``splits``."""
        return self._cells(_predictions(split))

    def bank(self) -> SplitPredictions:
        """Return the train cells that it looks up: unit ``embeddings``, ``(m, d)`` float16."""
        bank = self._cells(BANK)
        is_labeled = bool((bank.labels >= 0).all()) or not self.class_names
        if bank.embeddings is None or bank.embeddings.dtype != np.float16 or not is_labeled:
            raise self._damaged(BANK, "expected float16 embeddings of labeled cells")
        return bank

    def _cells(self, name: str) -> SplitPredictions:
        try:
            with (
                (self.path / name).open("rb") as file,
                np.load(file, allow_pickle=False) as opened,
            ):
                arrays = {key: opened[key] for key in opened.files}
            cell_names, batches, labels = (arrays.pop(key) for key in CELLS)
        except Exception as error:  # noqa: BLE001 - a damaged zip raises whatever it likes
            raise self._damaged(name, error) from None
        cells = SplitPredictions(cell_names, batches, labels, arrays)
        if fault := _fault(cells, len(self.class_names)):
            raise self._damaged(name, fault)
        return cells

    def _read_checksums(self) -> dict[str, str]:
        try:
            return read_checksums(self.path)
        except FileNotFoundError:
            if not (self.path / METRICS).exists():
                raise RunFolderError(
                    f"{self.path}: is no finished run (it has no {METRICS}); {ADVICE}"
                ) from None
            raise other_version(self.path, f"it has no {CHECKSUMS}") from None
        except (OSError, ValueError) as error:
            raise self._damaged(CHECKSUMS, error) from None

    def _table(self, name: str, expected: type[_Table], **versions: int) -> dict[str, Any]:
        """Read a JSON table; ``versions`` is the key of its format, and the one read here."""
        try:
            table = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from None
        for key, version in versions.items():
            if isinstance(table, dict) and table.get(key) != version:
                found = f"{name}: format {table.get(key)}, this code reads {version}"
                raise other_version(self.path, found)
        try:
            expected.model_validate(table)
        except ValidationError as error:
            raise self._damaged(name, _first_fault(error)) from None
        return table

    def _class_names(self) -> list[str]:
        try:
            names = read_class_names(self.data)
        except FactsError as error:
            raise self._damaged(f"{DATA}/{error.file}", error.fault) from None
        if not names and self.meta.get("label_key", "") is not None:
            raise self._damaged(f"{DATA}/class_names.json", "expected a list of names")
        return names

    def _changed(self, names: list[str]) -> RunFolderError:
        names = sorted(names)
        missing = [name for name in names if not (self.path / name).is_file()]
        other = [name for name in names if name not in missing]
        parts = [
            f"{_list(files)} {verb}"
            for files, verb in (
                (missing, "missing"),
                (other, "changed since the run was finished"),
            )
            if files
        ]
        return RunFolderError(
            f"{self.path}: {' and '.join(parts)}: restore what was there, or {ADVICE}"
        )

    def _damaged(self, name: str, why: object) -> RunFolderError:
        return RunFolderError(f"{self.path}/{name}: cannot be used ({_one_line(why)}); {ADVICE}")


def _fault(found: SplitPredictions, n_classes: int) -> str | None:
    """Say what is wrong with predictions; None if nothing is."""
    n, labels = len(found.labels), found.labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return "labels are no whole numbers"
    least = 0 if found.has_classes else -1
    if n and not (least <= labels.min() and labels.max() < n_classes):
        return f"labels beyond the {n_classes} classes"
    for name in ("cell_names", "batches"):
        texts = getattr(found, name)
        if texts.shape != (n,) or texts.dtype.kind != "U":
            return f"{name} are {texts.dtype} {texts.shape}, expected {n} texts"
    if found.has_classes:
        probabilities = found.probabilities
        if probabilities.shape != (n, n_classes) or probabilities.dtype.kind != "f":
            return f"probabilities are {probabilities.shape}, expected {(n, n_classes)}"
        if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
            return "probabilities that are NaN or not from 0 to 1"
        if n and np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() > 1e-3:
            return "probabilities that do not add up to 1"
    if (embeddings := found.embeddings) is not None:
        if embeddings.ndim != 2 or embeddings.dtype.kind != "f":
            return f"embeddings are {embeddings.dtype} {embeddings.shape}"
    for name, array in found.arrays.items():
        if array.shape[:1] != (n,) or array.dtype.kind not in "fiub":
            return f"{name} are {array.dtype} {array.shape}, expected numbers of {n} cells"
        if not np.isfinite(array).all():
            return f"{name} that are NaN or infinite"
    return None


def _predictions(split: str) -> str:
    return f"predictions_{split}.npz"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names[:SHOWN_FILES])}{more} {verb}"


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _one_line(why: object) -> str:
    return " ".join(str(why).split())[:200] or type(why).__name__
