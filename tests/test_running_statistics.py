"""Runs with running statistics, of domains: two processes, a resume, an average, and 04."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.sources import synthetic_cells
from dataset.store.encoded_folder import EncodedFolder
from evaluation.annotate import annotate
from evaluation.calibration import apply_temperature
from tests.test_several_processes import weights_of
from tests.two_processes import load_script, run_alone, run_on_two

STOPPED_IN = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Encode cells of two donors, both of them in train, val and test."""
    folder = tmp_path_factory.mktemp("cells")
    cells = synthetic_cells(
        np.random.default_rng(0), n_cells=150, n_genes=50, n_types=3, n_donors=2
    )
    cells.write_h5ad(folder / "cells.h5ad")
    config = {
        "name": "cells", "input": f"{folder}/cells.h5ad", "label_key": "cell_type",
        "condition_keys": ["donor"], "quality_control": {"min_genes": 5},
        "tokenizer": {"kind": "gene_values", "n_top_genes": 30}, "data_dir": str(folder),
    }  # fmt: skip
    encode(PreprocessConfig.model_validate(config), progress=False)
    return folder


@pytest.fixture(scope="module")
def runs(folder) -> Path:
    """Train alone, on two, on shards, stopped here and resumed there; dropout is off.

    The last batch of an epoch holds one cell, so that one of the two processes has none of it.
    """
    n_cells = len(EncodedFolder(folder / "cells").split("train"))
    values = {
        "name": "one", "data": f"{folder}/cells", "runs_dir": f"{folder}/runs", "device": "cpu",
        "model": {
            "kind": "value_transformer", "d_model": 16, "n_heads": 2, "n_layers": 1, "dropout": 0,
            "cls_init": "learned", "batch_norm_by": "donor",
            # Not mlp: the norm takes away what its last bias adds to all values, so that the
            # gradient is 0 but for rounding, and AdamW makes steps of a usual size out of that.
            "value_embedding": "bins",
        },
        "objectives": [
            {"kind": "classify"},
            {"kind": "condition_adversary", "condition": "donor", "weight": 0.2},
        ],
        "optim": {
            "max_epochs": 3, "lr": 3e-3, "weight_averaging": 0.9,
            "batch_size": next(size for size in range(11, n_cells) if n_cells % size == 1),
        },
        "augment": {"count_thinning": 0.3}, "tracking": {"wandb": "disabled"},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    script, command = load_script(), f"--config {folder}/config.yaml name="

    alone = partial(run_alone, script)
    alone(f"-1 {command}one")
    alone(f"{STOPPED_IN} {command}one_then_two")
    run_on_two(
        [
            f"-1 {command}two",
            f"-1 {command}one_then_two",
            f"-1 {command}sharded parallel=fsdp",
            f"{STOPPED_IN} {command}two_then_one",
        ],
        timeout=300,
    )
    alone(f"-1 {command}two_then_one")
    return folder / "runs"


@pytest.mark.parametrize("name", ["two", "one_then_two", "sharded", "two_then_one"])
def test_neither_processes_nor_a_resume_matter(runs, name):
    one, other = (weights_of(runs / run) for run in ("one", name))
    assert one["network.batch_norm.num_batches_tracked"].min() > 3
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(other[key], one[key], atol=3e-5, rtol=0, err_msg=key)
    one, other = (json.loads((runs / n / "metrics.json").read_text()) for n in ("one", name))
    assert one["val"].keys() >= {
        "condition_adversary_accuracy", "condition_adversary_cross_entropy"
    }  # fmt: skip
    for split in ("val", "test"):
        assert one[split] == pytest.approx(other[split], abs=1e-4)


def test_04_predicts_with_the_statistics_that_are_stored(folder, runs):
    assert np.abs(weights_of(runs / "one")["network.batch_norm.running_mean"]).max() > 0.01
    found = annotate(runs / "one", folder / "cells.h5ad", folder / "annotated.h5ad")
    test = np.load(runs / "one" / "predictions_test.npz")
    rows = found.cells.index.get_indexer(test["cell_names"])
    expected = apply_temperature(test["probabilities"], found.temperature)
    np.testing.assert_allclose(found.probabilities[rows], expected, atol=1e-5)
