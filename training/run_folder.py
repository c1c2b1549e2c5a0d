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
from dataset.provenance import git_commit
from dataset.store.atomic_folder import locked
from dataset.store.checksums import (
    CHECKSUMS,
    changed_files,
    file_checksum,
    read_checksums,
    write_checksums,
)
from dataset.store.encoded_folder import EncodedFolder, EncodedSplit
from training.alarms import refuse_what_is_no_number
from training.checkpoint import ADVICE, flush_to_disk, write_atomically, write_text, writing

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
# Learned from the training cells: a network is of no use with others.
LEARNED = ("vocabulary.json", "class_names.json", "conditions.json", "learned", "history")
# Of every finished run, be it a network or a baseline.
ALWAYS_THERE = (
    "config.yaml",
    "metrics.json",
    "predictions_val.npz",
    "predictions_test.npz",
    *(f"data/{name}" for name in ("meta.json", *LEARNED[:3])),
)


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
            If another run, by its config or its data, was finished or begun under this name, or
            if what was finished is not whole any more.
        """
        if self.final.exists():
            self._check_whole()
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
                self._copy_facts(data)
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

    def _copy_facts(self, data: EncodedFolder) -> None:
        """Copy what new cells are read with, so that the run is complete without its data.

        In a run that is carried on what was learned is there, and was compared (``_check_same``).
        """
        (self.partial / "data").mkdir(exist_ok=True)
        write_atomically(
            self.partial / "data" / "meta.json",
            lambda aside: shutil.copyfile(data.path / "meta.json", aside),
        )
        for name in LEARNED:
            source, copy = data.path / name, self.partial / "data" / name
            with writing(copy):
                if source.is_dir() and not copy.exists():
                    shutil.copytree(source, copy)
                elif source.is_file() and not copy.exists():
                    shutil.copyfile(source, copy)
        data.check_unchanged()  # or the copies are of another folder

    def data_were_replaced(self, data: EncodedFolder) -> bool:
        """Tell whether the folder of the cells is another one than when it was opened."""
        return _meta(data.path) != data.meta

    def write_predictions(
        self,
        split: str,
        cells: EncodedSplit,
        probabilities: np.ndarray,
        embeddings: np.ndarray | None,
    ) -> None:
        """Write ``predictions_<split>.npz``; names are numpy strings, nothing is pickled."""
        refuse_what_is_no_number(f"the answers for the {split} cells", probabilities, embeddings)
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
                np.savez(file, **arrays)  # type: ignore[arg-type]  # its allow_pickle is a bool

        write_atomically(self.partial / f"predictions_{split}.npz", write)

    def write_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Write ``model.safetensors``."""
        if not hasattr(self.config.model, "fit"):  # a baseline's may say that a class cannot be
            refuse_what_is_no_number("the weights", *weights.values())
        contiguous = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        write_atomically(
            self.partial / "model.safetensors", lambda aside: save_file(contiguous, aside)
        )

    def finish(self, metrics: dict) -> None:
        """Write ``metrics.json`` and checksums, drop the checkpoint, give the folder its name."""
        write_text(self.partial / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        for path in self.partial.rglob("*"):
            flush_to_disk(path)
        self.checkpoint.unlink(missing_ok=True)
        with writing(self.partial / CHECKSUMS):
            write_checksums(self.partial)
            flush_to_disk(self.partial / CHECKSUMS)
        os.replace(self.partial, self.final)
        flush_to_disk(self.final.parent)

    def _check_whole(self) -> None:
        try:
            checksums = read_checksums(self.final)
            changed = sorted(changed_files(self.final, checksums, {*checksums, *ALWAYS_THERE}))
        except FileNotFoundError:
            raise RunFolderError(
                f"{self.final}: has no {CHECKSUMS}: an earlier version of this code wrote it, or "
                f"it is no run; {ADVICE}"
            ) from None
        except ValueError as error:
            raise RunFolderError(
                f"{self.final}/{CHECKSUMS}: cannot be read ({error}); {ADVICE}"
            ) from None
        if changed:
            raise RunFolderError(
                f"{self.final}: was finished, but {', '.join(changed[:4])} "
                f"{'is' if len(changed) == 1 else 'are'} missing or changed since; {ADVICE}"
            )

    def _check_same(self, folder: Path, what: str) -> None:
        try:
            found = TrainConfig.load(folder / "config.yaml")
        except ConfigError as error:
            reason = " ".join(str(error).split())[:200]
            raise RunFolderError(
                f"{folder}: {what} whose config this version of the code cannot read "
                f"({reason}); {ADVICE}"
            ) from None
        before, now = (
            c.model_dump(mode="json", exclude=NOT_COMPARED) for c in (found, self.config)
        )
        differing = sorted(key for key in now if now[key] != before[key])
        differing += _differing_data(folder / "data", Path(self.config.data))
        if differing:
            raise RunFolderError(
                f"{folder}: {what} of another config or of other cells (differs in: "
                f"{', '.join(differing)}); choose another name=..., or move that folder away"
            )


def _differing_data(copied: Path, data: Path) -> list[str]:
    """Compare cells, and what was learned from them, by what they are, wherever they lie.

    Gone, they cannot differ.
    """
    cells, meant = _meta(copied), _meta(data)
    if not meant:
        return []
    if any(cells.get(key) != meant.get(key) for key in SAME_CELLS):
        return ["data"]
    files = {file.relative_to(data) for name in LEARNED for file in _files(data / name)}
    return [
        f"data/{file.as_posix()}"
        for file in sorted(files)
        if changed_files(copied, {str(file): file_checksum(data / file)})
    ]


def _files(path: Path) -> list[Path]:
    inside = path.rglob("*") if path.is_dir() else [path]
    return [file for file in inside if file.is_file()]


def _meta(folder: Path) -> dict:
    try:
        found = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
