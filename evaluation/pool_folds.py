"""Runs of all folds of one model and seed as one: together they predict every cell once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataset.cut_list import cut_list
from dataset.store.folds import fold_name
from evaluation.group_runs import ComparisonError, ReadRun
from training.runs import SplitPredictions


def pool_folds(runs: Sequence[ReadRun]) -> tuple[list[ReadRun], list[str]]:
    """Put the runs of all folds of a model and seed together; other runs stay as they are.

    Returns
    -------
    The runs, and a sentence for each model that has not all its folds, and for each run whose fold
    another run stands for.

    Raises
    ------
    ComparisonError
        If nothing is left, or a cell is held out in two folds.
    """
    pooled, left_out = [], []
    models: dict[str, tuple[list[str], dict[str, ReadRun]]] = {}
    for read in runs:
        fold = read.run.fold
        if fold is None:
            pooled.append(read)
            continue
        _, folds = models.setdefault(read.run.folds_key(), (fold.of, {}))
        first = folds.setdefault(fold.name, read)
        if first is not read:
            left_out.append(
                f"{read.run.path}: has the config, the seed and the fold of {first.run.path}, and "
                "a fold counts once"
            )
    for expected, folds in models.values():
        (held_out, first), *_ = folds.items()
        name = first.run.name.removesuffix(f"_{fold_name(held_out)}")
        if missing := [f"{name}_{fold_name(fold)}" for fold in expected if fold not in folds]:
            left_out.append(
                f"{name}: not compared, for {len(missing)} of its {len(expected)} folds are not "
                f"finished ({cut_list(missing)}); give the command that trains it again"
            )
        else:
            pooled.append(_pool(name, {fold: folds[fold] for fold in expected}))
    if not pooled:
        raise ComparisonError(f"no run can be compared: {'; '.join(left_out)}")
    return pooled, left_out


def _pool(name: str, folds: dict[str, ReadRun]) -> ReadRun:
    runs = list(folds.values())
    class_names = sorted({name for read in runs for name in read.class_names})
    val = _together(folds, [read.val for read in runs], class_names)
    test = val
    if runs[0].test is not runs[0].val:  # or they are runs without test
        test = _together(folds, [read.test for read in runs], class_names)
    return ReadRun(
        name,
        class_names,
        runs=[read.run for read in runs],
        val=val,
        test=test,
        temperatures=[temperature for read in runs for temperature in read.temperatures],
    )


def _together(
    folds: dict[str, ReadRun], cells: list[SplitPredictions], class_names: list[str]
) -> SplitPredictions:
    """Return the cells of all folds in the order of their names, with the ``fold`` of each.

    Classes that a fold has no train cells of are never predicted in it: their probability is 0.
    """
    index = {name: number for number, name in enumerate(class_names)}
    columns = [np.array([index[name] for name in read.class_names]) for read in folds.values()]
    names = np.concatenate([part.cell_names for part in cells])
    order = np.argsort(names)
    if (names[order][1:] == names[order][:-1]).any():
        paths = ", ".join(str(read.run.path) for read in folds.values())
        raise ComparisonError(f"{paths}: a cell is held out twice; move runs of other cells away")
    lengths = [len(part.labels) for part in cells]
    arrays: dict[str, NDArray] = {"fold": np.repeat(list(folds), lengths)[order]}
    for key in cells[0].arrays:
        placed = []
        for own, part in zip(columns, cells, strict=True):
            array = part.arrays[key]
            placed.append(np.zeros((len(array), len(class_names)), dtype=array.dtype))
            placed[-1][:, own] = array
        arrays[key] = np.concatenate(placed)[order]
    labels = [own[part.labels] for own, part in zip(columns, cells, strict=True)]
    return SplitPredictions(
        cell_names=names[order],
        batches=np.concatenate([part.batches for part in cells])[order],
        labels=np.concatenate(labels)[order],
        arrays=arrays,
    )
