"""Random genes that are seen as often in the same cells as given ones, and rank as high in them.

A gene that most cells have, or that ranks high, moves a network more than another one whatever it
does: an effect is judged against genes of its kind.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataset.vocabulary import N_SPECIALS
from evaluation.query_cells import Profile
from evaluation.trained_model import TrainedModel


def detection_and_rank(model: TrainedModel, profile: Profile) -> NDArray[np.float64]:
    """Return each gene's share of cells that have it, and its mean rank in them, ``(n_genes, 2)``.

    Both are in units of their spread over the detected genes; NaN where no cell has the gene.
    """
    cells = model.encode([profile])
    tokens = np.where(
        np.arange(cells.arrays["token_ids"].shape[1]) < cells.lengths[:, None],
        cells.arrays["token_ids"].astype(np.int64),
        0,
    )
    _, rank = np.nonzero(tokens >= N_SPECIALS)
    gene = tokens[tokens >= N_SPECIALS] - N_SPECIALS
    n_cells = np.bincount(gene, minlength=model.vocabulary.n_genes).astype(np.float64)
    n_cells[n_cells == 0] = np.nan
    mean_rank = np.bincount(gene, weights=rank, minlength=len(n_cells)) / n_cells
    seen = np.stack([n_cells / len(tokens), mean_rank], axis=1)
    return seen / np.maximum(np.nanstd(seen, axis=0), 1e-12)


def matched_random(
    genes: Sequence[int],
    how_seen: NDArray[np.float64],
    n_null: int,
    excluded: set[int],
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """Draw sets of random genes, each gene from the ``n_null`` that are seen most like its own.

    Parameters
    ----------
    genes
        To be matched; one that no cell has is matched with those that are seen least.
    how_seen
        As of ``detection_and_rank``.
    n_null
        How many sets; fewer where there are not so many genes.
    excluded
        Genes that are never drawn.
    """
    usable = np.flatnonzero(np.isfinite(how_seen).all(axis=1))
    usable = usable[~np.isin(usable, list(excluded))]
    worst = np.array([0.0, np.nanmax(how_seen[:, 1])])
    pools = []
    for gene in genes:
        here = how_seen[gene] if np.isfinite(how_seen[gene]).all() else worst
        distance = np.linalg.norm(how_seen[usable] - here, axis=1)
        pools.append(rng.permutation(usable[np.argsort(distance, kind="stable")[:n_null]]))
    drawn = []
    for i in range(min(map(len, pools))):
        chosen: list[int] = []
        for pool in pools:  # no gene twice in a set
            free = [g for g in (*pool[i:], *pool[:i]) if g not in chosen]
            chosen += [int(g) for g in free[:1]]
        drawn.append(tuple(chosen))
    return drawn
