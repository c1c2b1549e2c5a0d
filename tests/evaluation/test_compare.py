"""Comparison of runs: what may stand together, who is chosen, and the sentence at the end."""

import json

import numpy as np
import pytest
import yaml

from evaluation import METRICS, comparison_plots
from evaluation.compare import ComparisonError, compare_runs
from evaluation.embedding import embedded_cells, separation
from evaluation.results import write_results
from evaluation.run_folder import RunFolderError

CLASSES = ["alpha", "beta", "gamma"]


def made_up_predictions(rng, labels, skill):
    """Return probabilities that favor the true class the more, the larger ``skill``."""
    logits = rng.normal(size=(len(labels), len(CLASSES)))
    logits[np.arange(len(labels)), labels] += skill
    exponents = np.exp(logits)
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def write_run(tmp_path):
    """Return a function that writes ``runs/<name>`` as 02 leaves it, without training."""

    def write(
        name,
        *,
        kind="logistic_regression",
        seed=0,
        skill=3.0,
        data="pancreas",
        data_sha256="cells",
        split_sha256="split",
        previous=None,
        donors=("d1", "d2", "d3"),
        n_cells=200,
        **model,
    ):
        folder = tmp_path / "runs" / name
        (folder / "data").mkdir(parents=True)
        truth = np.random.default_rng(7)
        rng = np.random.default_rng([seed, len(name), int(10 * skill)])
        config = {"name": name, "data": f"data/{data}", "model": {"kind": kind, **model}}
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed": seed}))
        hashes = {"data_sha256": data_sha256, "split_sha256": split_sha256}
        is_network = kind == "rank_transformer"
        metrics = {**hashes, "seconds": 2.0, "peak_memory_mb": 300.0, "seed": seed}
        metrics |= {"n_parameters": 1000 if is_network else None, "device": "cpu"}
        for split in ("val", "test"):
            labels = truth.integers(len(CLASSES), size=n_cells)
            probabilities = made_up_predictions(rng, labels, skill)
            accuracy = float((probabilities.argmax(axis=1) == labels).mean())
            metrics[split] = {"accuracy": accuracy, "macro_f1": accuracy, "log_loss": 1 - accuracy}
            arrays = {
                "cell_names": np.array([f"{split}-{i}" for i in range(n_cells)]),
                "batches": np.array(donors)[np.arange(n_cells) % len(donors)],
                "labels": labels,
                "probabilities": probabilities,
            }
            if is_network:
                arrays["embeddings"] = probabilities @ rng.normal(size=(3, 4)).astype(np.float32)
            np.savez(folder / f"predictions_{split}.npz", **arrays)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        meta = {
            "name": data,
            "tokenizer": {"kind": "rank", "n_tokens": 8, "previous": previous},
            "n_cells": dict.fromkeys(("train", "val", "test"), n_cells),
            "source": {"files": [{"path": f"{data}.h5ad"}]},
            **hashes,
        }
        (folder / "data" / "meta.json").write_text(json.dumps(meta))
        (folder / "data" / "class_names.json").write_text(json.dumps(CLASSES))
        if is_network:
            lines = [
                {"step": step, "train/loss": 1 / step, "val/macro_f1": step / 10, "optim/lr": 1e-3}
                for step in range(1, 6)
            ]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        return folder

    return write


def compared(folder, n_resamples=200):
    return compare_runs(folder.parent, n_resamples=n_resamples)


def test_runs_that_differ_in_seed_only_are_one_model(write_run):
    for seed in range(3):
        folder = write_run(f"network_s{seed}", kind="rank_transformer", seed=seed)
    write_run("network_wide_s0", kind="rank_transformer", d_model=128)
    (comparison,) = compared(folder)
    assert {m.name: len(m.runs) for m in comparison.models} == {"network": 3, "network_wide": 1}
    row = comparison.scores.set_index("model").loc["network"]
    network = next(m for m in comparison.models if m.name == "network")
    of_seeds = [METRICS["macro_f1"](comparison.labels, p) for p in network.test]
    assert row["seeds"] == "0 1 2"
    assert row["macro_f1"] == pytest.approx(np.mean(of_seeds))
    assert row["macro_f1_sd"] == pytest.approx(np.std(of_seeds, ddof=1))
    assert row["macro_f1_low"] < row["macro_f1"] < row["macro_f1_high"]


def test_one_name_with_other_cells_is_refused(write_run):
    write_run("first")
    folder = write_run("second", kind="knn", data_sha256="other cells")
    with pytest.raises(ComparisonError, match="first.*second.*another cells"):
        compared(folder)


def test_one_name_with_another_split_is_refused(write_run):
    write_run("first")
    folder = write_run("second", kind="knn", split_sha256="other split")
    with pytest.raises(ComparisonError, match="first.*second.*another split"):
        compared(folder)


def test_datasets_have_tables_of_their_own(write_run):
    write_run("a_pancreas")
    folder = write_run("a_cortex", data="cortex", data_sha256="c", split_sha256="d")
    assert [c.dataset for c in compared(folder)] == ["cortex", "pancreas"]


def test_tokenizers_of_the_same_cells_stand_together(write_run):
    write_run("short", data="pancreas_rank")
    folder = write_run("long", data="pancreas_rank_4096", kind="rank_transformer")
    (comparison,) = compared(folder)
    assert comparison.dataset == "pancreas_rank"
    assert len(comparison.models) == 2


def test_cells_edited_behind_the_hash_are_refused(write_run):
    write_run("first")
    folder = write_run("second", kind="knn", n_cells=100)
    with pytest.raises(ComparisonError, match="was edited"):
        compared(folder)


def test_order_of_the_cells_does_not_matter(write_run):
    folder = write_run("first")
    (before,) = compared(folder)
    path = folder / "predictions_test.npz"
    arrays = dict(np.load(path))
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    np.savez(path, **{name: values[order] for name, values in arrays.items()})
    (after,) = compared(folder)
    assert before.scores.equals(after.scores)


def test_best_is_chosen_on_val_not_on_test(write_run):
    folder = write_run("better_on_val", skill=4.0)
    write_run("better_on_test", kind="knn", skill=1.0)
    path = folder / "predictions_test.npz"
    arrays = dict(np.load(path))
    arrays["probabilities"] = arrays["probabilities"][:, ::-1]
    np.savez(path, **arrays)
    (comparison,) = compared(folder)
    assert comparison.best_baseline.name == "better_on_val"


@pytest.mark.parametrize(
    ("skill", "outcome", "answer"),
    [(6.0, "better", "yes"), (0.5, "worse", "no"), (2.0, "tie", "no")],
)
def test_verdict(write_run, skill, outcome, answer):
    write_run("linear", skill=2.0)
    folder = write_run("network", kind="rank_transformer", skill=skill)
    (comparison,) = compared(folder)
    found = comparison.difference(comparison.best_network, comparison.best_baseline, "macro_f1")
    assert found["outcome"] == outcome
    assert f"pancreas: {answer}, this data" in comparison.verdict()
    assert "over donors" in comparison.verdict()


def test_verdict_without_a_network_says_so(write_run):
    (comparison,) = compared(write_run("linear"))
    assert "no transformer was run" in comparison.verdict()


def test_lower_log_loss_is_better(write_run):
    write_run("linear", skill=1.0)
    folder = write_run("network", kind="rank_transformer", skill=6.0)
    (comparison,) = compared(folder)
    models = comparison.best_network, comparison.best_baseline
    found = comparison.difference(*models, "log_loss")
    assert found["difference"] < 0
    assert found["outcome"] == "better"


def test_one_donor_has_no_interval_over_donors(write_run):
    (comparison,) = compared(write_run("linear", donors=("d1",)))
    assert comparison.scores["accuracy_low_donors"].isna().all()
    assert comparison.scores["accuracy_low"].notna().all()
    assert "one donor" in comparison.donor_note


def test_history_is_judged_against_the_shuffled_one(write_run):
    history = {"layer": None, "shuffle": False}
    write_run("own", kind="rank_transformer", skill=6.0, data="worm_previous", previous=history)
    shuffled = {**history, "shuffle": True}
    write_run("other", kind="rank_transformer", skill=1.0, data="worm_shuffle", previous=shuffled)
    folder = write_run("now", kind="rank_transformer", skill=5.9, data="worm")
    (comparison,) = compared(folder)
    sentence = comparison.history_verdict()
    assert "history helps: own against the same with histories shuffled" in sentence
    assert "against the same without" in sentence


def test_no_sentence_on_history_without_a_control(write_run):
    (comparison,) = compared(write_run("network", kind="rank_transformer"))
    assert comparison.history_verdict() == ""


def test_results_name_what_they_are_made_of(write_run, tmp_path):
    write_run("linear")
    folder = write_run("network", kind="rank_transformer", skill=4.0)
    output = tmp_path / "out" / "RESULTS.md"
    comparisons = compared(folder)
    markdown, table = write_results(comparisons, output, "papermill 03")
    text = markdown.read_text()
    for expected in ("papermill 03", "split `split`", "linear", "macro-F1", "alpha", "cpu"):
        assert expected in text
    assert comparisons[0].verdict() in text
    assert len(table.read_text().splitlines()) == 3
    assert {path.name for path in output.parent.iterdir()} == {"RESULTS.md", "RESULTS.csv"}


def test_every_figure_can_be_drawn(write_run, tmp_path):
    write_run("linear")
    write_run("knn", kind="knn", skill=2.0)
    folder = write_run("network", kind="rank_transformer", skill=4.0)
    (comparison,) = compared(folder)
    draw = [
        comparison_plots.scores,
        comparison_plots.differences,
        comparison_plots.class_f1,
        comparison_plots.confusions,
        comparison_plots.calibration,
        comparison_plots.cost,
        comparison_plots.curves,
    ]
    for number, plot in enumerate(draw):
        plot(comparison).savefig(tmp_path / f"{number}.png")


def test_baselines_alone_have_no_curves(write_run):
    (comparison,) = compared(write_run("linear"))
    assert comparison_plots.curves(comparison) is None


def test_embedding_of_a_network(write_run):
    folder = write_run("network", kind="rank_transformer", skill=6.0)
    (comparison,) = compared(folder)
    adata = embedded_cells(comparison.best_network.runs[0], max_cells=150)
    assert adata.shape == (150, 4)
    assert separation(adata)["cell type"] > separation(adata)["donor"]


def test_embedding_of_a_baseline_is_refused(write_run):
    (comparison,) = compared(write_run("linear"))
    with pytest.raises(ValueError, match="a baseline has no embeddings"):
        embedded_cells(comparison.models[0].runs[0])


def test_no_runs_is_one_sentence(tmp_path):
    with pytest.raises(ComparisonError, match="no such folder"):
        compare_runs(tmp_path / "runs")
    (tmp_path / "notebooks").mkdir()
    with pytest.raises(ComparisonError, match="holds no run"):
        compare_runs(tmp_path)


@pytest.mark.parametrize("name", ["predictions_test.npz", "metrics.json", "data/meta.json"])
def test_damaged_run_is_one_sentence(write_run, name):
    folder = write_run("linear")
    path = folder / name
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(RunFolderError, match="damaged") as error:
        compared(folder)
    assert "\n" not in str(error.value)


def test_unfinished_runs_are_passed_over(write_run):
    folder = write_run("linear")
    (folder.parent / ".other.partial").mkdir()
    (folder.parent / ".other.partial" / "config.yaml").write_text("name: other")
    assert len(compared(folder)[0].models) == 1
