"""01 on forty cells with names that no figure expects, and what it shows where it has to stop."""

from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import yaml

from dataset.sources import synthetic_cells

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run_01(tmp_path):
    """Write forty cells, and return what runs 01 on them with the example's settings."""
    cells = synthetic_cells(
        np.random.default_rng(1), n_cells=40, n_genes=400, counts_per_cell=3000
    )
    cells.obs["cell_type"] = [rf"$\frac{{$ {'x' * 60} {name}" for name in cells.obs["cell_type"]]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    example = yaml.safe_load((ROOT / "configs" / "preprocess" / "example.yaml").read_text())

    def run(**settings):
        config = example | {"input": str(tmp_path / "cells.h5ad"), "data_dir": str(tmp_path)}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | settings))
        parameters = {"config": str(tmp_path / "config.yaml")}
        out = tmp_path / "out.ipynb"
        notebook = ROOT / "01_preprocess_sc_data.ipynb"
        papermill.execute_notebook(notebook, out, parameters, cwd=ROOT, progress_bar=False)
        return nbformat.read(out, 4)

    return run


@pytest.mark.slow
def test_forty_cells_go_through_with_the_settings_of_the_example(run_01):
    outputs = [o for c in run_01().cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    text = "".join(output.get("text", "") for output in outputs)
    assert "no doublet scores for batches of fewer than 50 cells" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"quality_control": {"min_genes": 390}},
            r"EncodeError: \d\d of 40 cells would be dropped.* min_genes 390 drops",
        ),
        ({"batch_key": "donr"}, "CellFileError: .*no obs column 'donr'"),
    ],
)
def test_what_stops_it_is_shown_as_a_sentence(run_01, settings, sentence):
    with pytest.raises(papermill.PapermillExecutionError, match=sentence) as caught:
        run_01(**settings)
    assert len(caught.value.traceback) == 1  # what the cell shows: no frame of any file
    assert "\n" not in caught.value.traceback[0]
