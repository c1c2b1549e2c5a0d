"""A run's folder: ``runs/.<name>.partial`` while it lasts, ``runs/<name>`` once it is whole."""

import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from configs.base import ConfigError
from configs.schema import TrainConfig
from dataset.encoded_folder import EncodedFolder, EncodedSplit
from dataset.provenance import git_commit
from dataset.written_aside import locked
from training.checkpoint import flush_to_disk, write_atomically, write_text

# What a run is made of. How it is watched, where it runs and how much of an update is computed at
# once may change between two commands.
NOT_COMPARED: dict[str, Any] = {
    "tracking": True,
    "runs_dir": True,
    "device": True,
    "compile": True,
    "parallel": True,
    "data": True,
    "optim": {"tokens_per_batch"},
}
SAME_CELLS = ("data_sha256", "split_sha256", "tokenizer")
# All that a run goes on with. Killed, it may have left halves of files under names of any kind.
CARRIED_ON = ("checkpoint.safetensors", "config.yaml", "data", "metrics.jsonl")
COPIED = ("meta.json", "vocabulary.json", "gene_medians.npy", "class_names.json", "history")


class RunFolderError(ValueError):
    """The run's folder holds something else than what was asked for."""


class RunFolder:
    """Where a run writes, and whether it has been there before.

    Attributes
    ----------
    final
        ``runs/<name>``: exists only with everything in it.
    partial
        ``runs/.<name>.partial``: the checkpoint that an interrupted run carries on from.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.final = Path(config.runs_dir) / config.name
        self.partial = self.final.with_name(f".{config.name}.partial")

    @property
    def checkpoint(self) -> Path:
        """The last epoch's checkpoint; not there before the first epoch has ended."""
        return self.partial / "checkpoint.safetensors"

    def is_finished(self) -> bool:
        """Tell whether this very run is done.

        Raises
        ------
        RunFolderError
            If another run, by its config or its data, was finished or begun under this name.
        """
        if self.final.exists():
            self._check_same(self.final, "holds a finished run")
            return True
        if self.checkpoint.exists():
            self._check_same(self.partial, "holds an interrupted run")
        return False

    @contextmanager
    def begun(self, data: EncodedFolder, *, writes: bool) -> Iterator[None]:
        """Go on in the folder that has a checkpoint, or start a new one; keep none without."""
        if not writes:
            yield
            return
        self.partial.mkdir(parents=True, exist_ok=True)
        busy = f"{self.final}: another process trains it now: wait for it, or choose another name"
        with locked(self.partial, RunFolderError(busy)):
            try:
                self._clear(keep=CARRIED_ON if self.checkpoint.exists() else ())
                if not self.checkpoint.exists():
                    self._copy_facts(data.path)
                    data.check_unchanged()
                write_text(self.partial / "config.yaml", self.config.to_yaml())
                yield
            finally:
                if self.partial.exists() and not self.checkpoint.exists():
                    shutil.rmtree(self.partial)

    def _clear(self, keep: tuple[str, ...]) -> None:
        for path in self.partial.iterdir():
            if path.name in keep:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _copy_facts(self, data: Path) -> None:
        """Copy what new cells are read with, so that the run is complete without its data."""
        (self.partial / "data").mkdir()
        for name in COPIED:
            source, copy = data / name, self.partial / "data" / name
            if source.is_dir():
                shutil.copytree(source, copy)
            elif source.exists():
                shutil.copyfile(source, copy)

    def write_predictions(
        self,
        split: str,
        cells: EncodedSplit,
        probabilities: np.ndarray,
        embeddings: np.ndarray | None,
    ) -> None:
        """Write ``predictions_<split>.npz``; names are numpy strings, nothing is pickled."""
        arrays = {
            "cell_names": np.asarray(cells.cell_names, dtype=np.str_),
            "batches": np.asarray(cells.batches, dtype=np.str_),
            "labels": np.asarray(cells.labels, dtype=np.int64),
            "probabilities": probabilities.astype(np.float32),
        }
        if embeddings is not None:
            arrays["embeddings"] = embeddings.astype(np.float32)

        def write(aside: Path) -> None:
            with aside.open("wb") as file:  # given a name, numpy would append .npz to it
                np.savez(file, allow_pickle=False, **arrays)

        write_atomically(self.partial / f"predictions_{split}.npz", write)

    def write_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Write ``model.safetensors``."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        write_atomically(
            self.partial / "model.safetensors", lambda aside: save_file(contiguous, aside)
        )

    def finish(self, metrics: dict) -> None:
        """Write ``metrics.json``, drop the checkpoint and give the folder its name."""
        write_text(self.partial / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        for path in self.partial.rglob("*"):
            flush_to_disk(path)
        self.checkpoint.unlink(missing_ok=True)
        os.replace(self.partial, self.final)
        flush_to_disk(self.final.parent)

    def _check_same(self, folder: Path, what: str) -> None:
        try:
            found = TrainConfig.load(folder / "config.yaml")
        except ConfigError:
            raise RunFolderError(
                f"{folder}: its config.yaml is missing, damaged or of another version; choose "
                "another name=..., or delete that folder"
            ) from None
        before, now = (
            c.model_dump(mode="json", exclude=NOT_COMPARED) for c in (found, self.config)
        )
        differing = sorted(key for key in now if now[key] != before[key])
        # The cells are compared by what they are, wherever they lie; gone, they cannot differ.
        cells, meant = _meta(folder / "data"), _meta(Path(self.config.data))
        if meant and any(cells.get(key) != meant.get(key) for key in SAME_CELLS):
            differing.append("data")
        if differing:
            raise RunFolderError(
                f"{folder}: {what} of another config or of other cells (differs in: "
                f"{', '.join(differing)}); choose another name=..., or delete that folder"
            )


def _meta(folder: Path) -> dict:
    try:
        return json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def environment(device: torch.device) -> dict:
    """Say what a run was made with: commit, device, versions, peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1),
        "git_commit": git_commit(),
        "device": str(device),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("numpy", "scikit-learn", "torch")},
    }
