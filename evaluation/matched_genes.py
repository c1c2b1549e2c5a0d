"""Random genes that as many of the same cells have as given ones, and that rank as high in them.

A gene that most cells have, or that ranks high, moves a network more than another one whatever it
does: an effect is judged against genes of its kind.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from evaluation.annotated_file import AnnotationError
from evaluation.query_cells import Profile
from evaluation.trained_model import TrainedModel

FEWEST = 19  # random genes to draw from: with fewer no p is .05 or below


def medians_of(model: TrainedModel) -> NDArray[np.floating]:
    """Return what the tokenizer divides counts by to rank them, ``(n_genes,)``; else 1."""
    return model.facts.learned.get("medians", np.ones(model.vocabulary.n_genes))


def detection_and_rank(model: TrainedModel, profile: Profile) -> NDArray[np.float64]:
    """Return each gene's share of cells that have it, and its mean rank in them, ``(n_genes, 2)``.

    A cell has a gene of which it has counts; they are ranked by count over the gene's median,
    genes alike in that at the mean of their ranks, whatever the order of the tokens. Both columns
    are in units of their spread over the detected genes; NaN where no cell has the gene.
    """
    counts = profile[0].copy()
    counts.eliminate_zeros()
    value = counts.data.astype(np.float32) / medians_of(model)[counts.indices]
    rank = np.concatenate([rankdata(-value[a:b]) for a, b in pairwise(counts.indptr)])
    n_cells = np.bincount(counts.indices, minlength=counts.shape[1]).astype(np.float64)
    n_cells[n_cells == 0] = np.nan
    mean_rank = np.bincount(counts.indices, weights=rank, minlength=len(n_cells)) / n_cells
    seen = np.stack([n_cells / counts.shape[0], mean_rank], axis=1)
    return seen / np.maximum(np.nanstd(seen, axis=0), 1e-12)


def matched_random(
    genes: Sequence[int],
    how_seen: NDArray[np.float64],
    n_null: int,
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """Draw sets of as many random genes, each from the ``n_null`` that are seen most like its own.

    Parameters
    ----------
    genes
        To be matched, different ones, and never drawn; one that no cell has is matched with those
        that are seen least.
    how_seen
        As of ``detection_and_rank``; a gene of NaN is never drawn.
    n_null
        How many sets; fewer where there are not so many genes.

    Raises
    ------
    AnnotationError
        If there are too few genes to draw from.
    """
    usable = np.flatnonzero(np.isfinite(how_seen).all(axis=1))
    usable = usable[~np.isin(usable, list(genes))]
    if len(usable) < (fewest := max(FEWEST, len(genes))):
        raise AnnotationError(
            f"random genes: the network reads {len(usable):,} genes of these cells beside the "
            f"{len(genes):,} that are perturbed, and a comparison needs {fewest:,}; take more "
            "cells, or perturb fewer genes at once"
        )
    worst = np.array([0.0, np.nanmax(how_seen[:, 1])])
    pools = []
    for gene in genes:
        here = how_seen[gene] if np.isfinite(how_seen[gene]).all() else worst
        distance = np.linalg.norm(how_seen[usable] - here, axis=1)
        nearest = np.argsort(distance, kind="stable")[: max(n_null, len(genes))]
        pools.append(rng.permutation(usable[nearest]))
    drawn = []
    for i in range(min(n_null, len(usable))):
        chosen: list[int] = []
        for pool in pools:  # no gene twice in a set
            chosen.append(next(int(g) for g in (*pool[i:], *pool[:i]) if g not in chosen))
        drawn.append(tuple(chosen))
    return drawn
