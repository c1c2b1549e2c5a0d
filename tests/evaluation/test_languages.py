"""Languages side by side, of runs whose errors are known."""

import shutil

import numpy as np
import pytest

from dataset.store.checksums import write_checksums
from evaluation.compare import compare_runs
from evaluation.languages import corrected, language_summary, language_verdicts, of_one_budget
from evaluation.over_sets import ours_verdicts
from evaluation.results import write_results
from tests.made_up import LABELS, named
from training.budget import epochs
from training.runs import Run

VALUES = {"kind": "gene_values"}


@pytest.fixture
def write(write_run):
    """Return a function that writes a network's run with so many errors in val and test."""

    def write(name, val, test, *, max_epochs=25, start=0, settings=None, **given):
        given = {"kind": "rank_transformer"} | given
        return write_run(
            name,
            class_names=list("abcd"),
            labels={"val": LABELS, "test": LABELS},
            probabilities={"val": named(val), "test": named(test, start)},
            settings={"optim": {"max_epochs": max_epochs}} | (settings or {}),
            **given,
        )

    return write


def compared(folder):
    (comparison,) = compare_runs(folder.parent, n_resamples=100)
    return comparison


def pretrained(write, name, val, test, *, own, before, **given):
    settings = {"init_from": "runs/before", "init_from_sha256": "0" * 64}
    costs = {"init_from": {"path": "runs/before", "epochs": before, "seconds": 30.0}}
    return write(name, val, test, max_epochs=own, settings=settings, costs=costs, **given)


def said(comparison):
    return [text.removeprefix("pancreas: ") for text in language_verdicts([comparison])]


def test_the_better_language_is_named_with_the_errors_that_others_correct(write):
    write("ranks_s0", 0, 100)
    write("ranks_s1", 0, 100, start=40, seed=1)  # 40 other cells of 100
    folder = write("values", 20, 400, start=30, kind="value_transformer", tokenizer=VALUES)
    comparison = compared(folder)
    (sentence,) = said(comparison)
    assert sentence.startswith(
        "the best language is rank, rank_transformer (ranks), each trained for 25 epochs. "
        "Against it values (gene_values, value_transformer) in macro-F1"
    )
    # Of the errors 0 to 99 "values" corrects 0 to 29, of 40 to 139 none: 15 % on average.
    assert "it corrects 15% of the best one's errors. Another seed of ranks corrects 40%." in (
        sentence
    )
    table = language_summary(comparison)
    assert table["tokens, network"].to_dict() == {
        "ranks": "rank, rank_transformer",
        "values": "gene_values, value_transformer",
    }
    assert list(table["outcome"]) == ["", "worse"]
    assert table.loc["values", "macro-F1 minus the first's"].startswith("-0.150 [")


def test_a_model_does_not_correct_itself(write):
    folder = write("ranks", 0, 100)
    write("perfect", 0, 0, d_model=128)
    comparison = compared(folder)
    ranks, perfect = sorted(comparison.models, key=lambda model: model.name, reverse=True)
    assert np.isnan(corrected(ranks, ranks, comparison.labels))
    assert corrected(ranks, perfect, comparison.labels) == 1
    assert np.isnan(corrected(perfect, ranks, comparison.labels))


def test_a_language_that_is_better_on_test_than_the_best_on_val(write):
    write("ranks", 0, 400)
    folder = write("values", 20, 100, kind="value_transformer", tokenizer=VALUES)
    (sentence,) = said(compared(folder))
    assert sentence.startswith("the best language on val, rank, rank_transformer (ranks), is not")


def test_nobody_can_tell_where_one_of_two_is_level(write):
    write("ranks", 0, 100)
    write("sets", 20, 400, rank_position="none")  # the same language: its best on val stands
    write("values", 40, 100, kind="value_transformer", tokenizer=VALUES)
    folder = write("on_ranks", 50, 400, kind="value_transformer")
    (sentence,) = said(compared(folder))
    assert sentence.startswith("cannot tell which language is best; on val it is rank, rank_tr")
    assert "sets" not in sentence


def test_a_network_told_the_histories_of_others_is_never_the_best(write, write_run):
    """It is a control, however good it is on val and test."""
    write("ranks", 20, 100)
    labels = {"val": LABELS, "test": LABELS}
    guesses = {"val": named(40), "test": named(400)}
    write_run("linear", class_names=list("abcd"), labels=labels, probabilities=guesses)
    folder = write("control", 0, 0, previous={"layer": None, "shuffle": True})
    comparison = compared(folder)
    assert comparison.models[0].name == "control"
    assert comparison.best_network.name == "ranks"
    assert "control" not in {model.name for model in of_one_budget(comparison)}
    assert "ranks against linear, each the best on val" in ours_verdicts([comparison])[0]


def test_one_language_is_no_comparison(write):
    write("ranks", 0, 100)
    write("control", 0, 100, kind="residual_mlp")
    folder = write("sets", 20, 400, rank_position="none")
    comparison = compared(folder)
    assert said(comparison) == []
    assert set(language_summary(comparison).index) == {"ranks", "control", "sets"}


def test_another_number_of_epochs_is_not_compared(write, tmp_path):
    write("ranks", 0, 100)
    write("linear", 50, 100, kind="logistic_regression")
    write("control", 30, 100, kind="residual_mlp", max_epochs=5)
    write("longer", 20, 0, kind="value_transformer", tokenizer=VALUES, max_epochs=100)
    folder = write("values", 40, 400, kind="value_transformer", tokenizer=VALUES)
    comparison = compared(folder)
    assert [model.name for model in of_one_budget(comparison)] == ["ranks", "values"]
    best, left_out = said(comparison)
    assert "longer" not in best
    assert left_out.endswith("another number of times: longer (100), control (5).")
    assert list(language_summary(comparison).index) == ["ranks", "values"]
    write_results([comparison], tmp_path / "RESULTS.md", "command")
    text = (tmp_path / "RESULTS.md").read_text()
    assert left_out in text
    assert "went through the train cells 25 times and control, which has no attention, 5" in text


def test_epochs_of_the_run_that_it_began_with_count(write, write_run):
    assert epochs(Run(pretrained(write, "tuned", 0, 0, own=10, before=15))) == 25
    assert epochs(Run(write("scratch", 0, 0, max_epochs=7))) == 7
    settings = {"init_from": "runs/before", "init_from_sha256": "0" * 64}
    unknown = write("unknown", 0, 0, settings=settings, costs={"init_from": {"path": "a"}})
    assert epochs(Run(unknown)) is None
    assert epochs(Run(write_run("linear"))) is None


def test_seconds_are_with_those_of_the_run_that_it_began_with(write):
    """What began with no run has its own alone."""
    write("ranks", 0, 0)
    scores = compared(pretrained(write, "tuned", 0, 0, own=10, before=15)).scores
    assert dict(zip(scores["model"], scores["seconds"], strict=True)) == {"ranks": 2, "tuned": 32}


def test_pretraining_is_judged_by_a_network_of_as_many_epochs(write):
    write("short", 5, 500, max_epochs=10)  # trained as long as the fine-tuning alone: no match
    write("scratch", 10, 100)
    write("values", 40, 400, kind="value_transformer", tokenizer=VALUES)
    folder = pretrained(write, "tuned", 0, 400, own=10, before=15)
    found = said(compared(folder))
    assert found[1].startswith(
        "pretraining harms. tuned against scratch, of as many epochs: in ma"
    )


def committee(write, name, members, val, test):
    folder = write(name, val, test, kind="committee", members=[str(m) for m in members])
    for i, member in enumerate(members, start=1):
        shutil.copytree(member, folder / "members" / f"{i}_{member.name}")
    write_checksums(folder)
    return folder


def test_a_committee_across_languages_against_one_of_a_single_language(write, write_run):
    ranks = [write(f"ranks_s{seed}", 0, 100, seed=seed) for seed in range(2)]
    values = write("values", 40, 400, kind="value_transformer", tokenizer=VALUES)
    control = write("control", 40, 400, kind="residual_mlp")
    committee(write, "alone", ranks, 9, 100)
    committee(write, "with_control", [*ranks, control], 0, 10)
    committee(write, "both", [ranks[0], values], 10, 10)
    comparison = compared(values)
    assert said(comparison)[1].startswith(
        "a committee across languages is better than one of a single language. both against alone"
    )
