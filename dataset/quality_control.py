"""Which cells are good enough to learn from: scanpy's measures, the config's thresholds."""

import logging
import warnings

import numpy as np
import pandas as pd
import scanpy as sc

from configs.schema import QualityControlConfig
from dataset.read import Cells

logger = logging.getLogger(__name__)

# Scrublet simulates doublets and projects all on 30 components: fewer cells tell nothing.
FEWEST_CELLS_FOR_SCRUBLET = 50


def measure_cells(
    cells: Cells, *, mitochondrial_prefix: str = "MT-", max_cells: int = 1024
) -> pd.DataFrame:
    """Measure every cell, a block at a time.

    The measures are those of scanpy's ``calculate_qc_metrics``, to the last bit; it would also
    measure every gene of every block.

    Returns
    -------
    Indexed by cell name: ``n_genes`` detected, ``total_counts``, and ``pct_counts_mt``, the
    percentage of counts in mitochondrial genes (NaN where the file has none of those).
    """
    prefix = mitochondrial_prefix.upper()
    is_mitochondrial = np.array([str(s).upper().startswith(prefix) for s in cells.gene_symbols])
    n_cells = len(cells.obs)
    n_genes, total, mitochondrial = np.zeros((3, n_cells), dtype=np.int64)
    for start, block in cells.blocks(max_cells):
        rows = slice(start, start + block.shape[0])
        n_genes[rows] = np.diff(block.indptr)  # blocks hold no zeros
        total[rows] = block @ np.ones(block.shape[1], dtype=np.int64)
        mitochondrial[rows] = block @ is_mitochondrial.astype(np.int64)
    percent = np.full(n_cells, np.nan)
    if is_mitochondrial.any():
        # Cells without counts have 0 %.
        percent = np.divide(mitochondrial, total, out=np.zeros(n_cells), where=total > 0) * 100
    return pd.DataFrame(
        {
            "n_genes": n_genes,
            "total_counts": total.astype(np.float64),
            "pct_counts_mt": percent,
        },
        index=cells.obs.index,
    )


def score_doublets(
    cells: Cells, metrics: pd.DataFrame, batch: pd.Series | None = None, *, seed: int = 0
) -> tuple[pd.Series, list[str]]:
    """Score doublets with Scrublet, one batch at a time: doublets form within a batch.

    Parameters
    ----------
    cells
        The cells.
    metrics
        Of ``measure_cells``; cells without counts get no score.
    batch
        Batch of each cell; one batch if None.
    seed
        Of Scrublet's simulation; the same seed gives the same scores.

    Returns
    -------
    Score of each cell, 0 to 1 (NaN where there is none), and messages.
    """
    scores = pd.Series(np.nan, index=metrics.index, name="doublet_score")
    messages = []
    groups = np.full(len(metrics), "all cells", dtype=object) if batch is None else batch
    groups = pd.Series(np.asarray(groups, dtype=object)).fillna("(no batch)").astype(str)
    for name in sorted(groups.unique()):
        rows = np.flatnonzero((groups == name).to_numpy() & (metrics["total_counts"] > 0))
        if len(rows) < FEWEST_CELLS_FOR_SCRUBLET:
            messages.append(
                f"no doublet scores for batch {name!r}: {len(rows)} cells, Scrublet needs "
                f"{FEWEST_CELLS_FOR_SCRUBLET}"
            )
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scanpy's own calls
            adata = cells.to_anndata(rows)
            sc.pp.scrublet(adata, random_state=seed, verbose=False)
        scores.iloc[rows] = adata.obs["doublet_score"].to_numpy()
    return scores, messages


def select_cells(
    metrics: pd.DataFrame, config: QualityControlConfig
) -> tuple[np.ndarray, pd.Series]:
    """Apply the thresholds.

    Parameters
    ----------
    metrics
        Of ``measure_cells``, with a column ``doublet_score`` where doublets were scored.
    config
        The thresholds.

    Returns
    -------
    True for the cells to keep, and for every cell the reason it is dropped ("" if it is kept).
    """
    fractions = metrics["pct_counts_mt"]
    if config.max_percent_mitochondrial is not None and fractions.isna().all():
        raise ValueError(
            f"max_percent_mitochondrial is {config.max_percent_mitochondrial}, but no gene symbol "
            f"starts with {config.mitochondrial_prefix!r}: set mitochondrial_prefix or "
            "gene_symbol_key, or max_percent_mitochondrial: null"
        )
    reasons = pd.Series("", index=metrics.index, name="reason", dtype=object)

    def drop(bad: pd.Series, reason: str) -> None:
        reasons[(reasons == "") & bad] = reason  # the first reason is the one that is told

    drop(metrics["total_counts"] == 0, "no counts")
    drop(metrics["total_counts"] < config.min_counts, f"fewer than {config.min_counts} counts")
    drop(metrics["n_genes"] < config.min_genes, f"fewer than {config.min_genes} genes")
    if config.max_genes is not None:
        drop(metrics["n_genes"] > config.max_genes, f"more than {config.max_genes} genes")
    if (most := config.max_percent_mitochondrial) is not None:
        drop(fractions > most, f"more than {most:g} % mitochondrial counts")
    if (most := config.max_doublet_score) is not None:
        drop(metrics["doublet_score"] > most, f"doublet score above {most:g}")
    return (reasons == "").to_numpy(), reasons


def select_labels(
    labels: pd.Series, *, ignore: list[str] | None = None, min_cells: int = 2
) -> tuple[np.ndarray, pd.Series]:
    """Drop the cells that no cell type can be learned from.

    Parameters
    ----------
    labels
        Cell type of each cell that passed ``select_cells``.
    ignore
        Labels that are no cell type.
    min_cells
        Fewest cells of a type; the cells of rarer types are dropped.

    Returns
    -------
    True for the cells to keep, and for every cell the reason it is dropped ("" if it is kept).
    """
    missing = labels.isna().to_numpy()
    text = labels.astype(object).where(~missing, "").astype(str).str.strip()
    reasons = pd.Series("", index=labels.index, name="reason", dtype=object)
    reasons[missing | (text == "").to_numpy()] = "no label"
    for label in ignore or []:
        reasons[(text == label).to_numpy() & (reasons == "").to_numpy()] = f"label {label!r}"
    kept = (reasons == "").to_numpy()
    for name, n in text[kept].value_counts().sort_index().items():
        if n < min_cells:
            reasons[kept & (text == name).to_numpy()] = (
                f"type {name!r}: {n} cells, fewer than {min_cells}"
            )
    return (reasons == "").to_numpy(), reasons
