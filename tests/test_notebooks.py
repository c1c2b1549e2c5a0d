"""The notebooks: paired with their text, free of outputs and logic, and they run through."""

import ast
from pathlib import Path

import anndata as ad
import jupytext
import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("0*.ipynb"))
PARAMETERS = {
    "01_preprocess_sc_data": {"config", "overwrite"},
    "03_compile_evaluation_metrics": {"runs", "output"},
    "04_annotate_new_cells": {"run", "query", "output"},
}


def by_name(notebooks):
    return pytest.mark.parametrize("path", notebooks, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_every_notebook_is_known():
    assert {path.stem for path in NOTEBOOKS} == set(PARAMETERS)


@by_name(NOTEBOOKS)
def test_text_pair_says_the_same(path):
    text = jupytext.read(ROOT / "tests" / "notebooks" / f"{path.stem}.py")
    pair = nbformat.read(path, 4)
    assert [(c.cell_type, c.source) for c in text.cells] == [
        (c.cell_type, c.source) for c in pair.cells
    ], f"run: jupytext --sync {path.name}"


@by_name(NOTEBOOKS)
def test_committed_without_outputs(path):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(path))


@by_name(NOTEBOOKS)
def test_cells_call_functions_and_hold_no_logic(path):
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 20
        tree = ast.parse(cell.source)
        defined = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert not defined, cell.source


@by_name(NOTEBOOKS)
def test_first_code_cell_holds_the_parameters(path):
    first = code_cells(path)[0]
    assert first.metadata.tags == ["parameters"]
    names = set()
    for statement in ast.parse(first.source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)  # raises unless it is a plain literal
        names.add(statement.targets[0].id)
    assert PARAMETERS[path.stem] <= names


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, synthetic_h5ad, run_pipeline):
    """01 -> 02 -> 03 -> 04 on synthetic cells, as a user runs them."""
    folder = tmp_path_factory.mktemp("pipeline")
    query = ad.read_h5ad(synthetic_h5ad)
    query.obs = query.obs[[]]
    query.write_h5ad(folder / "query.h5ad")
    trainings = {
        "smoke": ["smoke"],
        "logistic_regression": ["logistic_regression_baron_human"],
    }
    return folder, run_pipeline(folder, synthetic_h5ad, folder / "query.h5ad", trainings)


def test_pipeline_draws_figures(pipeline):
    _, executed = pipeline
    for name, path in executed.items():
        drawn = [
            output
            for cell in code_cells(path)
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        ]
        assert len(drawn) >= 3, f"{name} drew {len(drawn)} figures"


def test_pipeline_ends_in_a_verdict(pipeline):
    folder, _ = pipeline
    text = (folder / "RESULTS.md").read_text()
    assert "logistic_regression" in text
    assert "transformer" in text


def test_pipeline_labels_new_cells(pipeline, synthetic_h5ad):
    folder, _ = pipeline
    annotated = ad.read_h5ad(folder / "annotated.h5ad")
    truth = ad.read_h5ad(synthetic_h5ad).obs["cell_type"]
    assert np.mean(annotated.obs["predicted_cell_type"].astype(str) == truth.astype(str)) > 0.8
    assert annotated.obs["confidence"].between(0, 1).all()
