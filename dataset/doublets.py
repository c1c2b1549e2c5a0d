"""Doublet scores: Scrublet, as scanpy computes it."""

import logging
import warnings

import numpy as np
import pandas as pd
import scanpy as sc
from numpy.typing import NDArray

from dataset.config import QualityControlConfig
from dataset.cut_list import cut_list
from dataset.reasons import Reasons
from dataset.store.count_store import CountStore
from dataset.store.layout import SPLITS

logger = logging.getLogger(__name__)

# Scrublet simulates doublets and projects all on 30 components: fewer cells tell nothing.
FEWEST_CELLS = 50


def score_doublets(
    store: CountStore,
    wanted: NDArray[np.bool_],
    split: NDArray[np.integer],
    batch: pd.Categorical | None = None,
    *,
    seed: int = 0,
) -> tuple[NDArray[np.float64], list[str]]:
    """Score doublets with Scrublet, each batch of a split by itself.

    Doublets form within a batch, so its cells are scored beside one another. Where a batch has
    cells in several splits they are scored apart, for a train cell's score, and whether it stays,
    must not follow from test cells.

    Parameters
    ----------
    store
        Counts of all cells.
    wanted
        Cells to score and to score them beside, ``(n_cells,)``.
    split
        Of each cell: its index in ``SPLITS``, or -1 for a cell in none, which is not scored.
    batch
        Batch of each cell; one batch if None.
    seed
        Of Scrublet's simulation; the same seed gives the same scores.

    Returns
    -------
    Score of each cell, ``(n_cells,)``, 0 to 1 (NaN where there is none), and messages.
    """
    scores = np.full(store.n_cells, np.nan)
    if batch is None:
        batch = pd.Categorical.from_codes(
            np.zeros(len(scores), np.int8), pd.Index(["all cells"], dtype=object)
        )
    names = [*map(str, batch.categories), "(no batch)"]  # the last: code -1
    scored = wanted & (split >= 0)
    number = batch.codes.astype(np.int64) * len(SPLITS) + split
    too_few, refused, messages = [], [], []
    for group in np.unique(number[scored]).tolist():
        name = f"{names[group // len(SPLITS)]} ({SPLITS[group % len(SPLITS)]})"
        rows = np.flatnonzero(scored & (number == group))
        if len(rows) < FEWEST_CELLS:
            too_few.append(name)
            continue
        adata = store.to_anndata(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scanpy's own calls
            try:
                sc.pp.scrublet(adata, random_state=seed, verbose=False)
            except ValueError as error:  # too few genes or too few values to work on
                message = " ".join(str(error).split())[:200]
                refused.append(f"{name}, {len(rows):,} cells x {store.n_genes:,} genes: {message}")
                continue
        scores[rows] = adata.obs["doublet_score"].to_numpy()
    if too_few:
        messages.append(
            f"no doublet scores for batches of fewer than {FEWEST_CELLS} cells, which Scrublet "
            f"needs: {cut_list(too_few)}"
        )
    if refused:
        more = f"; and so {len(refused) - 1:,} more batches" if len(refused) > 1 else ""
        messages.append(
            f"no doublet scores where genes or counts are too few for Scrublet: {refused[0]}{more}"
        )
    return scores, messages


def drop_doublets(
    reasons: Reasons, doublet_score: NDArray[np.float64], config: QualityControlConfig
) -> None:
    """Apply ``max_doublet_score``; a cell without a score stays."""
    if (most := config.max_doublet_score) is None or np.isnan(doublet_score).all():
        return
    reasons.drop(
        doublet_score > most,
        f"doublet score above {most:g}",
        f"max_doublet_score {most:g}",
        f"the median cell has a score of {np.nanmedian(doublet_score):.2g}: set "
        "quality_control.max_doublet_score",
    )
