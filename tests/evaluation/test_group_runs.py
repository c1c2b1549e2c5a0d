"""Which runs stand together: by cells, by model, a seed once; and what is left out is named."""

import json
import shutil

import numpy as np
import pytest

from dataset.store.checksums import write_checksums
from dataset.vocabulary import Vocabulary
from evaluation.compare import compare_runs
from evaluation.group_runs import ComparisonError
from evaluation.group_runs import _names as names_of_models


def compared(folder):
    return compare_runs(folder.parent, n_resamples=5)


def models(folder):
    (comparison,) = compared(folder)
    return {model.name: [run.name for run in model.runs] for model in comparison.models}


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


@pytest.mark.parametrize("split", ["val", "test"])
def test_cells_edited_behind_the_hash_are_refused(write_run, edit_predictions, split):
    write_run("first")
    folder = write_run("second", kind="knn")
    edit_predictions(folder, split, lambda arrays: {k: v[:100] for k, v in arrays.items()})
    with pytest.raises(ComparisonError, match="was edited"):
        compared(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"device": "cpu"},
        {"compile": True},
        {"parallel": "fsdp"},
        {"optim": {"tokens_per_batch": 4096}},
        {"tracking": {"tags": ["again"]}},
        {"runs_dir": "elsewhere"},
        {"data": "moved/pancreas"},
    ],
    ids=str,
)
def test_what_a_resumed_run_may_change_is_no_other_model(write_run, settings):
    write_run("net_s0", kind="rank_transformer", seed=0)
    folder = write_run("net_s1", kind="rank_transformer", seed=1, settings=settings)
    assert models(folder) == {"net": ["net_s0", "net_s1"]}


@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"optim": {"lr": 1e-5}}], ids=str)
def test_what_changes_the_numbers_is_another_model(write_run, settings):
    write_run("net_s0", kind="rank_transformer", seed=0)
    folder = write_run("other_s1", kind="rank_transformer", seed=1, settings=settings)
    assert set(models(folder)) == {"net", "other"}


def test_another_vocabulary_is_another_model_as_it_is_another_run(write_run):
    write_run("net_s0", kind="rank_transformer", seed=0)
    folder = write_run("ids_s1", kind="rank_transformer", seed=1)
    Vocabulary(("id0", "id1"), ("G0", "G1")).save(folder / "data" / "vocabulary.json")
    write_checksums(folder)
    assert set(models(folder)) == {"net", "ids"}


VAL_ONLY = {"settings": {"test": False}}


def tables(folder):
    found = compare_runs(folder.parent, n_resamples=5)
    return {c.dataset: (c.split, {m.name: len(m.runs) for m in c.models}) for c in found}


def test_runs_without_test_are_compared_on_val_and_never_in_a_table_with_test(write_run):
    write_run("linear")
    write_run("knn_tuned", kind="knn", **VAL_ONLY)
    write_run("net_s0", kind="rank_transformer", seed=0)
    folder = write_run("net_s1", kind="rank_transformer", seed=1, **VAL_ONLY)
    assert tables(folder) == {
        "pancreas": ("test", {"linear": 1, "net": 1}),
        "pancreas, on val": ("val", {"linear": 1, "knn_tuned": 1, "net": 2}),
    }
    on_test, on_val = compare_runs(folder.parent, n_resamples=5)
    net = next(model for model in on_val.models if model.name == "net")
    for run, probabilities in zip(net.runs, net.test, strict=True):
        val = run.predictions("val")
        order = np.argsort(val.cell_names)
        assert np.array_equal(probabilities, val.probabilities[order])
        assert np.array_equal(on_val.labels, val.labels[order])
    assert not np.array_equal(on_test.labels, on_val.labels)


def test_runs_without_test_alone_have_a_table_on_val_alone(write_run):
    folder = write_run("linear", **VAL_ONLY)
    assert tables(folder) == {"pancreas, on val": ("val", {"linear": 1})}


def test_a_model_trained_again_with_test_counts_once_on_val(write_run):
    write_run("a_tuned", **VAL_ONLY)
    folder = write_run("b_tested")
    assert tables(folder)["pancreas, on val"] == ("val", {"b_tested": 1})
    *_, on_val = compare_runs(folder.parent, n_resamples=5)
    assert any("a_tuned" in sentence for sentence in on_val.left_out)


def without_classes(arrays):
    return {key: array for key, array in arrays.items() if key != "probabilities"}


def test_a_run_that_predicts_no_classes_is_listed(write_run, edit_predictions):
    write_run("linear")
    folder = write_run("pretrained", kind="rank_transformer")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= dict.fromkeys(("val", "test"), {"masked_gene_loss": 2.5})
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for split in ("val", "test"):
        edit_predictions(folder, split, without_classes)
    (comparison,) = compared(folder)
    assert [model.name for model in comparison.models] == ["linear"]
    assert comparison.left_out == [f"{folder}: no classes predicted: not compared"]


def test_other_settings_and_tokens_are_another_model(write_run):
    write_run("net_s0", kind="rank_transformer", seed=0)
    write_run("slow_s1", kind="rank_transformer", seed=1, settings={"optim": {"lr": 1e-5}})
    previous = {"layer": None, "shuffle": False}
    folder = write_run("history_s2", kind="rank_transformer", seed=2, previous=previous)
    assert set(models(folder)) == {"net", "slow", "history"}


def test_seeds_that_each_began_with_a_seed_of_one_pretraining_are_one_model(write_run):
    def write(name, seed, pretrained, sha256):
        began_with = {"path": pretrained, "epochs": 15, "seconds": 9.0, "model_sha256": sha256}
        settings = {"init_from": pretrained, "init_from_sha256": f"the weights of {pretrained}"}
        costs = {"init_from": began_with}
        return write_run(name, kind="rank_transformer", seed=seed, settings=settings, costs=costs)

    for seed in range(3):
        write(f"masked_s{seed}", seed, f"runs/pretrain_s{seed}", "masked genes")
    folder = write("whole_s4", 4, "runs/whole_cell_s4", "whole cell")
    masked = ["masked_s0", "masked_s1", "masked_s2"]
    assert models(folder) == {"masked": masked, "whole": ["whole_s4"]}


def test_a_copy_of_a_run_is_no_further_seed(write_run):
    folder = write_run("net_s0", kind="rank_transformer")
    shutil.copytree(folder, folder.with_name("net_s0_copy"))
    (comparison,) = compared(folder)
    assert [run.name for run in comparison.models[0].runs] == ["net_s0"]
    (why,) = comparison.left_out
    assert "net_s0_copy: a copy of" in why


def test_the_same_seed_again_is_no_further_seed(write_run):
    write_run("net_a", kind="rank_transformer", seed=3)
    folder = write_run("net_b", kind="rank_transformer", seed=3)
    (comparison,) = compared(folder)
    assert len(comparison.models[0].runs) == 1
    (why,) = comparison.left_out
    assert "net_b: has the config and the seed of" in why


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.json", "predictions_val.npz", "data/class_names.json"]
)
def test_a_run_that_is_not_whole_is_named(write_run, name):
    write_run("linear")
    folder = write_run("knn", kind="knn")
    (folder / name).unlink()
    (comparison,) = compared(folder)
    assert [model.name for model in comparison.models] == ["linear"]
    (why,) = comparison.left_out
    assert why.startswith(f"{folder}: {name} is missing")


@pytest.mark.parametrize("name", ["predictions_test.npz", "metrics.json", "data/meta.json"])
def test_a_damaged_run_is_named_in_one_sentence(write_run, name):
    write_run("linear")
    folder = write_run("knn", kind="knn")
    path = folder / name
    path.write_bytes(path.read_bytes()[:30])
    (comparison,) = compared(folder)
    assert [model.name for model in comparison.models] == ["linear"]
    (why,) = comparison.left_out
    assert str(folder) in why
    assert name in why
    assert "\n" not in why


def test_without_any_run_that_can_be_read_nothing_is_compared(write_run):
    folder = write_run("linear")
    (folder / "metrics.json").write_text("{")
    with pytest.raises(ComparisonError, match=r"holds no run that can be read: .*linear") as error:
        compared(folder)
    assert "\n" not in str(error.value)


def test_what_is_no_run_is_passed_over_and_an_unfinished_one_named(write_run):
    folder = write_run("linear")
    (folder.parent / "wandb").mkdir()
    (folder.parent / "RESULTS.md").write_text("# Results")
    partial = folder.parent / ".other.partial"
    partial.mkdir()
    (partial / "config.yaml").write_text("name: other")
    (comparison,) = compared(folder)
    assert len(comparison.models) == 1
    assert comparison.left_out == [f"{partial}: not finished"]


def test_no_runs_is_one_sentence(tmp_path):
    with pytest.raises(ComparisonError, match="no such folder"):
        compare_runs(tmp_path / "runs")
    (tmp_path / "notebooks").mkdir()
    with pytest.raises(ComparisonError, match="holds no run; train"):
        compare_runs(tmp_path)


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ([["net_s0", "net_s1"]], ["net"]),
        ([["net_s1", "net_s10"]], ["net"]),
        ([["net1", "net2"]], ["net"]),
        ([["net_human", "net_human_seed1", "net_human_seed2"]], ["net_human"]),
        ([["net_human", "net_human_seed1"], ["knn_human"]], ["net", "knn"]),
        ([["network_wide_s0"]], ["network_wide"]),
        ([["run_alice", "run_albert"]], ["run"]),
        ([["s0_net", "s1_net"]], ["net"]),
        ([["monday", "tuesday"]], ["monday, tuesday"]),
        ([["alpha", "alto", "bass"]], ["alpha, alto and 1 more"]),
        ([["a_s0", "a_s1"], ["a_s2"]], ["a_s0", "a_s2"]),
        ([["a_s0", "a_s1"], ["a_s2"], ["b_s0", "b_s1"]], ["a_s0", "a_s2", "b"]),
        ([["a_s0", "a_s1"], ["a_s2"], ["a_s0_s0", "a_s0_s1"]], ["a_s0", "a_s2", "a_s0_s0"]),
    ],
)
def test_a_model_is_named_by_what_its_runs_share(groups, names):
    assert names_of_models(groups) == names


def test_models_without_a_shared_name_are_named_all_the_same(write_run):
    write_run("monday", kind="rank_transformer", seed=0)
    folder = write_run("tuesday", kind="rank_transformer", seed=1)
    assert models(folder) == {"monday, tuesday": ["monday", "tuesday"]}
