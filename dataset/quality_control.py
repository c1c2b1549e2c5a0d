"""Quality control of cells: scanpy's measures, the config's thresholds."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dataset.compiled import compiled
from dataset.config import QualityControlConfig
from dataset.cut_list import cut_list
from dataset.encode_error import EncodeError
from dataset.reasons import Reasons
from dataset.store.blocks import cut_shares
from dataset.store.count_store import CountStore
from dataset.store.csr_file import CsrFile, Rows
from dataset.workers import Steps


class Measures(NamedTuple):
    """Measures of each cell: scanpy's ``calculate_qc_metrics``, to the last bit."""

    n_genes: NDArray[np.int64]  # (n,), detected
    total_counts: NDArray[np.float64]  # (n,)
    pct_counts_mt: NDArray[np.float64]  # (n,), of mitochondrial genes; NaN where there are none


def mitochondrial_genes(gene_symbols: NDArray, prefix: str = "MT-") -> NDArray[np.bool_]:
    """Say which genes are mitochondrial, by the start of their symbol, in any case."""
    prefix = prefix.upper()
    return np.array([str(symbol).upper().startswith(prefix) for symbol in gene_symbols])


def measure_block(counts: Rows, is_mitochondrial: NDArray[np.bool_]) -> Measures:
    """Measure the cells of a block."""
    total, mitochondrial = np.zeros((2, len(counts.indptr) - 1), dtype=np.int64)
    _sum_counts(*counts, is_mitochondrial, total, mitochondrial)
    percent = np.full(len(total), np.nan)
    if is_mitochondrial.any():
        percent[:] = 0  # cells without counts have 0 %
        np.divide(mitochondrial, total, out=percent, where=total > 0)
        percent *= 100
    n_genes = np.diff(counts.indptr).astype(np.int64)
    return Measures(n_genes, total.astype(np.float64), percent)


def measure_share(
    share: tuple[int, int], counts: Path, is_mitochondrial: NDArray[np.bool_]
) -> Measures:
    """Measure some consecutive cells of a CSR matrix on the disk."""
    return measure_block(CsrFile(counts).rows(*share), is_mitochondrial)


def measure_cells(
    store: CountStore, *, mitochondrial_prefix: str = "MT-", steps: Steps | None = None
) -> Measures:
    """Measure every cell, here or by the workers of ``steps``."""
    is_mitochondrial = mitochondrial_genes(store.gene_symbols, mitochondrial_prefix)
    step = partial(measure_share, counts=store.path, is_mitochondrial=is_mitochondrial)
    shares = cut_shares(0, store.n_cells)
    parts = map(step, shares) if steps is None else steps.run("measure", step, shares)
    return Measures(*map(np.concatenate, zip(*parts, strict=True)))


@compiled
def _sum_counts(indptr, gene_index, counts, is_mitochondrial, total, mitochondrial):
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            total[row] += counts[i]
            if is_mitochondrial[gene_index[i]]:
                mitochondrial[row] += counts[i]


def drop_cells(reasons: Reasons, measures: Measures, config: QualityControlConfig) -> None:
    """Apply the thresholds to what was measured; the first reason is the one reported.

    Parameters
    ----------
    reasons
        Of the cells dropped so far; gets more.
    measures
        Of the cells, as arrays.
    config
        The thresholds.

    Raises
    ------
    EncodeError
        If there is a threshold for mitochondrial genes, and no such gene.
    """
    percent = measures.pct_counts_mt
    if config.max_percent_mitochondrial is not None and np.isnan(percent).all():
        raise EncodeError(
            f"max_percent_mitochondrial is {config.max_percent_mitochondrial:g}, but no gene "
            f"symbol starts with {config.mitochondrial_prefix!r}: set mitochondrial_prefix or "
            "gene_symbol_key, or max_percent_mitochondrial: null"
        )
    n_genes, total = measures.n_genes, measures.total_counts
    usual_genes = f"the median cell has {np.median(n_genes):,.0f} genes: set quality_control."
    usual_counts = f"the median cell has {np.median(total):,.0f} counts: set quality_control."
    reasons.drop(total == 0, "no counts", "having no counts", "leave out what are no cells")
    if (least := config.min_counts) > 1:
        reasons.drop(
            total < least, f"fewer than {least} counts", f"min_counts {least}",
            f"{usual_counts}min_counts",
        )  # fmt: skip
    least = config.min_genes
    reasons.drop(
        n_genes < least, f"fewer than {least} genes", f"min_genes {least}",
        f"{usual_genes}min_genes",
    )  # fmt: skip
    if (largest := config.max_genes) is not None:
        reasons.drop(
            n_genes > largest, f"more than {largest} genes", f"max_genes {largest}",
            f"{usual_genes}max_genes",
        )  # fmt: skip
    if (most := config.max_percent_mitochondrial) is not None:
        reasons.drop(
            percent > most,
            f"more than {most:g} % mitochondrial counts",
            f"max_percent_mitochondrial {most:g}",
            f"the median cell has {np.median(percent):.3g} %: set "
            "quality_control.max_percent_mitochondrial",
        )


def drop_unlabelled(
    reasons: Reasons, labels: pd.Categorical, label_key: str, ignore: list[str] | None = None
) -> None:
    """Drop the cells without a cell type.

    Parameters
    ----------
    reasons
        Of the cells dropped so far; gets more.
    labels
        Cell type of each cell.
    label_key
        The column they are from.
    ignore
        Labels that are no cell type.
    """
    codes, names = labels.codes.astype(np.int64), labels.categories.tolist()
    empty = names.index("") if "" in names else -1
    reasons.drop(
        (codes < 0) | (codes == empty), "no label", f"label_key {label_key!r} without a value",
        "name a column that labels more of the cells (label_key), or leave the others out",
    )  # fmt: skip
    ignored = {names.index(label): f"label {label!r}" for label in ignore or [] if label in names}
    reasons.drop_coded(
        codes, ignored, f"ignore_labels ({cut_list(ignore or [])})",
        "take out of ignore_labels what is a cell type",
    )  # fmt: skip


def drop_rare_types(
    reasons: Reasons,
    labels: pd.Categorical,
    n_of_type: NDArray[np.integer],
    min_cells: int,
    where: str,
) -> None:
    """Drop the cells of the types that no cell type can be learned from.

    Parameters
    ----------
    reasons
        Of the cells dropped so far; gets more.
    labels
        Cell type of each cell.
    n_of_type
        Cells of each type that count, ``(n_types,)``.
    min_cells
        Fewest cells of a type; all cells of rarer types are dropped.
    where
        Which cells were counted, for people: ``train cells``.
    """
    codes = labels.codes.astype(np.int64)
    codes[~reasons.kept] = -1  # types of which every cell is dropped already are not reported
    present = np.unique(codes[codes >= 0]).tolist()
    rare = {
        code: f"type {name!r}: {n_of_type[code]} {where}, fewer than {min_cells}"
        for code, name in zip(present, labels.categories[present], strict=True)
        if n_of_type[code] < min_cells
    }
    reasons.drop_coded(
        codes, rare, f"min_cells_per_class {min_cells}",
        f"{len(rare):,} of {len(present):,} types have fewer {where}: set min_cells_per_class, "
        "or name a column of coarser types (label_key)",
    )  # fmt: skip
