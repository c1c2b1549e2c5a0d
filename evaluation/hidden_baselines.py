"""What simple methods say of hidden genes, learned from the same train cells as a network.

- ``mean``: the gene's mean over the train cells
- ``kNN``: its mean over the train cells that are most similar in what is shown, on principal axes
  of log expression; the smoothing over neighbors of MAGIC (van Dijk et al. 2018) and of SpaGE
  (Abdelaal et al. 2020), with the train cells, of which nothing is hidden, as neighbors
- ``linear``: ridge regression on the same axes

Of the train cells as much is hidden as of the cells that are to be predicted. How many neighbors
and axes is chosen on a fifth of the train cells, by the squared error over their hidden genes.

Legend: ``n`` train cells, ``g`` genes, ``k`` axes, ``m`` genes of cells that are to be predicted.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sklearn.neighbors import NearestNeighbors

from dataset.log_expression import TARGET_SUM, log_expression
from evaluation.hidden_genes import HiddenGenes, counts_shown, hide
from models.baselines.features import PrincipalAxes, mean_and_std

NEIGHBORS = (5, 15, 50)
AXES = (10, 20, 50)
NEIGHBOR_AXES = 30  # on which cells are compared
RIDGE = 1e-3  # of the mean variance of the axes
BLOCK_CELLS = 512
BLOCK_GENES = 2**18  # of cells, that are predicted at a time

# How many cells -> which of their genes are shown, (n, g)
Hiding = Callable[[int], NDArray[np.bool_]]
Method = Callable[[HiddenGenes], NDArray[np.float64]]  # -> (m,)


class TrainCells(NamedTuple):
    """Train cells of which genes are hidden, and what is to be said of each gene if it is."""

    shown: csr_matrix  # (n, g), log expression of what is shown
    whole: csr_matrix  # (n, g), log expression of every gene, by the counts shown of the others
    mean: NDArray[np.float64]  # (g,), of ``whole``
    axes: PrincipalAxes  # of ``shown``

    @classmethod
    def hide(cls, counts: csr_matrix, hiding: Hiding, rng: np.random.Generator) -> "TrainCells":
        """Hide genes of cells with these raw counts, ``(n, g)``."""
        parts = []
        for start in range(0, counts.shape[0], BLOCK_CELLS):
            block = counts[start : start + BLOCK_CELLS]
            is_shown = hiding(block.shape[0])
            shown = counts_shown(block, is_shown)
            size = np.asarray(shown.sum(axis=1), dtype=np.float64).ravel()
            parts.append((log_expression(shown, size), _if_hidden(block, is_shown, size)))
        shown, whole = (csr_matrix(vstack(blocks)) for blocks in zip(*parts, strict=True))
        ones, n_axes = np.ones(counts.shape[1]), max(*AXES, NEIGHBOR_AXES)
        axes = PrincipalAxes.fit(shown, ones, n_axes=n_axes, rng=rng)
        return cls(shown, whole, mean_and_std(whole)[0], axes)


def _if_hidden(counts: csr_matrix, is_shown: NDArray[np.bool_], size: NDArray) -> csr_matrix:
    """Return log expression by the counts that are shown, ``size``, but for the gene's own."""
    cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    whole = csr_matrix(counts, dtype=np.float64, copy=True)
    of_others = size[cell] - whole.data * is_shown[cell, counts.indices]
    whole.data = np.log1p(whole.data * (TARGET_SUM / np.maximum(of_others, 1)))
    return whole


def baselines(
    counts: csr_matrix,
    hiding: Hiding,
    rng: np.random.Generator,
    wanted: NDArray[np.bool_] | None = None,
) -> dict[str, Method]:
    """Learn the methods from train cells.

    Parameters
    ----------
    counts
        Raw counts of the train cells, ``(n, g)``.
    hiding
        Of their genes.
    rng
        Of the fifth that is held out, and of the search for axes.
    wanted
        Genes that are to be predicted of those hidden, ``(g,)``; None: all.
    """
    order = rng.permutation(counts.shape[0])
    n_held_out = min(max(len(order) // 5, 1), BLOCK_CELLS)
    asked = np.flatnonzero(np.ones(counts.shape[1], dtype=bool) if wanted is None else wanted)
    held_out = hide(counts[order[:n_held_out]], hiding(n_held_out), wanted)
    rest = TrainCells.hide(counts[order[n_held_out:]], hiding, rng)
    train = TrainCells.hide(counts, hiding, rng)
    found = {}
    for name, (learn, settings) in METHODS.items():
        tried = [learn(rest, asked, setting)(held_out) for setting in settings]
        errors = [np.square(predicted - held_out.truth).mean() for predicted in tried]
        found[name] = learn(train, asked, settings[int(np.argmin(errors))])
    return found


def _mean(train: TrainCells, genes: NDArray[np.int64], _: int) -> Method:
    return lambda cells: train.mean[cells.gene]


def _neighbors(train: TrainCells, genes: NDArray[np.int64], n_neighbors: int) -> Method:
    """Return the mean over the nearest train cells."""
    k = min(n_neighbors, train.whole.shape[0])
    tree = NearestNeighbors(n_neighbors=k).fit(_place(train, train.shown))

    def predict(cells: HiddenGenes) -> NDArray[np.float64]:
        query = _place(train, log_expression(cells.shown, cells.size))
        nearest = tree.kneighbors(query, return_distance=False)
        indptr = np.arange(0, nearest.size + 1, k)
        shape = len(cells), train.whole.shape[0]
        weights = csr_matrix((np.full(nearest.size, 1 / k), nearest.ravel(), indptr), shape=shape)
        smoothed = csr_matrix(weights @ train.whole)
        return np.asarray(smoothed[cells.cell, cells.gene]).ravel()

    return predict


def _place(train: TrainCells, expression: csr_matrix) -> NDArray[np.float32]:
    return train.axes.coordinates(expression)[:, :NEIGHBOR_AXES]


def _linear(train: TrainCells, genes: NDArray[np.int64], n_axes: int) -> Method:
    """Return ridge regression of these genes on the leading axes, each as if it were hidden.

    A gene that is hidden in some cells only would be predicted by itself in the others, and never
    so where it is wanted: of each gene its own part of the axes' scores is taken away, in closed
    form from the scores of all genes.
    """
    weight = train.axes.axes[:, :n_axes].astype(np.float64)  # (g, k)
    scores = train.shown @ weight  # (n, k)
    n, k = scores.shape
    center = scores.mean(axis=0)
    z = scores - center
    own_mean, own_std = mean_and_std(train.shown)  # (g,)
    own_scores, of_target = train.shown.T @ z / n, train.whole.T @ z / n  # (g, k), covariances
    product = np.asarray(train.shown.multiply(train.whole).mean(axis=0)).ravel()
    own_target = product - own_mean * train.mean  # (g,)
    ridge = RIDGE * np.mean(z**2) * np.eye(k)
    coefficients = np.full_like(weight, np.nan)
    for start in range(0, len(genes), BLOCK_CELLS):
        some = genes[start : start + BLOCK_CELLS]
        own = weight[some]  # of the axes
        mixed = own_scores[some, :, None] * own[:, None, :]
        square = np.square(own_std[some, None, None]) * own[:, :, None] * own[:, None, :]
        gram = z.T @ z / n - mixed - mixed.transpose(0, 2, 1) + square + ridge  # (., k, k)
        target = of_target[some] - own_target[some, None] * own
        coefficients[some] = np.linalg.solve(gram, target[:, :, None])[:, :, 0]
    centers = center - own_mean[:, None] * weight  # (g, k), of the scores without the gene
    offset = train.mean - (coefficients * centers).sum(axis=1)

    def predict(cells: HiddenGenes) -> NDArray[np.float64]:
        query = (
            log_expression(cells.shown, cells.size) @ weight
        )  # no part of it is a hidden gene's
        found = np.empty(len(cells.cell))
        for start in range(0, len(found), BLOCK_GENES):
            some = slice(start, start + BLOCK_GENES)
            cell, gene = cells.cell[some], cells.gene[some]
            found[some] = np.einsum("mk,mk->m", query[cell], coefficients[gene]) + offset[gene]
        return np.maximum(found, 0)

    return predict


Learn = Callable[[TrainCells, NDArray[np.int64], int], Method]
METHODS: dict[str, tuple[Learn, tuple[int, ...]]] = {
    "mean": (_mean, (0,)),
    "kNN": (_neighbors, NEIGHBORS),
    "linear": (_linear, AXES),
}
