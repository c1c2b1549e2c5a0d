"""How near predictions of hidden genes are to the truth, and whether a decoder's are nearer.

- ``rmse``, ``mae``: over all hidden genes of all cells, in log expression
- ``pearson``, ``cosine``: of each gene over the cells of which it was hidden, mean over the genes
  that were detected in at least ``FEWEST_DETECTED`` of them; a constant has a correlation of 0

Scores are of all hidden genes, and, as published denoising is judged, of those that were detected.
The latter are no measure of who is right: what is expected of a gene that may not be there is less
than what is found of one that is, and the more counts a cell has, the more genes are expected in
it, and the less is each that is found. Intervals are over cells, of paired differences.

Legend: ``n`` cells, ``g`` genes that are scored, ``m`` hidden genes of cells, ``r`` resamples.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from evaluation.annotated_file import AnnotationError
from evaluation.bootstrap import interval, resample_weights
from evaluation.outcome import outcome

DECODER = "decoder"
FEWEST_DETECTED = 10
METRICS = ("rmse", "mae", "pearson", "cosine")
LOWER_IS_BETTER = {"rmse", "mae"}
AT_ONCE = 100  # resamples


class Judged(NamedTuple):
    """The result of ``judge``."""

    scores: pd.DataFrame  # a row for each set of hidden genes, metric and method
    genes: pd.DataFrame  # Pearson correlation of each gene, (g, methods)


class Sums(NamedTuple):
    """Sums over the cells of which each gene was hidden, of each resample: ``(g, r)``."""

    n: NDArray[np.float64]
    truth: NDArray[np.float64]
    truth_square: NDArray[np.float64]
    predicted: NDArray[np.float64]
    predicted_square: NDArray[np.float64]
    product: NDArray[np.float64]

    def pearson(self) -> NDArray[np.float64]:
        """Return the correlation of each gene; NaN where the truth is constant."""
        n = np.maximum(self.n, 1e-12)
        mean, true_mean = self.predicted / n, self.truth / n
        square, true_square = self.predicted_square / n, self.truth_square / n
        spread, true_spread = square - mean**2, true_square - true_mean**2
        covariance = self.product / n - mean * true_mean
        varies, is_known = spread > 1e-9 * square, true_spread > 1e-9 * true_square
        scale = np.sqrt(np.where(varies & is_known, spread * true_spread, 1))
        return np.where(is_known, np.where(varies, covariance / scale, 0), np.nan)

    def cosine(self) -> NDArray[np.float64]:
        """Return the cosine of each gene; NaN where the truth is 0."""
        is_known = self.truth_square > 0
        scale = np.sqrt(self.predicted_square * self.truth_square)
        cosine = np.where(scale > 0, self.product / np.where(scale > 0, scale, 1), 0)
        return np.where(is_known, cosine, np.nan)


class HiddenScores:
    """Scores of several methods for the same hidden genes, of any resample of the cells.

    Parameters
    ----------
    cell, gene, truth
        Of each hidden gene of a cell, ``(m,)``.
    predictions
        By method, ``(m,)``.
    n_cells
        Cells.
    """

    def __init__(
        self,
        cell: NDArray[np.int64],
        gene: NDArray[np.int64],
        truth: NDArray[np.float64],
        predictions: Mapping[str, NDArray[np.float64]],
        n_cells: int,
    ) -> None:
        errors = {name: predicted - truth for name, predicted in predictions.items()}
        self.errors = {
            name: np.stack([np.bincount(cell, f(e), minlength=n_cells) for f in (np.square, abs)])
            for name, e in errors.items()
        }
        self.n_hidden = np.bincount(cell, minlength=n_cells)
        n_detected = np.bincount(gene[truth > 0])
        self.genes = np.flatnonzero(n_detected >= FEWEST_DETECTED)
        kept = np.isin(gene, self.genes)
        place = cell[kept], np.searchsorted(self.genes, gene[kept])
        shape = n_cells, len(self.genes)

        def table(values: NDArray) -> csr_matrix:
            return csr_matrix(csr_matrix((values, place), shape=shape).T)

        true = truth[kept]
        self.of_truth = [table(values) for values in (np.ones(len(true)), true, true**2)]
        self.of_method = {}
        for name, values in predictions.items():
            p = values[kept]
            self.of_method[name] = [table(values) for values in (p, p**2, p * true)]

    def sums(self, name: str, weights: NDArray) -> Sums:
        """Return what correlations are made of, for weights of the cells, ``(n, r)``."""
        return Sums(*(t @ weights for t in (*self.of_truth, *self.of_method[name])))

    def scores(self, weights: NDArray) -> dict[str, NDArray[np.float64]]:
        """Return the metrics of each method, ``(metrics, r)``, for weights ``(n, r)``."""
        n, found = self.n_hidden @ weights, {}
        for name, (square, absolute) in self.errors.items():
            sums = self.sums(name, weights)
            of_genes = [
                np.nanmean(of_gene, axis=0) if len(of_gene) else np.full(weights.shape[1], np.nan)
                for of_gene in (sums.pearson(), sums.cosine())
            ]
            found[name] = np.stack(
                [np.sqrt(square @ weights / n), absolute @ weights / n, *of_genes]
            )
        return found


def judge(
    cell: NDArray[np.int64],
    gene: NDArray[np.int64],
    truth: NDArray[np.float64],
    predictions: Mapping[str, NDArray[np.float64]],
    gene_names: NDArray[np.str_],
    *,
    n_resamples: int = 500,
    seed: int = 0,
) -> Judged:
    """Score the methods, and say of each whether the decoder is better.

    Parameters
    ----------
    cell, gene, truth, predictions
        As of ``HiddenScores``; the decoder's predictions stand under ``DECODER``.
    gene_names
        Of the genes' numbers.
    n_resamples, seed
        Of the bootstrap over cells.

    Returns
    -------
    ``scores`` with the columns ``score``, and for all but the decoder ``difference``, the
    decoder's minus the method's, its 95 % interval ``low`` to ``high``, and ``decoder_is`` better,
    worse or cannot tell.
    """
    if not len(truth):
        raise AnnotationError("no gene was hidden: hide more, or give more cells")
    n_cells = int(cell.max()) + 1
    rows, genes = [], pd.DataFrame()
    for scope, asked in (("all", np.ones(len(truth), dtype=bool)), ("detected", truth > 0)):
        of_scope = {name: values[asked] for name, values in predictions.items()}
        scores = HiddenScores(cell[asked], gene[asked], truth[asked], of_scope, n_cells)
        rows += [{"genes": scope, **row} for row in _rows(scores, n_resamples, seed)]
        if scope == "all":
            once = np.ones((n_cells, 1))
            correlations = {n: scores.sums(n, once).pearson()[:, 0] for n in predictions}
            index = pd.Index(gene_names[scores.genes], name="gene")
            genes = pd.DataFrame(correlations, index=index)
    return Judged(pd.DataFrame(rows), genes)


def _rows(scores: HiddenScores, n_resamples: int, seed: int) -> Iterator[dict[str, object]]:
    n_cells = len(scores.n_hidden)
    rng = np.random.default_rng(seed)
    weights = np.stack([*resample_weights(n_cells, n_resamples, rng)], axis=1).astype(float)
    blocks = [scores.scores(weights[:, i : i + AT_ONCE]) for i in range(0, n_resamples, AT_ONCE)]
    found = scores.scores(np.ones((n_cells, 1)))
    for i, metric in enumerate(METRICS):
        resampled = {name: np.concatenate([b[name][i] for b in blocks]) for name in found}
        for name, values in found.items():
            row: dict[str, object] = {"metric": metric, "method": name, "score": values[i, 0]}
            if name != DECODER:
                low, high = interval(resampled[DECODER] - resampled[name])
                lower = metric in LOWER_IS_BETTER
                said = outcome(
                    low, high, margin=0, n_cells=n_cells, resolution=0, lower_is_better=lower
                )
                row |= {"difference": found[DECODER][i, 0] - values[i, 0]}
                row |= {"low": low, "high": high, "decoder_is": said.word}
            yield row
