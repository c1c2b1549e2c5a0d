"""What one process computes at once, two give, and parts: they only differ by rounding."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from dataset.store.encoded_folder import EncodedFolder
from tests.two_processes import load_script, run_alone, run_on_two
from training.tracking import read_metrics

# Sums of float32 in another order, over 12 updates of a learning rate of 3e-3. Of a thousand
# weights 999 were found within 8e-7. AdamW divides by the size of a gradient, so a weight whose
# gradient is next to nothing moves by its rounding: one of ten thousand was 4e-5 away.
NEARLY_ALL, ALL, NUMBERS = 3e-6, 1e-4, 1e-4
N_EPOCHS, STOPPED_IN = 6, 2
IN_PARTS = "optim.tokens_per_batch=600"  # a few cells at a time


@pytest.fixture(scope="module")
def runs(tmp_path_factory, encoded_folder) -> Path:
    """Make the same run in every way: alone, on two, in parts, stopped here and resumed there.

    Augmentation is on, dropout off. The last batch of an epoch holds one cell, so that one of the
    two processes has none of it.
    """
    folder = tmp_path_factory.mktemp("runs")
    n_cells = len(EncodedFolder(encoded_folder).split("train"))
    size = next(size for size in range(11, n_cells) if n_cells % size == 1)
    values = {
        "name": "one",
        "data": str(encoded_folder),
        "runs_dir": str(folder),
        "model": {
            "kind": "rank_transformer", "d_model": 16, "n_heads": 2, "context_genes": 24,
            "dropout": 0,
        },
        "optim": {
            "max_epochs": N_EPOCHS, "batch_size": size, "lr": 3e-3,
        },
        "objectives": [{"kind": "classify", "class_balanced": True}],
        "augment": {"token_dropout": 0.2, "count_thinning": 0.5},
        "tracking": {"wandb": "disabled"},
        "device": "cpu",
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    script, command = load_script(), f"--config {path} name="

    alone = partial(run_alone, script)
    alone(f"-1 {command}one")
    alone(f"-1 {command}one_in_parts {IN_PARTS}")
    alone(f"{STOPPED_IN} {command}one_then_two {IN_PARTS}")
    averaged = "optim.weight_averaging=0.9 optim.gene_embedding_lr=0"
    alone(f"-1 {command}averaged {averaged}")
    objectives = '[{"kind":"classify"},{"kind":"neighbors","max_cells":60}]'
    neighbors = f"optim.weight_averaging=0.9 objectives={objectives}"
    alone(f"-1 {command}neighbors {neighbors}")
    mlp = 'model={"kind":"residual_mlp","d_model":16,"dropout":0}'
    alone(f"-1 {command}mlp {mlp}")
    alone(f"{STOPPED_IN} {command}one_then_sharded")
    run_on_two(
        [
            f"-1 {command}two",
            f"-1 {command}two_in_parts {IN_PARTS}",
            f"-1 {command}one_then_two",
            f"{STOPPED_IN} {command}two_then_one",
            f"-1 {command}sharded parallel=fsdp {IN_PARTS}",
            f"-1 {command}one_then_sharded parallel=fsdp",
            f"-1 {command}sharded_twice_computed parallel=fsdp model.checkpoint_activations=true",
            f"-1 {command}bfloat16 precision=bfloat16",
            f"-1 {command}sharded_bfloat16 parallel=fsdp precision=bfloat16",
            f"{STOPPED_IN} {command}sharded_then_one parallel=fsdp",
            f"-1 {command}mlp_two {mlp}",
            f"-1 {command}mlp_sharded parallel=fsdp {mlp}",
            f"-1 {command}averaged_two {averaged}",
            f"-1 {command}averaged_sharded parallel=fsdp {averaged}",
            f"{STOPPED_IN} {command}averaged_sharded_then_one parallel=fsdp {averaged}",
            f"-1 {command}neighbors_two {neighbors} {IN_PARTS}",
            f"-1 {command}neighbors_sharded parallel=fsdp {neighbors}",
            f"{STOPPED_IN} {command}neighbors_two_then_one {neighbors}",
        ]
    )
    settings = {"averaged": averaged, "neighbors": neighbors}
    for name in (
        "two_then_one", "sharded_then_one", "averaged_sharded_then_one", "neighbors_two_then_one"
    ):  # fmt: skip
        assert (folder / f".{name}.partial" / "checkpoint.safetensors").exists()
        alone(f"-1 {command}{name} {settings.get(name.partition('_')[0], '')}")
    return folder


def weights_of(run: Path) -> dict[str, np.ndarray]:
    """Read a run's weights, without the bias of the attention's keys.

    It adds the same to the logits of all tokens: its gradient is 0 but for rounding, and AdamW
    makes steps of a usual size out of that.
    """
    weights = load_file(run / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("to_kv.bias"):
            weight[: len(weight) // 2] = 0
    return weights


@pytest.mark.parametrize(
    "name",
    [
        "one_in_parts", "two", "two_in_parts", "one_then_two", "two_then_one",
        "sharded", "one_then_sharded", "sharded_then_one", "sharded_twice_computed",
        "averaged_two", "averaged_sharded", "averaged_sharded_then_one",
        "mlp_two", "mlp_sharded",
        "neighbors_two", "neighbors_sharded", "neighbors_two_then_one",
    ],
)  # fmt: skip
def test_neither_processes_nor_parts_of_an_update_matter(runs, name):
    assert not list(runs.glob(".*partial"))
    kind = name.partition("_")[0]
    reference = kind if kind in ("averaged", "mlp", "neighbors") else "one"
    one, other = (weights_of(runs / n) for n in (reference, name))
    assert one.keys() == other.keys()
    difference = np.concatenate([np.abs(other[key] - one[key]).ravel() for key in one])
    assert np.quantile(difference, 0.999) < NEARLY_ALL
    assert difference.max() < ALL
    one, other = (json.loads((runs / n / "metrics.json").read_text()) for n in (reference, name))
    assert one["best_epoch"] == other["best_epoch"] > STOPPED_IN + 1
    for split in ("val", "test"):
        assert one[split] == pytest.approx(other[split], abs=NUMBERS)
        a, b = (np.load(runs / n / f"predictions_{split}.npz") for n in (reference, name))
        assert a["cell_names"].tolist() == b["cell_names"].tolist()
        np.testing.assert_allclose(a["probabilities"], b["probabilities"], atol=NUMBERS)
    if kind == "neighbors":
        a, b = (np.load(runs / n / "bank.npz") for n in (reference, name))
        assert len(a["cell_names"]) == 60
        assert a["cell_names"].tolist() == b["cell_names"].tolist()
        np.testing.assert_allclose(a["embeddings"], b["embeddings"], atol=1e-3)  # of float16
    one, other = (
        [
            {k: v for k, v in line.items() if not k.startswith("perf/")}
            for line in read_metrics(runs / n / "metrics.jsonl")
        ]
        for n in (reference, name)
    )
    assert len(one) == len(other)
    assert any("train/loss" in line for line in one)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=NUMBERS)


def test_sharded_bfloat16_multiplies_as_unsharded_does(runs):
    """Most weights agree to a hundredth of a step (3e-3), all but a few of them to a third of one.

    A bound for every single weight would say little: AdamW makes a whole step out of the sign of a
    gradient that is 0 but for rounding, and bfloat16 rounds coarsely.
    """
    names = ("sharded", "bfloat16", "sharded_bfloat16")
    weights = [weights_of(runs / name) for name in names]
    exact, one, other = (np.concatenate([w[key].ravel() for key in weights[0]]) for w in weights)
    apart = np.abs(other - one)
    assert apart.mean() < 5e-5  # found were 2.5e-5
    assert (apart > 1e-3).mean() < 1e-3  # found were 3 of 20,000
    assert np.abs(other - exact).mean() > 1e-5  # it did multiply in bfloat16
