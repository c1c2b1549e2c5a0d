"""``RunFolder``: a finished run, opened and checked; it is complete in itself."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from configs.base import ConfigError
from configs.schema import TrainConfig
from dataset.vocabulary import Vocabulary
from training.tracking import read_metrics


class RunFolderError(ValueError):
    """A run folder is not there, not finished, or damaged."""


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
        if not (self.path / "metrics.json").exists():
            raise RunFolderError(f"{self.path}: is no finished run (it has no metrics.json)")
        self.metrics: dict[str, Any] = self._json("metrics.json")
        self.meta: dict[str, Any] = self._json("data/meta.json")
        self.class_names: list[str] = self._json("data/class_names.json")
        try:
            text = (self.path / "config.yaml").read_text(encoding="utf-8")
            self.config = TrainConfig.model_validate(yaml.safe_load(text))
        except (OSError, ValueError, yaml.YAMLError, ConfigError, ValidationError) as error:
            raise self._damaged("config.yaml", error) from None
        for key in ("val", "test", "data_sha256", "split_sha256"):
            if key not in self.metrics:
                raise self._damaged("metrics.json", f"no {key!r}")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The genes the model knows."""
        try:
            return Vocabulary.load(self.path / "data" / "vocabulary.json")
        except (OSError, ValueError) as error:
            raise self._damaged("data/vocabulary.json", error) from None

    @cached_property
    def gene_medians(self) -> NDArray[np.float32]:
        """Median of each gene over the train cells, ``(n_genes,)``."""
        try:
            medians = np.load(self.path / "data" / "gene_medians.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged("data/gene_medians.npy", error) from None
        if medians.shape != (self.vocabulary.n_genes,):
            raise self._damaged("data/gene_medians.npy", f"shape {medians.shape}")
        return medians

    @cached_property
    def curves(self) -> list[dict[str, float]]:
        """Lines of metrics.jsonl, in the order of the steps; none for a baseline."""
        path = self.path / "metrics.jsonl"
        try:
            return read_metrics(path) if path.exists() else []
        except (OSError, ValueError) as error:
            raise self._damaged("metrics.jsonl", error) from None

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
        n, c = len(predictions.labels), len(self.class_names)
        if predictions.probabilities.shape != (n, c) or len(predictions.cell_names) != n:
            shape = predictions.probabilities.shape
            raise self._damaged(name, f"probabilities are {shape}, expected {(n, c)}")
        return predictions

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, why: object) -> RunFolderError:
        lines = str(why).splitlines() or [type(why).__name__]
        return RunFolderError(
            f"{self.path}/{name}: damaged ({lines[0]}); delete the run, train again"
        )
