"""``RunWriter``: ``runs/.<name>.partial`` while a run lasts, ``runs/<name>`` once it is whole.

What it writes, ``training/runs.py`` reads.
"""

import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from configs.base import ConfigError
from dataset.provenance import git_commit
from dataset.store.atomic import (
    flush_folder,
    flush_to_disk,
    locked,
    write_atomically,
    write_text,
    writing,
)
from dataset.store.checksums import CHECKSUMS, write_checksums
from dataset.store.data_facts import learned_files
from dataset.store.encoded_folder import EncodedFolder, EncodedSplit
from models.objectives.base import Bank
from training.alarms import check_finite
from training.checkpoint import ADVICE, WEIGHTS
from training.config import TrainConfig
from training.runs import (
    BANK,
    CELLS,
    CONFIG,
    CURVES,
    DATA,
    METRICS,
    RUN_VERSION,
    Run,
    RunFolderError,
    other_version,
)
from training.same_run import differences, identity, read_meta, with_recorded_checksums

CHECKPOINT = "checkpoint.safetensors"
# All that is resumed. Killed, a run may have left partial files under names of any kind.
RESUMED = (CHECKPOINT, CONFIG, DATA, CURVES)


class RunWriter:
    """Where a run writes, and whether it has been there before.

    Attributes
    ----------
    final
        ``runs/<name>``: exists only with everything in it.
    partial
        ``runs/.<name>.partial``: the checkpoint that an interrupted run resumes from.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.final = Path(config.runs_dir) / config.name
        self.partial = self.final.with_name(f".{config.name}.partial")

    @property
    def checkpoint(self) -> Path:
        """The last epoch's checkpoint; not there before the first epoch has ended."""
        return self.partial / CHECKPOINT

    @property
    def curves(self) -> Path:
        """The ``metrics.jsonl``."""
        return self.partial / CURVES

    def is_finished(self) -> bool:
        """Tell whether this very run is done.

        Raises
        ------
        RunFolderError
            If another run, by its config or its data, was finished or begun under this name, or
            if what was finished is not whole any more.
        """
        if self.final.exists():
            done = Run(self.final)
            self._check_same(self.final, done.config, "a finished")
            return True
        if self.checkpoint.exists():
            try:
                begun = TrainConfig.load(self.partial / CONFIG)
            except ConfigError as error:
                raise other_version(self.partial, error) from None
            self._check_same(self.partial, begun, "an interrupted")
        return False

    @contextmanager
    def open(self, data: EncodedFolder, *, writes: bool) -> Iterator[None]:
        """Resume in the folder that has a checkpoint, or start a new one; keep none without."""
        if not writes:
            yield
            return
        self.partial.mkdir(parents=True, exist_ok=True)
        busy = f"{self.final}: another process trains it now: wait for it, or choose another name"
        with locked(self.partial, RunFolderError(busy)):
            try:
                self._clear(keep=RESUMED if self.checkpoint.exists() else ())
                self._copy_learned(data)
                write_text(self.partial / CONFIG, self.config.to_yaml())
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
        for path in self.partial.glob(f"{DATA}/.*.partial-*"):
            path.unlink()

    def _copy_learned(self, data: EncodedFolder) -> None:
        """Copy what new cells are read with, so that the run is complete without its data.

        In a run that is resumed it is there, and was compared (``_check_same``).
        """
        for name in ("meta.json", *learned_files(data.path)):
            source, copy = data.path / name, self.partial / DATA / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if name == "meta.json" or not copy.exists():
                write_atomically(copy, partial(shutil.copyfile, source))
        data.check_unchanged()  # or the copies are of another folder

    def data_were_replaced(self, data: EncodedFolder) -> bool:
        """Tell whether the folder of the cells is another one than when it was opened."""
        return read_meta(data.path) != data.meta

    def write_predictions(
        self, split: str, cells: EncodedSplit, arrays: Mapping[str, NDArray]
    ) -> None:
        """Write ``predictions_<split>.npz``; names are numpy strings, nothing is pickled.

        Parameters
        ----------
        split, cells
            Name of the split, and its cells.
        arrays
            Predictions by name, one row a cell: ``probabilities``, ``embeddings`` and others.
        """
        if taken := sorted(set(arrays) & set(CELLS)):
            raise ValueError(f"{', '.join(taken)}: is of every run; choose another name")
        check_finite(f"the predictions for the {split} cells", *arrays.values())
        as_stored = {
            name: array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in arrays.items()
        }
        self._write_cells(f"predictions_{split}.npz", cells, slice(None), as_stored)

    def write_bank(self, train: EncodedSplit, bank: Bank) -> None:
        """Write ``bank.npz``: float16 embeddings of train cells, and which cells they are."""
        embeddings = bank.embeddings.cpu().numpy()
        check_finite("the embeddings of the train cells", embeddings)
        rows = bank.cell_index.cpu().numpy()
        self._write_cells(BANK, train, rows, {"embeddings": embeddings})

    def _write_cells(
        self,
        name: str,
        cells: EncodedSplit,
        rows: slice | NDArray[np.int64],
        arrays: Mapping[str, NDArray],
    ) -> None:
        stored: dict[str, NDArray] = {
            "cell_names": np.asarray(cells.cell_names[rows], dtype=np.str_),
            "batches": np.asarray(cells.batches[rows], dtype=np.str_),
            "labels": np.asarray(cells.labels[rows], dtype=np.int64),
            **arrays,
        }

        def write(unfinished: Path) -> None:
            with unfinished.open("wb") as file:  # given a name, numpy would append .npz to it
                np.savez(file, **stored)  # type: ignore[arg-type]  # its allow_pickle is a bool

        write_atomically(self.partial / name, write)

    def write_weights(self, weights: Mapping[str, NDArray]) -> None:
        """Write ``model.safetensors``."""
        if not self.config.is_baseline:  # a baseline has -inf for a class that cannot be
            check_finite("the weights", *weights.values())
        contiguous = {name: np.ascontiguousarray(array) for name, array in weights.items()}
        write_atomically(
            self.partial / WEIGHTS, lambda unfinished: save_file(contiguous, unfinished)
        )

    def finish(self, metrics: dict) -> None:
        """Write ``metrics.json`` and checksums, drop the checkpoint, give the folder its name."""
        metrics = {"version": RUN_VERSION} | metrics
        write_text(self.partial / METRICS, json.dumps(metrics, indent=2) + "\n")
        flush_folder(self.partial)
        self.checkpoint.unlink(missing_ok=True)
        with writing(self.partial / CHECKSUMS):
            write_checksums(self.partial)
            flush_to_disk(self.partial / CHECKSUMS)
        os.replace(self.partial, self.final)
        flush_to_disk(self.final.parent)

    def _check_same(self, folder: Path, found: TrainConfig, state: str) -> None:
        """Raise if a folder's run is another one; data and weights that are gone cannot differ."""
        self.config = with_recorded_checksums(self.config, found)
        data = Path(self.config.data)
        if not read_meta(data):
            data = folder / DATA
        differing = differences(identity(found, folder / DATA), identity(self.config, data))
        if differing:
            raise RunFolderError(
                f"{folder}: holds {state} run of another config or of other cells (differs in: "
                f"{', '.join(differing)}); {ADVICE}"
            )


def environment(device: torch.device, packages: Iterable[str] = ()) -> dict:
    """Return the provenance of a run: commit, device, versions, peak memory of this process.

    Versions are of the packages that every run uses, and of these.
    """
    packages = ("numpy", "scikit-learn", "torch", *packages)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1),
        "git_commit": git_commit(),
        "device": str(device),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
    }
