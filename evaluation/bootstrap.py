"""Scores of several models on resamples of the same test cells: intervals and paired differences.

Every model is scored on the same resample, so the difference between two of them is paired: what
makes a resample easy makes it easy for both.

A mean over cells (accuracy, log-loss) is resampled over cells. A mean over cell types (macro-F1)
is resampled within each type: drawn from all cells, a type of one cell is missing from 37 % of the
resamples, whose mean is then over other types, and the interval is of two humps that are no chance
of any classifier. Such an interval holds for the types and their numbers as they are. It cannot
know the chance of a type of one cell, which is drawn every time: simulated, 95 % intervals of a
difference hold the truth in 93 to 95 % of cases when every type has ten cells or more, and in 88 %
when one has three cells and another has one. Donors are drawn whole, and a type that none of the
drawn ones has is left out of that resample, for every model alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

# (labels, what is known of the cells, *, weights) -> score
Metric = Callable[..., float]


def resample_weights(
    n_cells: int,
    n_resamples: int,
    rng: np.random.Generator,
    *,
    types: np.ndarray | None = None,
    donors: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yield how much each cell counts, ``(n_cells,)``, for each resample.

    Parameters
    ----------
    n_cells
        Cells to draw, with replacement.
    n_resamples
        How many draws.
    types
        Class of each cell: cells are drawn within each class, which keeps its weight. Of n cells
        n - 1 are drawn and count n / (n - 1), which makes the spread of small classes as large as
        it should be (Rao and Wu 1988); drawing n of n would make it too small.
    donors
        Donor of each cell: whole donors are drawn instead, with all their cells.
    """
    if types is not None:
        groups = [np.flatnonzero(types == name) for name in np.unique(types)]
        for _ in range(n_resamples):
            weights = np.ones(n_cells)
            for cells in groups:
                n = len(cells)
                if n > 1:
                    drawn = np.bincount(rng.integers(n, size=n - 1), minlength=n)
                    weights[cells] = drawn * (n / (n - 1))
            yield weights
        return
    if donors is None:
        for _ in range(n_resamples):
            yield np.bincount(rng.integers(n_cells, size=n_cells), minlength=n_cells)
        return
    names, donor_of_cell = np.unique(donors, return_inverse=True)
    for _ in range(n_resamples):
        drawn = rng.integers(len(names), size=len(names))
        yield np.bincount(drawn, minlength=len(names))[donor_of_cell]


def resampled_scores(
    labels: np.ndarray,
    models: Sequence[Sequence[np.ndarray]],
    metrics: Mapping[str, Metric],
    *,
    n_resamples: int,
    seed: int,
    types: np.ndarray | None = None,
    donors: np.ndarray | None = None,
) -> np.ndarray:
    """Score every model on every resample; a model's score is the mean over its seeds.

    Parameters
    ----------
    labels
        True classes of the test cells, ``(n_cells,)``.
    models
        For each model and each of its seeds what the metrics look at, ``(n_cells, k)``:
        probabilities, for instance. Equal cells are counted, not scored one by one, so where only
        the predicted class matters it is faster to give that alone, as 1 among 0.
    metrics
        Name to score.
    n_resamples, seed
        How many resamples, and the seed they are drawn with.
    types, donors
        As of ``resample_weights``.

    Returns
    -------
    ``(n_resamples, n_models, n_metrics)``.
    """
    scores = np.empty((n_resamples, len(models), len(metrics)))
    rng = np.random.default_rng(seed)
    draws = resample_weights(len(labels), n_resamples, rng, types=types, donors=donors)
    distinct = [[_distinct_cells(labels, cells) for cells in seeds] for seeds in models]
    for resample, weights in enumerate(draws):
        for m, seeds in enumerate(distinct):
            of_seeds = []
            for own_labels, cells, number in seeds:
                n_drawn = np.bincount(number, weights)
                of_seeds.append([f(own_labels, cells, weights=n_drawn) for f in metrics.values()])
            scores[resample, m] = np.mean(of_seeds, axis=0)
    return scores


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 % and the 97.5 % quantile: a 95 % interval; NaN where nothing is known.

    Resamples without a score (no drawn donor has a cell of the types in question) are left out.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _distinct_cells(
    labels: np.ndarray, cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels and rows that differ, and the number among them of each cell."""
    rows = np.column_stack([labels, cells])
    _, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return labels[first], cells[first], number.reshape(-1)
