"""``RunFolder``: a finished run, opened and checked; it is complete in itself."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from configs.base import ConfigError
from configs.schema import TrainConfig
from dataset import TokenizerConfig
from dataset.store.checksums import CHECKSUMS, changed_files, read_checksums
from dataset.vocabulary import Vocabulary
from training.run_folder import ALWAYS_THERE
from training.tracking import MetricsError, read_metrics

SHOWN_FILES = 4  # changed ones that a sentence names


class RunFolderError(ValueError):
    """A run folder is not there, not finished, or not what it was when it was finished."""


class Facts(BaseModel):
    """What a JSON file must hold at least; what else it holds is kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Scores(Facts):
    """Of one split: those that runs are chosen by, and others."""

    macro_f1: float
    log_loss: float
    __pydantic_extra__: dict[str, float]


class Metrics(Facts):
    """metrics.json."""

    val: Scores
    test: Scores
    data_sha256: str
    split_sha256: str
    seed: int
    seconds: float
    peak_memory_mb: float
    n_parameters: int | None


class Meta(Facts):
    """data/meta.json: what is used of it."""

    name: str
    n_cells: dict[str, int]
    tokenizer: dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """What a run says of the cells of one split; ``c`` classes, ``d`` embedding width."""

    cell_names: NDArray[np.str_]  # (n,)
    batches: NDArray[np.str_]  # (n,), donor or batch
    labels: NDArray[np.int64]  # (n,)
    probabilities: NDArray[np.float32]  # (n, c)
    embeddings: NDArray[np.float32] | None  # (n, d); None for a baseline


class RunFolder:
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
        metrics.json: scores of val and test, cost, hashes of cells and split, commit, versions.
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
        if changed := changed_files(self.path, self.checksums, {*self.checksums, *ALWAYS_THERE}):
            raise self._changed(changed)
        self.metrics: dict[str, Any] = self._json("metrics.json")
        self.meta: dict[str, Any] = self._json("data/meta.json")
        self.class_names: list[str] = self._json("data/class_names.json")
        self._check_types()
        try:
            self.config = TrainConfig.load(self.path / "config.yaml")
        except ConfigError as error:
            raise RunFolderError(
                f"{self.path}/config.yaml: was written by another version of this code and cannot "
                f"be read by this one ({_one_line(error)}); use that version, or train again"
            ) from None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The genes the model knows."""
        try:
            return Vocabulary.load(self.path / "data" / "vocabulary.json")
        except (OSError, ValueError, TypeError) as error:
            raise self._damaged("data/vocabulary.json", error) from None

    @cached_property
    def gene_medians(self) -> NDArray[np.float32]:
        """Median of each gene over the train cells, ``(n_genes,)``."""
        name = "data/learned/medians.npy"
        try:
            medians = np.load(self.path / name, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(name, error) from None
        if medians.shape != (self.vocabulary.n_genes,) or medians.dtype.kind != "f":
            raise self._damaged(name, f"found {medians.dtype} {medians.shape}")
        if not (np.isfinite(medians) & (medians > 0)).all():
            raise self._damaged(name, "not all are positive numbers")
        return medians

    @cached_property
    def curves(self) -> list[dict[str, float]]:
        """Lines of metrics.jsonl, in the order of the steps; none for a baseline."""
        try:
            return read_metrics(self.path / "metrics.jsonl")
        except (OSError, MetricsError) as error:
            raise self._damaged("metrics.jsonl", error) from None

    @property
    def has_weights(self) -> bool:
        """Whether the model was kept: some of scikit-learn's can only be pickled, and are not."""
        return "model.safetensors" in self.checksums

    def weights(self) -> dict[str, NDArray]:
        """Read model.safetensors, whose numbers are numbers.

        A baseline may hold minus infinity, for a class that can never be; nothing else may.
        """
        name = "model.safetensors"
        try:
            arrays = load_file(self.path / name)
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(name, error) from None
        is_baseline = hasattr(self.config.model, "fit")
        for key, array in arrays.items():
            good = np.isfinite(array) | (is_baseline & np.isneginf(array))
            if not good.all():
                raise self._damaged(name, f"{key!r} holds what is no number, NaN or infinite")
        return arrays

    def predictions(self, split: str) -> Predictions:
        """Return the predictions of ``val`` or ``test``."""
        name = f"predictions_{split}.npz"
        try:
            with (
                (self.path / name).open("rb") as file,
                np.load(file, allow_pickle=False) as arrays,
            ):
                found = {key: arrays[key] for key in arrays.files}
            found.setdefault("embeddings", None)
            predictions = Predictions(**found)
        except Exception as error:  # noqa: BLE001 - a damaged zip raises whatever it likes
            raise self._damaged(name, error) from None
        if fault := _fault(predictions, len(self.class_names)):
            raise self._damaged(name, fault)
        return predictions

    def _read_checksums(self) -> dict[str, str]:
        try:
            return read_checksums(self.path)
        except FileNotFoundError:
            if not (self.path / "metrics.json").exists():
                raise RunFolderError(
                    f"{self.path}: is no finished run (it has no metrics.json)"
                ) from None
            raise RunFolderError(
                f"{self.path}: has no {CHECKSUMS}: it was written by an earlier version of this "
                "code; train again under another name"
            ) from None
        except (OSError, ValueError) as error:
            raise self._damaged(CHECKSUMS, error) from None

    def _check_types(self) -> None:
        names = self.class_names
        if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
            raise self._damaged("data/class_names.json", "expected a list of names")
        if len(set(names)) < len(names):
            raise self._damaged("data/class_names.json", "a name occurs twice")
        try:
            Metrics.model_validate(self.metrics)
        except ValidationError as error:
            raise self._damaged("metrics.json", _first_fault(error)) from None
        try:
            Meta.model_validate(self.meta)
            TypeAdapter(TokenizerConfig).validate_python(self.meta["tokenizer"])
        except ValidationError as error:
            raise self._damaged("data/meta.json", _first_fault(error)) from None

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from None

    def _changed(self, names: list[str]) -> RunFolderError:
        names = sorted(names)
        missing = [name for name in names if not (self.path / name).is_file()]
        other = [name for name in names if name not in missing]
        parts = [
            f"{_list(some)} {verb}"
            for some, verb in (
                (missing, "missing"),
                (other, "changed since the run was finished"),
            )
            if some
        ]
        return RunFolderError(
            f"{self.path}: {' and '.join(parts)}: restore what was there, or train again under "
            "another name"
        )

    def _damaged(self, name: str, why: object) -> RunFolderError:
        return RunFolderError(
            f"{self.path}/{name}: cannot be used ({_one_line(why)}); train again under another "
            "name"
        )


def _fault(found: Predictions, n_classes: int) -> str | None:
    """Say what is wrong with predictions; None if nothing is."""
    n, probabilities, embeddings = len(found.labels), found.probabilities, found.embeddings
    if found.labels.ndim != 1 or found.labels.dtype.kind not in "iu":
        return "labels are no whole numbers"
    if n and not (0 <= found.labels.min() and found.labels.max() < n_classes):
        return f"labels beyond the {n_classes} classes"
    for name in ("cell_names", "batches"):
        texts = getattr(found, name)
        if texts.shape != (n,) or texts.dtype.kind != "U":
            return f"{name} are {texts.dtype} {texts.shape}, expected {n} texts"
    if probabilities.shape != (n, n_classes) or probabilities.dtype.kind != "f":
        return f"probabilities are {probabilities.shape}, expected {(n, n_classes)}"
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        return "probabilities that are no numbers from 0 to 1"
    if n and np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() > 1e-3:
        return "probabilities that do not add up to 1"
    if embeddings is not None:
        if embeddings.ndim != 2 or len(embeddings) != n or embeddings.dtype.kind != "f":
            return f"embeddings are {embeddings.dtype} {embeddings.shape}"
        if not np.isfinite(embeddings).all():
            return "embeddings that are no numbers"
    return None


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names[:SHOWN_FILES])}{more} {verb}"


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _one_line(why: object) -> str:
    return " ".join(str(why).split())[:200] or type(why).__name__
