import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.sparse import csr_matrix

from configs.schema import QualityControlConfig
from dataset.choose_cells import categories
from dataset.quality_control import (
    Measures,
    Reasons,
    drop_cells,
    drop_labels,
    measure_cells,
    score_doublets,
)
from dataset.read import open_cells


@pytest.fixture
def cells(cells_adata, tmp_path):
    counts = cells_adata.X.toarray()
    counts[7] = 0
    cells_adata.X = csr_matrix(counts)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    return open_cells(tmp_path / "cells.h5ad")


def test_measures_are_those_of_scanpy_whatever_the_block(cells, cells_adata):
    adata = cells.to_anndata()
    adata.var["mt"] = adata.var["gene_symbol"].str.startswith("MT-")
    expected, _ = sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False)
    for max_cells in (7, 1024):
        metrics = measure_cells(cells, max_cells=max_cells)
        assert list(metrics.columns) == ["n_genes", "total_counts", "pct_counts_mt"]
        np.testing.assert_array_equal(metrics["n_genes"], expected["n_genes_by_counts"])
        np.testing.assert_array_equal(metrics["total_counts"], expected["total_counts"])
        np.testing.assert_allclose(
            metrics["pct_counts_mt"], expected["pct_counts_mt"].fillna(0), rtol=1e-6
        )
    assert metrics["total_counts"].iloc[7] == 0


def test_mitochondrial_genes_are_found_in_any_case(cells):
    assert (
        measure_cells(cells, mitochondrial_prefix="mt-")["pct_counts_mt"].max()
        == measure_cells(cells)["pct_counts_mt"].max()
        > 0
    )


def test_no_mitochondrial_gene_is_an_error_only_with_a_threshold(cells):
    metrics = measure_cells(cells, mitochondrial_prefix="mito:")
    measures = Measures(*(metrics[name].to_numpy() for name in Measures._fields))
    reasons = Reasons(120)
    drop_cells(reasons, measures, QualityControlConfig(min_genes=1))
    assert reasons.kept.sum() == 119
    with pytest.raises(ValueError, match="no gene symbol starts with"):
        drop_cells(reasons, measures, QualityControlConfig(max_percent_mitochondrial=10))


def test_every_dropped_cell_has_its_first_reason():
    measures = Measures(
        n_genes=np.array([0, 5, 50, 500, 50, 50, 50]),
        total_counts=np.array([0.0, 9, 100, 900, 100, 100, 100]),
        pct_counts_mt=np.array([0.0, 0, 0, 0, 30, 0, 0]),
    )
    doublet_score = np.array([np.nan, 0.1, 0.1, 0.1, 0.9, 0.9, np.nan])
    config = QualityControlConfig(
        min_genes=20,
        max_genes=200,
        max_percent_mitochondrial=20,
        scrublet=True,
        max_doublet_score=0.5,
    )
    reasons = Reasons(7)
    drop_cells(reasons, measures, config, doublet_score)
    assert [reasons.texts[code] for code in reasons.codes] == [
        "no counts",
        "fewer than 20 genes",
        "",
        "more than 200 genes",
        "more than 20 % mitochondrial counts",
        "doublet score above 0.5",
        "",
    ]
    assert reasons.kept.tolist() == [False, False, True, False, False, False, True]
    assert reasons.count()["no counts"] == 1
    assert str(reasons).startswith("1: doublet score above 0.5; 1: fewer than 20 genes; ")


def test_doublets_are_scored_within_a_batch_and_repeatably(tmp_path):
    from dataset.sources import synthetic_cells

    adata = synthetic_cells(np.random.default_rng(0), n_cells=170, n_donors=2)
    adata.obs["donor"] = ["a"] * 80 + ["b"] * 80 + ["c"] * 10
    adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_cells(tmp_path / "cells.h5ad")
    total = measure_cells(cells)["total_counts"].to_numpy()
    donors = pd.Categorical(cells.obs["donor"])
    scores, messages = score_doublets(cells, total, donors)
    again, _ = score_doublets(cells, total, donors)
    np.testing.assert_array_equal(scores, again)
    assert ((scores[:160] >= 0) & (scores[:160] <= 1)).all()
    assert np.isnan(scores[160:]).all()
    assert messages == ["no doublet scores for batch 'c': 10 cells, Scrublet needs 50"]
    adata[:80].copy().write_h5ad(tmp_path / "first.h5ad")
    alone = open_cells(tmp_path / "first.h5ad")
    first, _ = score_doublets(alone, total[:80])
    np.testing.assert_array_equal(first, scores[:80])


def test_labels_nothing_can_be_learned_from():
    stored = pd.Series(["T", "T", "T", "B", None, np.nan, " ", "doublet", "B"], dtype="category")
    reasons = Reasons(9)
    drop_labels(reasons, categories(stored, strip=True), ignore=["doublet"], min_cells=3)
    assert [reasons.texts[code] for code in reasons.codes] == [
        "",
        "",
        "",
        "type 'B': 2 cells, fewer than 3",
        "no label",
        "no label",
        "no label",
        "label 'doublet'",
        "type 'B': 2 cells, fewer than 3",
    ]


def test_a_cell_dropped_before_does_not_count_for_its_type():
    reasons = Reasons(4)
    reasons.drop(np.array([True, False, False, False]), "no counts")
    drop_labels(reasons, pd.Categorical(["T", "T", "B", "B"]), min_cells=2)
    assert reasons.codes.tolist() == [1, 2, 0, 0]
