"""Which cells are encoded, and in which split; who is dropped, and why.

A cell is a handful of small numbers here, not a handful of Python strings: a million cells are
then a few megabytes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from configs.schema import PreprocessConfig
from dataset.encoded_layout import SPLITS
from dataset.history import order_time_points, time_names
from dataset.quality_control import Measures, Reasons, drop_cells, drop_labels, score_doublets
from dataset.read import Cells
from dataset.split import split_cells


@dataclass(frozen=True)
class ChosenCells:
    """The cells that stay, in file order, and why the others do not.

    Categoricals hold a small number a cell; their categories are the names.
    """

    rows: NDArray[np.integer]  # (n,), number of the cell in the files
    split: pd.Categorical  # (n,)
    labels: pd.Categorical  # (n,), the cell type
    batch: pd.Categorical  # (n,)
    time: pd.Categorical | None  # (n,)
    time_points: list[str]  # in order
    class_names: list[str]  # of train cells, sorted
    reasons: Reasons  # of all cells of the files
    doublet_score: NDArray[np.float64] | None  # (n,)
    messages: list[str]

    def of_split(self, name: str) -> NDArray[np.int64]:
        """Return the places, among the cells that stay, of a split's cells."""
        return np.flatnonzero(self.split.codes == SPLITS.index(name))


def choose_cells(cells: Cells, measures: Measures, config: PreprocessConfig) -> ChosenCells:
    """Apply quality control, drop what cannot be learned from, and split the rest.

    Nothing here looks at a count: only at obs and at the measures of each cell.

    Parameters
    ----------
    cells
        The cells; their counts are read again only to score doublets.
    measures
        Of all cells.
    config
        Keys, thresholds, split.
    """
    messages: list[str] = []
    n_cells = cells.n_cells
    batch_key = config.batch_key or config.split.key
    batch = None if batch_key is None else categories(cells.column(batch_key))
    labels = categories(cells.column(config.label_key), strip=True)
    scores = None
    if config.quality_control.scrublet:
        scores, notes = score_doublets(cells, measures.total_counts, batch, seed=config.split.seed)
        messages += notes
    reasons = Reasons(n_cells)
    drop_cells(reasons, measures, config.quality_control, scores)
    times = None if config.time_key is None else cells.column(config.time_key)
    if times is not None:
        reasons.drop(times.isna().to_numpy(), f"no {config.time_key}")
    for key in dict.fromkeys((config.batch_key, config.split.key)):
        if key:
            values = batch if key == batch_key and batch is not None else cells.column(key)
            reasons.drop(np.asarray(pd.isna(values)), f"no {key}")
    ignore, fewest = config.ignore_labels, config.min_cells_per_class
    drop_labels(reasons, labels, ignore=ignore, min_cells=fewest)
    rows = np.flatnonzero(reasons.kept)
    if not len(rows):
        raise ValueError(f"{config.name}: no cell is left. Dropped: {reasons}")

    groups = None if config.split.key is None else categories(cells.column(config.split.key))
    split = split_cells(labels[rows], None if groups is None else groups[rows], config.split)
    learned = np.bincount(labels.codes[rows[split == "train"]], minlength=len(labels.categories))
    class_names = sorted(labels.categories[learned > 0])
    seen = np.ones(len(rows), dtype=bool)
    for label in sorted(set(labels.categories) - set(class_names)):
        seen &= labels[rows] != label
        reasons.drop(labels == label, f"type {label!r}: not in train")
    rows, split = rows[seen], split[seen]

    for name in SPLITS:
        if not (split == name).any():
            raise ValueError(
                f"{config.name}: {name} has no cells; change the split in the config. "
                f"Dropped: {reasons}"
            )
    if len(class_names) < 2:
        raise ValueError(f"{config.name}: one cell type only ({class_names[0]!r}) in train")
    if n_dropped := n_cells - len(rows):
        messages.append(f"{n_dropped:,} of {n_cells:,} cells dropped: {reasons}")
    if batch is None:
        batch = pd.Categorical.from_codes(
            np.zeros(n_cells, dtype=np.int8), pd.Index(["all"], dtype=object)
        )
    return ChosenCells(
        rows=rows,
        split=split,
        labels=labels[rows].set_categories(class_names),
        batch=batch[rows],
        time=None if times is None else _time_points(times[rows]),
        time_points=[] if times is None else order_time_points(times[rows]),
        class_names=class_names,
        reasons=reasons,
        doublet_score=None if scores is None else scores[rows],
        messages=messages,
    )


def categories(values: pd.Series, *, strip: bool = False) -> pd.Categorical:
    """Return values as text categories, a small number a cell; missing ones stay missing."""
    codes, distinct = pd.factorize(values)
    texts = [str(value).strip() if strip else str(value) for value in distinct]
    names = sorted(set(texts))
    place = np.array([*map(names.index, texts), -1], dtype=np.min_scalar_type(-len(names) - 1))
    return pd.Categorical.from_codes(place[codes], pd.Index(names, dtype=object))


def _time_points(times: pd.Series) -> pd.Categorical:
    named = categories(times)
    return categories(pd.Series(time_names(named.categories.to_numpy())[named.codes]))
