"""Scores of several models on resamples of the same test cells: intervals and paired differences.

Every model is scored on the same resample, so the difference between two of them is paired: what
makes a resample easy makes it easy for both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

# (labels, probabilities, *, weights) -> score
Metric = Callable[..., float]


def resample_weights(
    n_cells: int, n_resamples: int, rng: np.random.Generator, *, donors: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield how often each cell is drawn, ``(n_cells,)``, for each resample.

    Parameters
    ----------
    n_cells
        Cells to draw, with replacement.
    n_resamples
        How many draws.
    donors
        Donor of each cell: whole donors are drawn instead, with all their cells.
    """
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
    donors: np.ndarray | None = None,
) -> np.ndarray:
    """Score every model on every resample; a model's score is the mean over its seeds.

    Parameters
    ----------
    labels
        True classes of the test cells, ``(n_cells,)``.
    models
        For each model the probabilities of each of its seeds, ``(n_cells, n_classes)``.
    metrics
        Name to score.
    n_resamples, seed
        How many resamples, and the seed they are drawn with.
    donors
        Donor of each cell, to resample donors instead of cells.

    Returns
    -------
    ``(n_resamples, n_models, n_metrics)``.
    """
    scores = np.empty((n_resamples, len(models), len(metrics)))
    rng = np.random.default_rng(seed)
    draws = resample_weights(len(labels), n_resamples, rng, donors=donors)
    for resample, weights in enumerate(draws):
        drawn = weights > 0  # a cell that was not drawn costs time and changes nothing
        for m, seeds in enumerate(models):
            for k, metric in enumerate(metrics.values()):
                scores[resample, m, k] = np.mean(
                    [metric(labels[drawn], p[drawn], weights=weights[drawn]) for p in seeds]
                )
    return scores


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2.5 % and the 97.5 % quantile over the first axis: a 95 % interval."""
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high
