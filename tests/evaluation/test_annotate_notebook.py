"""Notebook 04 runs through on a handful of cells and on types called anything."""

import json
from pathlib import Path

import anndata as ad
import papermill
import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("n_cells", [1, 7])
def test_a_handful_of_cells(n_cells, network_run, changed_run, query, tmp_path):
    names = [r"$\frac{$", "_b", "x" * 60, "two\nlines"]
    run = changed_run(network_run)
    (run / "data" / "class_names.json").write_text(json.dumps(names))
    changed_run.sum_up(run)
    papermill.execute_notebook(
        ROOT / "04_annotate_new_cells.ipynb",
        tmp_path / "executed.ipynb",
        {
            "run": str(run),
            "query": str(query(lambda adata: adata[:n_cells].copy())),
            "output": str(tmp_path / "annotated.h5ad"),
        },
        cwd=ROOT,
        progress_bar=False,
    )
    written = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert written.n_obs == n_cells
    assert set(written.obs["predicted_cell_type"]) <= set(names)
