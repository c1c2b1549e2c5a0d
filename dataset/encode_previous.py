"""The second segment of a cell, its profile at the time before, from a layer or computed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset.choose_cells import ChosenCells
from dataset.config import PreprocessConfig
from dataset.encode_error import EncodeError
from dataset.previous.config import PreviousConfig
from dataset.previous.history import fit_history, shuffled_within
from dataset.previous.profiles import PreviousProfiles
from dataset.quality_control import measure_cells
from dataset.store.count_store import CountStore
from dataset.store.expression import Expression
from dataset.workers import Steps


def previous_profiles(
    folder: Path,
    settings: PreviousConfig,
    config: PreprocessConfig,
    layer: CountStore | None,
    chosen: ChosenCells,
    columns: NDArray[np.int64],
    n_genes: int,
    steps: Steps,
) -> tuple[PreviousProfiles, list[str]]:
    """Take the previous profiles from a layer, or fit how to compute them.

    Parameters
    ----------
    folder
        The encoded folder, with its counts.
    settings, config
        Of the previous profiles, and of the data set.
    layer
        The counts of the layer that has them, of all cells; None: they are computed.
    chosen
        The cells that stay.
    columns, n_genes
        Column in the vocabulary of every gene (-1: none), and how many there are.

    Returns
    -------
    What gives any of the cells that stay its previous profile, and messages.
    """
    messages: list[str] = []
    index = np.arange(len(chosen.rows))
    if settings.shuffle:
        groups = np.asarray(chosen.split, dtype=object)
        if chosen.time is not None:
            groups = groups + "\t" + np.asarray(chosen.time, dtype=object)
        index = shuffled_within(groups.astype(str), settings.seed)
        messages.append("history: shuffled between the cells of a split and time point (control)")
    work = folder / "work"
    np.save(work / "index.npy", index)

    if layer is not None:
        layer.link(work / "counts")
        total_counts = measure_cells(layer, steps=steps).total_counts
        Expression.write(work, chosen.rows, columns, total_counts[chosen.rows])
        return PreviousProfiles(work, work, layer.counts.counts.dtype, n_genes), messages

    if chosen.time is None:
        raise EncodeError(
            "tokenizer.previous: the time point before is needed: name a layer that holds the "
            "previous profile (previous.layer), or the obs column of the time (time_key)"
        )
    time = np.asarray(chosen.time).astype(str)
    in_train = np.unique(time[chosen.of_split("train")])
    if len(in_train) < 2:
        raise EncodeError(
            f"time_key {config.time_key!r}: one time point only ({in_train[0]}) in train; a "
            "history needs two"
        )
    messages.append(f"history: time points in order: {', '.join(chosen.time_points)}")
    np.save(work / "time.npy", time)
    history, notes = fit_history(
        Expression.open(folder), time, chosen.of_split("train"), chosen.time_points, settings,
        n_genes,
    )  # fmt: skip
    messages += notes
    history.save(folder / "history")
    dtype = np.dtype(np.uint16 if history.largest_count() < 2**16 else np.int32)
    return PreviousProfiles(folder, work, dtype, n_genes, folder / "history"), messages
