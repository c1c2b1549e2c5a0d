"""How well the embeddings of a network tell cell types apart, and not donors."""

from collections.abc import Iterable

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import silhouette_score

from evaluation.compare import Comparison
from training.runs import Run

MAX_CELLS = 5000  # silhouettes compare every cell with every other one


def embedded_runs(comparisons: Iterable[Comparison]) -> list[Run]:
    """Return the first run of every best network, as far as it has embeddings."""
    networks = (comparison.best_network for comparison in comparisons)
    runs = [network.runs[0] for network in networks if network is not None]
    return [run for run in runs if run.predictions(run.splits[-1]).embeddings is not None]


def embedded_cells(run: Run, *, max_cells: int = 20_000) -> ad.AnnData:
    """Return the test cells as their embeddings, with what is known of them in ``obs``.

    Parameters
    ----------
    run
        Of a network; of one without test they are the val cells.
    max_cells
        More cells than this are sampled, for figures.

    Raises
    ------
    ValueError
        If the run has no embeddings, as a baseline's.
    """
    cells = run.predictions(run.splits[-1])
    if cells.embeddings is None:
        raise ValueError(f"{run.path}: has no embeddings; choose a network's run")
    names = pd.Index(run.class_names)
    obs = pd.DataFrame(
        {
            "cell type": pd.Categorical.from_codes(cells.labels, categories=names),
            "donor": pd.Categorical(cells.batches),
        },
        index=cells.cell_names.astype(object),
    )
    if cells.has_classes:
        predicted = cells.probabilities.argmax(axis=1)
        obs["predicted"] = pd.Categorical.from_codes(predicted, categories=names)
        obs["confidence"] = cells.probabilities.max(axis=1)
    rows = np.random.default_rng(0).permutation(len(obs))[:max_cells]
    return ad.AnnData(cells.embeddings[rows], obs=obs.iloc[rows])


def separation(adata: ad.AnnData) -> pd.Series:
    """Return the silhouette widths of cell types and, where there are several, of donors.

    Near 1 the groups lie apart, near 0 they mix. Good embeddings part types and mix donors; of
    donors that differ in their cell types a width above 0 is no fault. At most 5,000 cells are
    looked at.
    """
    rows = np.random.default_rng(0).permutation(adata.n_obs)[:MAX_CELLS]
    widths = {}
    for key in ("cell type", "donor"):
        groups = adata.obs[key].cat.codes.to_numpy()[rows]
        if 1 < len(np.unique(groups)) < len(groups):
            widths[key] = float(silhouette_score(adata.X[rows], groups))
    return pd.Series(widths, name="silhouette width", dtype=float)
