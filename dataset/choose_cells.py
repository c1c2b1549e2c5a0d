"""Choose the cells to encode and their splits; keep the reasons why others are dropped.

A cell is a handful of small numbers here, not a handful of Python strings: a million cells are
then a few megabytes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dataset.config import PreprocessConfig
from dataset.cut_list import cut_list
from dataset.doublets import drop_doublets, score_doublets
from dataset.encode_error import EncodeError
from dataset.nearest_names import shortened
from dataset.previous.history import order_time_points, time_names
from dataset.quality_control import Measures, drop_cells, drop_rare_types, drop_unlabelled
from dataset.reading.obs_columns import ObsColumns
from dataset.reasons import Reasons
from dataset.split import fold_names, split_cells
from dataset.store.count_store import CountStore
from dataset.store.layout import SPLITS

FEWEST_DISTINCT = 20  # below, every cell may have a type of its own: too few to call it a mistake


@dataclass(frozen=True)
class ChosenCells:
    """The cells that stay, in file order, and why the others do not.

    Categoricals hold a small number a cell; their categories are the names.
    """

    rows: NDArray[np.int64]  # (n,), number of the cell in the files
    split: pd.Categorical  # (n,)
    labels: pd.Categorical  # (n,), the cell type; no categories without labels
    batch: pd.Categorical  # (n,)
    time: pd.Categorical | None  # (n,)
    time_points: list[str]  # in order
    class_names: list[str]  # those with enough train cells, sorted
    condition_names: dict[str, list[str]]  # by column: values that train cells have, sorted
    conditions: dict[str, NDArray[np.int64]]  # (n,) each, by column; see condition_codes
    positions: NDArray[np.float32] | None  # (n, 2)
    reasons: Reasons  # of all cells of the files
    doublet_score: NDArray[np.float64] | None  # (n,)
    messages: list[str]
    folds: list[str]  # names of all folds, in order; none of a holdout

    def of_split(self, name: str) -> NDArray[np.int64]:
        """Return the index, among the cells that stay, of a split's cells."""
        return np.flatnonzero(self.split.codes == SPLITS.index(name))


@dataclass(frozen=True)
class Annotations:
    """The annotations of all cells in obs; small numbers, as in ``ChosenCells``."""

    labels: pd.Categorical | None  # (n_cells,)
    batch: pd.Categorical | None  # (n_cells,)
    groups: pd.Categorical | None  # (n_cells,), of split.key
    times: pd.Series | None  # (n_cells,)
    conditions: dict[str, pd.Categorical]  # (n_cells,) each, by column
    positions: NDArray[np.float32] | None  # (n_cells, 2), NaN where there is none

    @classmethod
    def read(cls, cells: ObsColumns, config: PreprocessConfig) -> "Annotations":
        """Read the columns that the config names, before any count is looked at.

        Raises
        ------
        CellFileError
            If there is no such column.
        EncodeError
            If the labels name cells, not types.
        """
        labels = None if config.label_key is None else _read_labels(cells, config.label_key)
        column: dict[str | None, pd.Categorical] = {
            key: categories(cells.column(key))
            for key in dict.fromkeys((config.batch_key, config.split.key, *config.condition_keys))
            if key is not None
        }
        times = None
        if config.time_key is not None:
            times = cells.column(config.time_key, needs_order=True)
        return cls(
            labels=labels,
            batch=column.get(config.batch_key or config.split.key),
            groups=column.get(config.split.key),
            times=times,
            conditions={key: column[key] for key in config.condition_keys},
            positions=read_positions(cells, config.position_keys),
        )


def _read_labels(cells: ObsColumns, key: str) -> pd.Categorical:
    labels = categories(cells.column(key), strip=True)
    n_distinct, n_labelled = len(labels.categories), int((labels.codes >= 0).sum())
    if n_distinct > max(FEWEST_DISTINCT, n_labelled / 2):
        raise EncodeError(
            f"label_key {key!r} has {n_distinct:,} distinct values for {n_labelled:,} cells: "
            f"{cut_list(labels.categories, most=3)}; expected cell types, each of many cells: "
            "name another obs column"
        )
    return labels


def choose_cells(
    store: CountStore, obs: Annotations, measures: Measures, config: PreprocessConfig
) -> ChosenCells:
    """Apply quality control, drop what cannot be learned from, and split the rest.

    Nothing here looks at a count: only at obs and at the measures of each cell.

    Which train cells there are, and of which types, does not follow from the labels of val and
    test cells where whole groups are held out: groups are chosen by the number of their cells,
    a type must have ``min_cells_per_class`` of them in train, doublets are scored within a split.
    Split by cells, every label counts: the split is stratified by it.

    Parameters
    ----------
    store
        Of all cells; their counts are looked at only to score doublets.
    obs, measures
        Of all cells.
    config
        Keys, thresholds, split.

    Raises
    ------
    EncodeError
        If too many cells would be dropped, or a split would have none.
    """
    quality, fewest = config.quality_control, config.min_cells_per_class
    messages: list[str] = []
    reasons, fit = _drop_unfit(obs, measures, config)
    split = _split(obs, fit, reasons.kept, config)
    scores = None
    if quality.scrublet:
        scores, notes = score_doublets(store, fit, split, obs.batch, seed=config.split.seed)
        messages += notes
        drop_doublets(reasons, scores, quality)
    is_train = split == SPLITS.index("train")
    class_names: list[str] = []
    if obs.labels is not None:
        n_of_type = _count(obs.labels, reasons.kept & is_train)
        drop_rare_types(reasons, obs.labels, n_of_type, fewest, "train cells")
        class_names = sorted(obs.labels.categories[n_of_type >= fewest])
    reasons.check_share(quality.max_dropped_fraction)

    rows = np.flatnonzero(reasons.kept)
    _check_splits(split[rows], class_names, config, reasons)
    if n_dropped := store.n_cells - len(rows):
        messages.append(f"{n_dropped:,} of {store.n_cells:,} cells dropped: {reasons}")
    batch = obs.batch
    if batch is None:
        batch = pd.Categorical.from_codes(
            np.zeros(store.n_cells, dtype=np.int8), pd.Index(["all"], dtype=object)
        )
    labels = obs.labels
    if labels is None:
        labels = pd.Categorical.from_codes(
            np.full(store.n_cells, -1, dtype=np.int8), pd.Index([], dtype=object)
        )
    names = {
        key: _names(values, reasons.kept & is_train) for key, values in obs.conditions.items()
    }
    return ChosenCells(
        rows=rows,
        split=pd.Categorical.from_codes(split[rows], pd.Index(SPLITS, dtype=object)),
        labels=labels[rows].set_categories(class_names),
        batch=batch[rows],
        time=None if obs.times is None else _time_points(obs.times[rows]),
        # Of all cells, or who is dropped for a label would change what the others' pasts are.
        time_points=[] if obs.times is None else order_time_points(obs.times),
        class_names=class_names,
        condition_names=names,
        conditions={
            key: condition_codes(values, names[key])[rows]
            for key, values in obs.conditions.items()
        },
        positions=None if obs.positions is None else obs.positions[rows],
        reasons=reasons,
        doublet_score=None if scores is None else scores[rows],
        messages=messages,
        folds=_fold_names(obs, split >= 0, config) if config.split.in_folds else [],
    )


def find_folds(obs: Annotations, measures: Measures, config: PreprocessConfig) -> list[str]:
    """Return the names of all folds of these cells, in order.

    Raises
    ------
    EncodeError
        If the groups are fewer than three.
    """
    reasons, _ = _drop_unfit(obs, measures, config)
    return _fold_names(obs, reasons.kept, config)


def _fold_names(obs: Annotations, cells: NDArray[np.bool_], config: PreprocessConfig) -> list[str]:
    return fold_names(None if obs.groups is None else obs.groups[cells], config.split)


def _drop_unfit(
    obs: Annotations, measures: Measures, config: PreprocessConfig
) -> tuple[Reasons, NDArray[np.bool_]]:
    """Drop what is dropped before the split; say too who would stay whatever their labels."""
    reasons = Reasons(len(measures.total_counts))
    drop_cells(reasons, measures, config.quality_control)
    for key, missing in _missing(obs, config).items():
        reasons.drop(missing, f"no {key}", f"{key!r} without a value", f"fill obs {key!r}")
    fit = reasons.kept
    if obs.labels is not None and config.label_key is not None:
        drop_unlabelled(reasons, obs.labels, config.label_key, config.ignore_labels)
        if obs.groups is None:  # every split needs cells of a type
            n_of_type, fewest = _count(obs.labels, reasons.kept), config.min_cells_per_class
            drop_rare_types(reasons, obs.labels, n_of_type, fewest, "cells")
    reasons.check_share(config.quality_control.max_dropped_fraction)
    if not reasons.kept.any():
        raise EncodeError(f"{config.name}: no cell is left. Dropped: {reasons}")
    return reasons, fit


def _missing(obs: Annotations, config: PreprocessConfig) -> dict[str, NDArray[np.bool_]]:
    """Say of each column that has to be known, by its name, where it is not."""
    missing = {}
    if obs.times is not None and config.time_key is not None:
        missing[config.time_key] = obs.times.isna().to_numpy()
    for key, values in ((config.batch_key, obs.batch), (config.split.key, obs.groups)):
        if key is not None and values is not None:
            missing[key] = values.codes < 0
    if obs.positions is not None:
        for key, of_axis in zip(config.position_keys, obs.positions.T, strict=True):
            missing[key] = ~np.isfinite(of_axis)
    return missing


def _count(labels: pd.Categorical, which: NDArray[np.bool_]) -> NDArray[np.int64]:
    codes = labels.codes[which & (labels.codes >= 0)]
    return np.bincount(codes, minlength=len(labels.categories))


def _names(values: pd.Categorical, which: NDArray[np.bool_]) -> list[str]:
    """Return the names that some of the cells have."""
    return list(values.categories[_count(values, which) > 0])


def _split(
    obs: Annotations,
    fit: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    config: PreprocessConfig,
) -> NDArray[np.int8]:
    """Return each cell's index in ``SPLITS``, -1 where it is in none: ``(n_cells,)``.

    Groups are split by their cells that are ``fit``, labelled or not; a group without any
    labelled cell has nothing to give.
    """
    chosen = labelled
    if obs.groups is not None:
        has_labels = _count(obs.groups, labelled) > 0
        chosen = fit & has_labels[obs.groups.codes]
    rows = np.flatnonzero(chosen)
    groups = None if obs.groups is None else obs.groups[rows]
    split = np.full(len(fit), -1, dtype=np.int8)
    labels = len(rows) if obs.labels is None else obs.labels[rows]
    split[rows] = split_cells(labels, groups, config.split).codes
    return split


def _check_splits(
    split: NDArray[np.int8], class_names: list[str], config: PreprocessConfig, reasons: Reasons
) -> None:
    """Raise if there is nothing to train on, choose by, or judge by."""
    fold = config.split.fold
    named = config.name if fold is None else f"{config.name}, fold {fold}"
    for code, name in enumerate(SPLITS):
        if not (split == code).any():
            raise EncodeError(
                f"{named}: {name} has no cells; change the split in the config. Dropped: {reasons}"
            )
    if config.label_key is not None and len(class_names) < 2:
        raise EncodeError(
            f"{named}: one cell type only ({class_names[0]!r}) in train; expected two or "
            f"more: name another label_key, or another split. Dropped: {reasons}"
        )


def categories(values: pd.Series, *, strip: bool = False) -> pd.Categorical:
    """Return values as text categories, a small number a cell; missing ones stay missing."""
    codes, distinct = pd.factorize(values)
    texts = [str(value).strip() if strip else str(value) for value in distinct]
    names = sorted(set(texts))
    code_of = {name: code for code, name in enumerate(names)}
    new_codes = [*(code_of[text] for text in texts), -1]  # the last: code -1
    recoded = np.array(new_codes, dtype=np.min_scalar_type(-len(names) - 1))
    return pd.Categorical.from_codes(recoded[codes], pd.Index(names, dtype=object))


def condition_codes(values: pd.Categorical, names: list[str]) -> NDArray[np.int64]:
    """Return the code of each value: its index in ``names``.

    A value that is not among them is unknown, and has a code of its own, from -2 downward: cells
    that share it can still be told to be of one sample. A missing one is -1.
    """
    code_of = {name: code for code, name in enumerate(names)}
    codes = [code_of.get(name, -2 - i) for i, name in enumerate(values.categories)]
    return np.array([*codes, -1], dtype=np.int64)[values.codes]


def read_positions(cells: ObsColumns, keys: list[str]) -> NDArray[np.float32] | None:
    """Read the obs columns of the cells' coordinates, ``(n_cells, 2)``; None where none are named.

    Raises
    ------
    CellFileError
        If there is no such column.
    EncodeError
        If a column does not hold numbers.
    """
    axes = []
    for key in keys:
        column = cells.column(key)
        if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            found = shortened(list(map(str, column.unique()[:3])))
            raise EncodeError(
                f"position_keys: obs {key!r} holds {column.dtype}, such as {found}; expected "
                "numbers: name another column, or write it anew as numbers"
            )
        axes.append(column.to_numpy(dtype=np.float32, na_value=np.nan))
    return np.stack(axes, axis=1) if axes else None


def _time_points(times: pd.Series) -> pd.Categorical:
    named = categories(times)
    return categories(pd.Series(time_names(named.categories.to_numpy())[named.codes]))
