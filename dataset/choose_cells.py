"""Which cells are encoded, and in which split; who is dropped, and why."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from configs.schema import PreprocessConfig
from dataset.encoded_folder import SPLITS
from dataset.history import order_time_points, time_names
from dataset.quality_control import score_doublets, select_cells, select_labels
from dataset.read import Cells
from dataset.split import split_cells


@dataclass(frozen=True)
class ChosenCells:
    """The cells that stay, in file order, and those that do not."""

    rows: NDArray[np.int64]  # (n,), number of the cell in the file
    names: NDArray[np.object_]  # (n,)
    split: NDArray[np.str_]  # (n,)
    labels: NDArray[np.object_]  # (n,), the cell type
    batch: NDArray[np.object_]  # (n,)
    time: NDArray[np.str_] | None  # (n,)
    time_points: list[str]
    class_names: list[str]  # of train cells, sorted
    dropped: pd.Series  # cell name -> reason
    doublet_score: pd.Series | None
    messages: list[str]

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Return the numbers, in the file, of a split's cells."""
        return self.rows[self.split == split]


def choose_cells(cells: Cells, metrics: pd.DataFrame, config: PreprocessConfig) -> ChosenCells:
    """Apply quality control, drop what cannot be learned from, and split the rest.

    Nothing here looks at a count: only at obs and at the measures of each cell.

    Parameters
    ----------
    cells
        The cells; their counts are read again only to score doublets.
    metrics
        Of ``measure_cells``.
    config
        Keys, thresholds, split.
    """
    messages: list[str] = []
    batch_key = config.batch_key or config.split.key
    batch = cells.column(batch_key) if batch_key else None
    obs = pd.DataFrame({"label": cells.column(config.label_key)}, index=cells.obs.index)
    scores = None
    if config.quality_control.scrublet:
        scores, notes = score_doublets(cells, metrics, batch, seed=config.split.seed)
        metrics = metrics.assign(doublet_score=scores)
        messages += notes
    reasons = select_cells(metrics, config.quality_control)[1].to_numpy(dtype=object)

    def drop(why: NDArray[np.object_]) -> None:
        stays = reasons == ""
        reasons[stays] = why[stays]

    time = cells.column(config.time_key) if config.time_key else None
    if time is not None:
        drop(np.where(time.isna(), f"no {config.time_key}", "").astype(object))
    for key in dict.fromkeys((config.batch_key, config.split.key)):
        if key:
            drop(np.where(cells.column(key).isna(), f"no {key}", "").astype(object))
    stays = reasons == ""
    _, why = select_labels(
        obs["label"][stays], ignore=config.ignore_labels, min_cells=config.min_cells_per_class
    )
    reasons[stays] = why.to_numpy(dtype=object)
    stays = reasons == ""
    if not stays.any():
        raise ValueError(f"{config.name}: no cell is left. Dropped: {_tally(reasons)}")

    kept = pd.DataFrame(index=obs.index[stays])
    if config.split.key:
        kept[config.split.key] = _texts(cells.column(config.split.key)[stays])
    kept[config.label_key] = _texts(obs["label"][stays], strip=True)
    split = np.full(len(obs), "", dtype="U5")
    split[stays] = split_cells(kept, label_key=config.label_key, config=config.split)
    labels = np.full(len(obs), "", dtype=object)
    labels[stays] = kept[config.label_key].to_numpy(dtype=object)
    class_names = sorted(set(labels[split == "train"]))
    unseen = stays & ~np.isin(labels, class_names)
    reasons[unseen] = [f"type {label!r}: not in train" for label in labels[unseen]]
    stays = reasons == ""

    for name in SPLITS:
        if not (split[stays] == name).any():
            raise ValueError(
                f"{config.name}: {name} has no cells; change the split in the config. "
                f"Dropped: {_tally(reasons)}"
            )
    if len(class_names) < 2:
        raise ValueError(f"{config.name}: one cell type only ({class_names[0]!r}) in train")
    n_dropped = int((~stays).sum())
    if n_dropped:
        messages.append(f"{n_dropped:,} of {len(obs):,} cells dropped: {_tally(reasons)}")
    return ChosenCells(
        rows=np.flatnonzero(stays),
        names=obs.index.to_numpy(dtype=object)[stays],
        split=split[stays],
        labels=labels[stays],
        batch=(
            np.repeat(np.array(["all"], dtype=object), len(obs))
            if batch is None
            else _texts(batch)
        )[stays],
        time=None if time is None else time_names(time[stays]),
        time_points=[] if time is None else order_time_points(time[stays]),
        class_names=class_names,
        dropped=pd.Series(reasons, index=obs.index, name="reason")[~stays],
        doublet_score=scores,
        messages=messages,
    )


def _texts(values: pd.Series, *, strip: bool = False) -> NDArray[np.object_]:
    """Return values as text; equal ones share one string, for the memory of a million cells."""
    codes, distinct = pd.factorize(values)
    texts = [str(value).strip() if strip else str(value) for value in distinct]
    return np.array([*texts, "nan"], dtype=object)[codes]  # code -1: missing


def _tally(reasons: Iterable[str]) -> str:
    counts = pd.Series([reason for reason in reasons if reason]).value_counts()
    return "; ".join(f"{n:,}: {reason}" for reason, n in sorted(counts.items())) or "none"
