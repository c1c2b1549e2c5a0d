"""How both linear classifiers are tuned: every setting on a few thousand cells at most, on val."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from models.baselines.best_on_val import best_on_val
from models.baselines.features import ValCells, standardize
from models.baselines.linear import LinearClassifier
from models.baselines.linear_cells import LinearCells, RotatedCells, SparseCells
from models.baselines.linear_fit import balanced

logger = logging.getLogger(__name__)

ClassWeights = Literal["none", "balanced"]
GeneScaling = Literal["standardized", "log_expression"]


@dataclass(frozen=True)
class Setting:
    """One point of a grid: a penalty, or the iterations after which a fit without one stops."""

    gene_scaling: GeneScaling
    class_weights: ClassWeights
    c: float | None = None
    n_iterations: int | None = None


# Weights and intercepts of the classes present, of cells, their labels from 0 and their weights.
Fit = Callable[
    [Setting, LinearCells, NDArray[np.int64], np.ndarray], tuple[np.ndarray, np.ndarray]
]


def tune_linear(
    train: csr_matrix,
    labels: np.ndarray,
    n_classes: int,
    val: ValCells,
    settings: Sequence[Setting],
    fit: Fit,
    *,
    finish: Callable[[LinearClassifier], LinearClassifier],
    tuning_cells: int,
    seed: int,
) -> tuple[Setting, LinearClassifier]:
    """Fit every setting on train, choose one on val, and return it with its model of all cells.

    Parameters
    ----------
    train
        Log expression of the training cells, ``(n_cells, n_genes)``.
    labels
        Class ids, ``(n_cells,)``.
    n_classes
        Number of classes, with or without training cells.
    val
        Counts, library sizes and labels of the val cells.
    settings
        The points of the grid.
    fit
        Finds weights and intercepts.
    finish
        What is done to each fitted classifier before val cells judge it.
    tuning_cells
        With more training cells than this, the settings are compared on a random draw of this
        many, and the chosen one is then fitted on all cells.
    seed
        Draws them.
    """
    rng = np.random.default_rng(seed)
    n_cells = len(labels)
    rows = np.arange(n_cells)
    if n_cells > tuning_cells:
        rows = np.sort(rng.choice(n_cells, tuning_cells, replace=False))
    forms: dict[GeneScaling, LinearCells] = {}
    gene_weights = {"standardized": standardize(train), "log_expression": np.ones(train.shape[1])}

    def fit_setting(setting: Setting) -> LinearClassifier:
        if setting.gene_scaling not in forms:
            weights = gene_weights[setting.gene_scaling]
            forms[setting.gene_scaling] = RotatedCells.fit(train[rows], weights, rng)
        cells = forms[setting.gene_scaling]
        return finish(_classifier(setting, cells, labels[rows], n_classes, fit))

    setting, fitted = best_on_val(((setting, fit_setting(setting)) for setting in settings), val)
    if n_cells > tuning_cells:
        logger.info("settings chosen on %d cells, fitted on all %d", tuning_cells, n_cells)
        forms.clear()
        cells = SparseCells.fit(train, gene_weights[setting.gene_scaling], rng)
        fitted = finish(_classifier(setting, cells, labels, n_classes, fit))
    return setting, fitted


def _classifier(
    setting: Setting, cells: LinearCells, labels: np.ndarray, n_classes: int, fit: Fit
) -> LinearClassifier:
    """Fit the classes that have cells, and add the others."""
    present, own = np.unique(labels, return_inverse=True)
    cell_weights = balanced(own) if setting.class_weights == "balanced" else np.ones(len(own))
    weights, intercept = fit(setting, cells, own, cell_weights)
    weights, center = cells.to_genes(weights)
    return LinearClassifier.with_all_classes(weights, intercept - center, present, n_classes)
