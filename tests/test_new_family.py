"""A family that nobody knows, a file each and a line in each union, goes through the pipeline."""

import json
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from dataset.sources import synthetic_cells
from tests.new_family.house import TOYS, build_house, run_python
from tests.two_processes import ROOT, run_on_two

# Where a toy goes: its file, the union, and what the union's line becomes.
MOVES_IN = (
    ("toy_tokenizer", "dataset/tokenizers", "dataset/__init__.py", "ToyTokenizerConfig"),
    ("toy_network", "models", "models/__init__.py", "ToyNetworkConfig"),
    ("toy_objective", "models/objectives", "models/objectives/__init__.py", "ToyObjectiveConfig"),
)
OBJECTIVES = [{"kind": "classify"}, {"kind": "toy_objective", "weight": 0.1}]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """Copy the project, and let the toys move in."""
    return build_house(tmp_path_factory.mktemp("house"), MOVES_IN)


@pytest.fixture(scope="module")
def python(house):
    """Return a function that runs Python in the copy, and returns what it prints."""
    return partial(run_python, house)


@pytest.fixture(scope="module")
def runs(house, python) -> Path:
    """Encode twice, pretrain without labels, fine-tune whole, in two halves and on two."""
    cells = synthetic_cells(np.random.default_rng(0), n_cells=240, n_genes=80)
    cells.write_h5ad(house / "cells.h5ad")
    encode = "from dataset.config import PreprocessConfig as C; from dataset.encode import encode;"
    for name, label_key in (("labeled", "cell_type"), ("unlabeled", None)):
        config = {
            "name": name, "input": "cells.h5ad", "label_key": label_key,
            "quality_control": {"min_genes": 5}, "split": {"key": "donor"},
            "tokenizer": {"kind": "toy"},
        }  # fmt: skip
        (house / f"{name}.yaml").write_text(yaml.safe_dump(config))
        python("-c", f"{encode} encode(C.load('{name}.yaml'), progress=False)")
    config = {
        "name": "one", "data": "data/labeled", "model": {"kind": "toy_network"},
        "optim": {"max_epochs": 15, "batch_size": 31, "lr": 0.03},
        "augment": {"token_dropout": 0.1, "count_thinning": 0.3},
        "tracking": {"wandb": "disabled"}, "device": "cpu",
    }  # fmt: skip
    (house / "train.yaml").write_text(yaml.safe_dump(config))
    pretrain = ["data=data/unlabeled", "name=pretrained", 'objectives=[{"kind":"toy_objective"}]']
    python("02_train_model.py", "--config", "train.yaml", *pretrain)
    config |= {"objectives": OBJECTIVES, "init_from": "runs/pretrained"}
    (house / "train.yaml").write_text(yaml.safe_dump(config))
    python("02_train_model.py", "--config", "train.yaml", "name=one")
    lines = ("-1 --config train.yaml name=two", "2 --config train.yaml name=halves")
    run_on_two(lines, house, timeout=300)
    python("02_train_model.py", "--config", "train.yaml", "name=halves")
    return house / "runs"


def test_the_toys_are_small():
    n = {toy: len((TOYS / f"{toy}.py").read_text().splitlines()) for toy, *_ in MOVES_IN}
    assert n["toy_tokenizer"] <= 45  # with imports and blank lines
    assert n["toy_network"] + n["toy_objective"] <= 90


def test_what_the_tokenizer_wrote_and_learned_is_stored_by_name(house, runs):
    folder = house / "data" / "labeled"
    token_ids, values = (np.load(folder / "train" / f"{n}.npy") for n in ("token_ids", "values"))
    assert values.shape == token_ids.shape
    assert (values[token_ids >= 4] > 0).all()
    assert np.load(folder / "learned" / "weight.npy").max() == 2


def test_pretraining_needs_no_labels_and_its_weights_are_taken_over(runs):
    metrics = json.loads((runs / "pretrained" / "metrics.json").read_text())
    assert metrics["val"].keys() == {"toy_loss"}
    lines = (runs / "pretrained" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["val/toy_loss"] for line in lines if "val/toy_loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    report = json.loads((runs / "one" / "metrics.json").read_text())["init_from"]
    assert report["genes_matched"] == report["n_genes"]
    assert report["copied"] == 3  # the embedding, and the toy objective's weight and bias
    assert all(name.startswith("heads.classify") for name in report["not_found"])


@pytest.mark.parametrize("other", ["two", "halves"])
def test_processes_and_a_resume_change_nothing(runs, other):
    one, found = (load_file(runs / name / "model.safetensors") for name in ("one", other))
    assert one.keys() == found.keys()
    a, b = (np.load(runs / name / "predictions_test.npz") for name in ("one", other))
    for name in ("probabilities", "embeddings", "toy_error"):
        np.testing.assert_allclose(a[name], b[name], atol=1e-3, err_msg=name)


def test_the_loop_logs_every_objective(runs):
    lines = [
        json.loads(line) for line in (runs / "one" / "metrics.jsonl").read_text().splitlines()
    ]
    points = [line for line in lines if "train/loss" in line]
    for point in points:
        expected = point["train/classify_loss"] + 0.1 * point["train/toy_objective_loss"]
        assert point["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert not any("flop" in name for point in points for name in point)  # nobody counts them
    assert json.loads((runs / "one" / "metrics.json").read_text())["test"]["macro_f1"] > 0.6


def test_runs_are_compared_and_new_cells_annotated(house, runs, python):
    config = ROOT / "configs" / "train" / "majority_baron_human.yaml"
    python("02_train_model.py", "--config", str(config), "name=majority", "data=data/labeled",
           "tracking.wandb=disabled")  # fmt: skip
    compare = (
        "from evaluation.compare import compare_runs; from evaluation import results;"
        "c = compare_runs('runs', n_resamples=50, seed=0, margin=.02);"
        "results.write_results(c, 'RESULTS.md', 'a command')"
    )
    python("-c", compare)
    report = (house / "RESULTS.md").read_text()
    assert "toy_network" in report or "one" in report
    annotate = (
        "from evaluation.annotate import annotate; annotate('runs/one', 'cells.h5ad', 'a.h5ad')"
    )
    python("-c", annotate)
    annotated = ad.read_h5ad(house / "a.h5ad")
    right = annotated.obs["predicted_cell_type"].astype(str) == annotated.obs["cell_type"].astype(
        str
    )
    assert right.mean() > 0.6  # chance is a quarter
    assert annotated.obsm["X_nanocell"].shape == (240, 16)
