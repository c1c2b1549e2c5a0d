"""Which runs there are, which of them stand in one table, and which are seeds of one model."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.calibration import scaled
from training.runs import ALWAYS_THERE, Run, RunFolderError, SplitPredictions


class ComparisonError(ValueError):
    """Runs cannot stand in one table, or there are none."""


@dataclass(frozen=True)
class ReadRun:
    """A finished run, or those of all folds together, as far as it is compared.

    Attributes
    ----------
    name, class_names
        Of the run.
    runs
        The run; of folds the run of each, in their order.
    val, test
        Predictions in the order of the cells' names: ``probabilities``, and the same ``scaled`` to
        the temperature of the run's val cells. ``test`` are those that it is compared by: in a
        comparison on val they are of val.
    temperatures
        Of each run.
    """

    name: str
    class_names: list[str]
    runs: list[Run]
    val: SplitPredictions
    test: SplitPredictions
    temperatures: list[float]

    @property
    def run(self) -> Run:
        """The run; of folds the first one's."""
        return self.runs[0]

    @property
    def cells(self) -> tuple[str, ...]:
        """Hashes of the cells, and of how they are split in each fold."""
        splits = (run.metrics["split_sha256"] for run in self.runs)
        return self.run.metrics["data_sha256"], *splits

    @property
    def folds(self) -> NDArray[np.str_] | None:
        """The fold that each cell is judged in, ``(n,)``; None without folds."""
        return self.test.arrays.get("fold")


def find_runs(folder: str | Path) -> tuple[list[ReadRun], list[str]]:
    """Read every run of a folder, or of those that match a pattern (``runs/results/*``).

    Returns
    -------
    The runs by name, and a sentence for each that is not finished, predicts no classes, is of
    another version of this code, or is not what was written.

    Raises
    ------
    ComparisonError
        If no run can be read.
    """
    named = [folder] if Path(folder).is_dir() else sorted(glob(str(folder)))
    folders = [path for path in map(Path, named) if path.is_dir()]
    if not folders:
        raise ComparisonError(f"{folder}: no such folder; train with 02_train_model.py first")
    runs, left_out = [], []
    for path in sorted(path for one in folders for path in one.iterdir() if path.is_dir()):
        if not any((path / name).is_file() for name in ALWAYS_THERE):
            continue  # figures, notebooks
        if path.name.startswith("."):
            if path.name.endswith(".partial"):
                left_out.append(f"{path}: not finished")
            continue
        try:
            run = Run(path)
            predictions = [run.predictions(split) for split in run.splits]
        except RunFolderError as error:
            left_out.append(str(error))
            continue
        if all(split.has_classes for split in predictions):
            runs.append(_read(run, predictions))
        else:
            left_out.append(f"{path}: no classes predicted: not compared")
    if not runs:
        why = f" that can be read: {'; '.join(left_out)}" if left_out else ""
        raise ComparisonError(f"{folder}: holds no run{why}; train with 02_train_model.py first")
    return runs, left_out


def group_by_judged_cells(runs: list[ReadRun]) -> Iterator[tuple[str, str, list[ReadRun]]]:
    """Yield the runs of every table, before them its name and the split that judges them.

    Runs with test are compared on test; where some are without, all are compared on val too.
    """
    for name, group in group_by_cells(runs).items():
        tested = [read for read in group if read.run.config.test]
        if tested:
            yield name, "test", tested
        if len(tested) < len(group):
            yield f"{name}, on val", "val", [replace(read, test=read.val) for read in group]


def group_by_cells(runs: list[ReadRun]) -> dict[str, list[ReadRun]]:
    """Put runs of the same cells and split together, under the name of their data.

    Different tokenizers of the same cells stand together, runs with test first.

    Raises
    ------
    ComparisonError
        If data of one name hold other cells or another split than when another run was trained,
        or if predictions of the same cells are of other cells.
    """
    groups: dict[tuple[str, ...], list[ReadRun]] = defaultdict(list)
    cells_of_name: dict[str, tuple[str, ...]] = {}
    for read in sorted(runs, key=lambda read: not read.run.config.test):
        run, cells = read.run, read.cells
        name = run.meta["name"]
        if cells_of_name.setdefault(name, cells) != cells:
            other = groups[cells_of_name[name]][0].run
            what = "cells" if cells[0] != cells_of_name[name][0] else "split of the cells"
            raise ComparisonError(
                f"{other.path} and {run.path} were both trained on {name!r} but on another "
                f"{what}: their scores cannot be compared. Train one of them again, or move it to "
                "another folder"
            )
        groups[cells].append(read)
        _check_same_cells(groups[cells][0], read)
    by_name = {
        min((read.run.meta["name"] for read in group), key=len): group for group in groups.values()
    }
    return dict(sorted(by_name.items()))


def group_by_model(runs: list[ReadRun]) -> tuple[dict[str, list[ReadRun]], list[str]]:
    """Put runs together that differ in their seed only, in the order of their seeds.

    A seed counts once: of several runs with one config and one seed, copies of a folder for
    instance, the first by name stands for all.

    Returns
    -------
    Name of the model -> its runs, and a sentence for each run that was left out.
    """
    groups: dict[tuple[str, ...], dict[int, ReadRun]] = defaultdict(dict)
    left_out = []
    for read in runs:
        seeds = groups[tuple(run.model_key() for run in read.runs)]
        first = seeds.setdefault(read.run.config.seed, read)
        if first is not read:
            same = np.array_equal(first.test.probabilities, read.test.probabilities)
            what = "a copy of" if same else "has the config and the seed of"
            left_out.append(f"{read.run.path}: {what} {first.run.path}, and a seed counts once")
    ordered = [[seeds[seed] for seed in sorted(seeds)] for seeds in groups.values()]
    names = _names([[read.name for read in group] for group in ordered])
    return dict(zip(names, ordered, strict=True)), left_out


def _read(run: Run, predictions: list[SplitPredictions]) -> ReadRun:
    temperature = run.metrics["temperature"]
    by_name = [_by_name(split, temperature) for split in predictions]
    return ReadRun(run.name, run.class_names, [run], by_name[0], by_name[-1], [temperature])


def _by_name(cells: SplitPredictions, temperature: float) -> SplitPredictions:
    order = np.argsort(cells.cell_names)
    probabilities = cells.probabilities[order]
    return SplitPredictions(
        cell_names=cells.cell_names[order],
        batches=cells.batches[order],
        labels=cells.labels[order],
        # All others are large, and read again where they are drawn.
        arrays={"probabilities": probabilities, "scaled": scaled(probabilities, temperature)},
    )


def _check_same_cells(first: ReadRun, read: ReadRun) -> None:
    pairs = [(read.val, first.val)]
    if read.run.splits == first.run.splits:
        pairs.append((read.test, first.test))
    same = read.class_names == first.class_names and all(
        np.array_equal(ours.cell_names, theirs.cell_names)
        and np.array_equal(ours.labels, theirs.labels)
        for ours, theirs in pairs
    )
    if not same:
        raise ComparisonError(
            f"{read.run.path} has other cells or classes than {first.run.path}, though their "
            "hashes agree: one of them was edited. Move that one to another folder"
        )


def _names(groups: list[list[str]]) -> list[str]:
    """Name each model by what its runs' names share, without what all models' names end in."""
    names = [_shared_name(group) for group in groups]
    shared = os.path.commonprefix([name[::-1] for name in names])[::-1]
    ending = shared[shared.find("_") :] if "_" in shared else ""
    if len(names) > 1 and ending:  # such as the dataset's name
        names = [name.removesuffix(ending) or name for name in names]
    own = [
        group[0] if names.count(name) > 1 else name
        for name, group in zip(names, groups, strict=True)
    ]
    return own if len(set(own)) == len(own) else [group[0] for group in groups]


def _shared_name(names: list[str]) -> str:
    """Return whole words that all names begin with, or else end with, or else all names."""
    shared = os.path.commonprefix(names)
    rests = [name.removeprefix(shared) for name in names]
    if any(rest[:1].isalpha() for rest in rests):  # cut within a word
        shared = shared[: len(shared) - len(re.split(r"[-_.]", shared)[-1])]
    elif any(rest[:1].isdigit() for rest in rests):  # or within a number
        shared = shared.rstrip("0123456789")
    shared = re.sub(r"[-_.]+((seed|s)\d*)?$", "", shared)
    if shared in ("", "seed", "s"):
        ending = os.path.commonprefix([name[::-1] for name in names])[::-1]
        shared = re.sub(r"^[^-_.]*[-_.]+", "", ending) if re.search(r"[-_.]", ending) else ""
    if not shared:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        shared = ", ".join(names[:2]) + more
    return shared
