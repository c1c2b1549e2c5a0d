"""01 to 04 on 40 cells, and on so many that neighbors are searched for approximately."""

import anndata as ad
import nbformat
import numpy as np
import pytest

from dataset.sources import synthetic_cells
from dataset.store.encoded_folder import EncodedFolder

BASELINES = ("majority", "logistic_regression", "linear_svm", "knn", "gradient_boosting")


def write_cells(folder, n_cells, **shape):
    """Write labeled cells, and the same cells without their labels."""
    cells = synthetic_cells(np.random.default_rng(3), n_cells=n_cells, **shape)
    cells.write_h5ad(folder / "cells.h5ad")
    query = ad.AnnData(cells.X, obs=cells.obs[[]], var=cells.var)
    query.write_h5ad(folder / "query.h5ad")
    return folder / "cells.h5ad", folder / "query.h5ad", cells.obs["cell_type"].astype(str)


def trainings(*baselines, **network):
    """One small network, which names the query's cells, and baselines."""
    overrides = [f"{key}={value}" for key, value in network.items()]
    runs = {"network": ["smoke", "model.d_model=16", "model.n_layers=1", *overrides]}
    return runs | {name: [f"{name}_baron_human"] for name in baselines}


def n_figures(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs)


def check(folder, executed, truth, *, fewest_right):
    for number, path in executed.items():
        assert n_figures(path) >= 3, number
    annotated = ad.read_h5ad(folder / "annotated.h5ad").obs
    assert list(annotated.index) == list(truth.index)
    assert annotated["confidence"].between(0, 1).all()
    assert np.mean(annotated["predicted_cell_type"].astype(str) == truth) >= fewest_right


@pytest.mark.slow
def test_forty_cells(tmp_path, run_pipeline):
    cells, query, truth = write_cells(tmp_path, 40, n_genes=80)
    executed = run_pipeline(
        tmp_path,
        cells,
        query,
        trainings(*BASELINES),
        quality_control={"min_genes": 10, "scrublet": True},
    )
    check(tmp_path, executed, truth, fewest_right=0.5)
    report = (tmp_path / "RESULTS.md").read_text()
    assert all(name in report for name in BASELINES)


@pytest.mark.slow
def test_nine_thousand_cells(tmp_path, run_pipeline):
    # From 8,192 cells on scanpy searches neighbors with pynndescent: here in Scrublet (3,000
    # cells a donor, and two made-up doublets for each), in 01, in 03 (test) and in 04.
    cells, query, truth = write_cells(tmp_path, 9000, n_genes=200, n_donors=3)
    executed = run_pipeline(
        tmp_path,
        cells,
        query,
        trainings("majority", "logistic_regression"),
        quality_control={"min_genes": 10, "scrublet": True},
        split={"val_fraction": 0.03, "test_fraction": 0.94},
        tokenizer={"kind": "rank", "n_tokens": 32},
    )
    check(tmp_path, executed, truth, fewest_right=0.8)
    encoded = EncodedFolder(tmp_path / "data" / "cells").cells
    assert (encoded["split"] == "test").sum() > 8192
    assert encoded["doublet_score"].notna().all()
