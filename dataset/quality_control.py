"""Which cells are good enough to learn from: scanpy's measures, the config's thresholds."""

import logging
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from configs.schema import QualityControlConfig
from dataset.compiled import compiled
from dataset.read import Cells

logger = logging.getLogger(__name__)

# Scrublet simulates doublets and projects all on 30 components: fewer cells tell nothing.
FEWEST_CELLS_FOR_SCRUBLET = 50


class Measures(NamedTuple):
    """What is measured of each cell: scanpy's ``calculate_qc_metrics``, to the last bit."""

    n_genes: NDArray[np.int64]  # (n,), detected
    total_counts: NDArray[np.float64]  # (n,)
    pct_counts_mt: NDArray[np.float64]  # (n,), of mitochondrial genes; NaN where there are none


def mitochondrial_genes(cells: Cells, prefix: str = "MT-") -> NDArray[np.bool_]:
    """Say which genes are mitochondrial, by the start of their symbol, in any case."""
    prefix = prefix.upper()
    return np.array([str(s).upper().startswith(prefix) for s in cells.gene_symbols])


def measure_block(counts: csr_matrix, is_mitochondrial: NDArray[np.bool_]) -> Measures:
    """Measure the cells of a block, which stores no zeros."""
    total, mitochondrial = np.zeros((2, counts.shape[0]), dtype=np.int64)
    _sum_counts(counts.indptr, counts.indices, counts.data, is_mitochondrial, total, mitochondrial)
    percent = np.full(len(total), np.nan)
    if is_mitochondrial.any():
        percent[:] = 0  # cells without counts have 0 %
        np.divide(mitochondrial, total, out=percent, where=total > 0)
        percent *= 100
    n_genes = np.diff(counts.indptr).astype(np.int64)
    return Measures(n_genes, total.astype(np.float64), percent)


def measure_cells(
    cells: Cells, *, mitochondrial_prefix: str = "MT-", max_cells: int = 1024
) -> pd.DataFrame:
    """Measure every cell, a block at a time.

    Returns
    -------
    A column for each of ``Measures``, indexed by cell name.
    """
    is_mitochondrial = mitochondrial_genes(cells, mitochondrial_prefix)
    parts = [measure_block(block, is_mitochondrial) for _, block in cells.blocks(max_cells)]
    columns = map(np.concatenate, zip(*parts, strict=True))
    measures = dict(zip(Measures._fields, columns, strict=True))
    return pd.DataFrame(measures, index=pd.Index(cells.names(0, cells.n_cells)))


@compiled
def _sum_counts(indptr, gene_index, counts, is_mitochondrial, total, mitochondrial):
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            total[row] += counts[i]
            if is_mitochondrial[gene_index[i]]:
                mitochondrial[row] += counts[i]


def score_doublets(
    cells: Cells,
    total_counts: NDArray[np.float64],
    batch: pd.Categorical | None = None,
    *,
    seed: int = 0,
) -> tuple[NDArray[np.float64], list[str]]:
    """Score doublets with Scrublet, one batch at a time: doublets form within a batch.

    Parameters
    ----------
    cells
        The cells.
    total_counts
        Of each cell, ``(n_cells,)``; cells without counts get no score.
    batch
        Batch of each cell; one batch if None.
    seed
        Of Scrublet's simulation; the same seed gives the same scores.

    Returns
    -------
    Score of each cell, ``(n_cells,)``, 0 to 1 (NaN where there is none), and messages.
    """
    scores = np.full(len(total_counts), np.nan)
    messages = []
    if batch is None:
        batch = pd.Categorical.from_codes(
            np.zeros(len(scores), np.int8), pd.Index(["all cells"], dtype=object)
        )
    groups = {name: code for code, name in enumerate(batch.categories)}
    if (batch.codes < 0).any():
        groups["(no batch)"] = -1
    for name, code in sorted(groups.items()):
        rows = np.flatnonzero((batch.codes == code) & (total_counts > 0))
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
        scores[rows] = adata.obs["doublet_score"].to_numpy()
    return scores, messages


class Reasons:
    """Why cells are dropped: of each the first reason that was told, two bytes a cell."""

    def __init__(self, n_cells: int) -> None:
        self.codes = np.zeros(n_cells, dtype=np.int16)  # into texts; 0: the cell stays
        self.texts = [""]

    def drop(self, bad: NDArray[np.bool_], reason: str) -> None:
        """Drop the cells that are ``bad`` and were not dropped before."""
        bad = np.asarray(bad) & (self.codes == 0)
        if bad.any():
            if reason not in self.texts:
                self.texts.append(reason)
            self.codes[bad] = self.texts.index(reason)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """True for the cells that stay, ``(n_cells,)``."""
        return self.codes == 0

    def count(self) -> dict[str, int]:
        """Return the number of cells for each reason, by name."""
        n_of_reason = np.bincount(self.codes, minlength=len(self.texts))
        counted = zip(self.texts[1:], n_of_reason[1:].tolist(), strict=True)
        return dict(sorted((text, n) for text, n in counted if n))

    def __str__(self) -> str:
        return "; ".join(f"{n:,}: {text}" for text, n in self.count().items()) or "none"


def drop_cells(
    reasons: Reasons,
    measures: Measures,
    config: QualityControlConfig,
    doublet_score: NDArray[np.float64] | None = None,
) -> None:
    """Apply the thresholds; the first reason is the one that is told.

    Parameters
    ----------
    reasons
        Of the cells dropped so far; gets more.
    measures
        Of the cells, as arrays.
    config
        The thresholds.
    doublet_score
        Where doublets were scored, ``(n_cells,)``.
    """
    percent = measures.pct_counts_mt
    if config.max_percent_mitochondrial is not None and np.isnan(percent).all():
        raise ValueError(
            f"max_percent_mitochondrial is {config.max_percent_mitochondrial}, but no gene symbol "
            f"starts with {config.mitochondrial_prefix!r}: set mitochondrial_prefix or "
            "gene_symbol_key, or max_percent_mitochondrial: null"
        )
    n_genes, total = measures.n_genes, measures.total_counts
    reasons.drop(total == 0, "no counts")
    reasons.drop(total < config.min_counts, f"fewer than {config.min_counts} counts")
    reasons.drop(n_genes < config.min_genes, f"fewer than {config.min_genes} genes")
    if config.max_genes is not None:
        reasons.drop(n_genes > config.max_genes, f"more than {config.max_genes} genes")
    if (most := config.max_percent_mitochondrial) is not None:
        reasons.drop(percent > most, f"more than {most:g} % mitochondrial counts")
    if (most := config.max_doublet_score) is not None and doublet_score is not None:
        reasons.drop(doublet_score > most, f"doublet score above {most:g}")


def drop_labels(
    reasons: Reasons,
    labels: pd.Categorical,
    *,
    ignore: list[str] | None = None,
    min_cells: int = 2,
) -> None:
    """Drop the cells that no cell type can be learned from.

    Parameters
    ----------
    reasons
        Of the cells dropped so far, which do not count as cells of a type; gets more.
    labels
        Cell type of each cell.
    ignore
        Labels that are no cell type.
    min_cells
        Fewest cells of a type; the cells of rarer types are dropped.
    """
    names = labels.categories.tolist()
    reasons.drop((labels.codes < 0) | (labels == ""), "no label")
    for label in ignore or []:
        if label in names:
            reasons.drop(labels == label, f"label {label!r}")
    kept = labels.codes[reasons.kept]
    n_of_type = np.bincount(kept[kept >= 0], minlength=len(names))
    for name, n in sorted(zip(names, n_of_type.tolist(), strict=True)):
        if 0 < n < min_cells:
            reasons.drop(labels == name, f"type {name!r}: {n} cells, fewer than {min_cells}")
