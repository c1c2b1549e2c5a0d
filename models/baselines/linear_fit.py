"""A penalized linear classifier fitted until it is one: L-BFGS, with its gradient checked.

Under an L2 penalty the optimum is one point, so a fit that has reached it depends on nothing but
cells, labels and penalty: not on where it began, nor on what was fitted before.
"""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from models.baselines.linear_cells import LinearCells

logger = logging.getLogger(__name__)

# The size of the gradient, beside that of the penalty's own, at which a fit has converged:
# probabilities then differ from those at 1e-6 by about 1e-4 (pancreas, cortex, blood, worm).
TOLERANCE = 1e-4
# A typical p (1 - p) of a class, by which the curvature along an axis is guessed from variance.
CURVATURE = 0.02

# An iteration is two products of a millisecond. With a second thread, which OpenBLAS lets spin
# between them, 40 fits took 20 times as long on two cores that others used too.
one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")

# Sum over cells of weighted loss, and its derivative by the scores, of (n_cells, n_classes).
Loss = Callable[[np.ndarray, NDArray[np.int64], np.ndarray], tuple[float, np.ndarray]]


def cross_entropy(
    scores: np.ndarray, labels: NDArray[np.int64], cell_weights: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the loss of multinomial logistic regression and its derivative by the scores.

    Two classes have a column of weights each, too: scikit-learn gives them one, whose C means
    twice ours.
    """
    cells = np.arange(len(labels))
    normalizer = logsumexp(scores, axis=1)
    residuals = np.exp(scores - normalizer[:, None])
    residuals[cells, labels] -= 1
    loss = cell_weights @ (normalizer - scores[cells, labels])
    return float(loss), residuals * cell_weights[:, None]


def squared_hinge(
    scores: np.ndarray, labels: NDArray[np.int64], cell_weights: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the loss of one linear SVM a class against the rest, and its derivative."""
    sides = np.full(scores.shape, -1.0)
    sides[np.arange(len(labels)), labels] = 1.0
    missing = np.maximum(1 - sides * scores, 0)
    loss = cell_weights @ np.sum(missing**2, axis=1)
    return float(loss), -2 * sides * missing * cell_weights[:, None]


def balanced(labels: NDArray[np.int64]) -> np.ndarray:
    """Return the weight of each cell with which every class present weighs the same."""
    counts = np.bincount(labels)
    return (len(labels) / (np.sum(counts > 0) * np.maximum(counts, 1)))[labels]


@one_blas_thread
def fit_linear(
    cells: LinearCells,
    labels: NDArray[np.int64],
    cell_weights: np.ndarray,
    loss: Loss,
    *,
    c: float,
    penalize_intercept: bool,
    max_iter: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimize ``c * loss + |weights|^2 / 2``, from 0 until the gradient has vanished.

    Parameters
    ----------
    labels
        Ids from 0 without a gap, ``(n_cells,)``.
    cell_weights
        What each cell counts, ``(n_cells,)``.
    c
        Inverse penalty, scikit-learn's ``C``.
    penalize_intercept
        As liblinear does, whose penalty takes the intercept for one more weight.
    max_iter
        Iterations after which to give up, with a warning.

    Returns
    -------
    Weights, ``(n_weights, n_classes)``, and intercepts, ``(n_classes,)``.
    """
    n_cells, n_weights = cells.shape
    n_classes = int(labels.max()) + 1
    penalty = 1 / (c * n_cells)
    strength = CURVATURE / penalty
    intercept_scale = 1 / np.sqrt(CURVATURE + penalty * penalize_intercept)
    weights_scale = 1 / np.sqrt(penalty)

    def unpack(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        free = flat.reshape(n_weights + 1, n_classes)
        return (
            weights_scale * cells.precondition(free[:-1], strength),
            intercept_scale * free[-1],
        )

    vanished = False

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal vanished
        weights, intercept = unpack(flat)
        value, by_scores = loss(cells.scores(weights) + intercept, labels, cell_weights)
        by_weights = cells.gradient(by_scores) / n_cells + penalty * weights
        by_intercept = by_scores.sum(axis=0) / n_cells
        value = value / n_cells + penalty / 2 * float(np.sum(weights**2))
        if penalize_intercept:
            by_intercept = by_intercept + penalty * intercept
            value += penalty / 2 * float(np.sum(intercept**2))
        vanished = bool(
            np.linalg.norm(by_weights) <= TOLERANCE * penalty * np.linalg.norm(weights)
            and np.abs(by_intercept).max() <= TOLERANCE
        )
        gradient = np.concatenate(
            [
                weights_scale * cells.precondition(by_weights, strength),
                intercept_scale * by_intercept[None],
            ]
        )
        return value, gradient.ravel()

    def stop_at_the_optimum(flat: np.ndarray) -> None:
        if vanished:
            raise StopIteration

    found = minimize(
        objective,
        np.zeros((n_weights + 1) * n_classes),
        jac=True,
        method="L-BFGS-B",
        callback=stop_at_the_optimum,
        options={"maxiter": max_iter, "maxfun": 2 * max_iter, "maxcor": 20, "ftol": 0, "gtol": 0},
    )
    objective(found.x)
    if not vanished:
        logger.warning(
            "a linear model with C = %g did not converge in %d iterations: raise max_iter",
            c,
            found.nit,
        )
    return unpack(found.x)


@one_blas_thread
def early_stopped(
    cells: LinearCells,
    labels: NDArray[np.int64],
    cell_weights: np.ndarray,
    loss: Loss,
    *,
    n_iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimize the loss alone, from 0, and for a few iterations of L-BFGS.

    There is no penalty: that the fit stops early is what keeps the weights small, above all along
    axes of little variance. The intercept moves as much slower than the weights as it does on
    genes that are not scaled to cells of mean norm 1.

    Parameters
    ----------
    n_iterations
        How many.

    Returns
    -------
    Weights, ``(n_weights, n_classes)``, and intercepts, ``(n_classes,)``.
    """
    n_cells, n_weights = cells.shape
    n_classes = int(labels.max()) + 1

    def unpack(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        free = flat.reshape(n_weights + 1, n_classes)
        return free[:-1], free[-1] / cells.norm

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, intercept = unpack(flat)
        value, by_scores = loss(cells.scores(weights) + intercept, labels, cell_weights)
        by_intercept = by_scores.sum(axis=0)[None] / cells.norm
        gradient = np.concatenate([cells.gradient(by_scores), by_intercept]) / n_cells
        return value / n_cells, gradient.ravel()

    start = np.zeros((n_weights + 1) * n_classes)
    options = {"maxiter": n_iterations, "ftol": 0, "gtol": 0}
    return unpack(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x)
