"""The sentences at the end: what is concluded, from what, and when nothing is."""

import re

import numpy as np
import pytest

from evaluation.compare import compare_runs
from evaluation.verdicts import history_verdict, verdict, verdicts


def compared(folder, **settings):
    (comparison,) = compare_runs(folder.parent, n_resamples=300, **settings)
    return comparison


def named(labels, wrong=()):
    """Return sure probabilities that are right but for the cells numbered ``wrong``."""
    labels = np.array(labels)
    classes = labels.copy()
    classes[list(wrong)] = (classes[list(wrong)] + 1) % 4
    return 0.94 * np.eye(4)[classes] + 0.015


@pytest.fixture
def two_models(write_run):
    """Return a function: test labels and who is wrong where -> the comparison.

    With ``control`` there is a third one, the network without attention.
    """

    def make(labels, network=(), baseline=(), control=None, **settings):
        given = {"class_names": list("abcd"), "labels": {"val": labels, "test": labels}}
        for name, kind, wrong in (
            ("net", "rank_transformer", network),
            ("linear", "linear_svm", baseline),
            ("mlp", "residual_mlp", control),
        ):
            if wrong is None:
                continue
            probabilities = {"val": named(labels), "test": named(labels, wrong)}
            folder = write_run(name, kind=kind, probabilities=probabilities, **given)
        return compared(folder, **settings)

    return make


MANY = np.arange(2000) % 4


@pytest.mark.parametrize(
    ("network", "baseline", "answer", "word"),
    [
        (range(0, 40), range(0, 200), "this data needs a network; cannot tell whether", "better"),
        (range(0, 200), range(0, 40), "no, this data does not need a transformer", "worse"),
        (range(0, 40), range(20, 60), "no, this data does not need a transformer", "level"),
        (range(0, 400), range(400, 800), "cannot tell whether this data needs", "cannot tell"),
    ],
)
def test_answers(two_models, network, baseline, answer, word):
    comparison = two_models(MANY, network, baseline)
    found = comparison.difference(
        comparison.best_network, comparison.best_baseline, "macro_f1_common"
    )
    assert found["outcome"] == word
    assert set(comparison.differences.query("metric == 'macro_f1_common'")["outcome"]) == {word}
    sentence = verdict(comparison)
    assert sentence.startswith(f"pancreas: {answer}")
    assert f"over donors), {word}" in sentence
    assert "On 2,000 test cells net (one seed) has a macro-F1 of" in sentence


@pytest.mark.parametrize(
    ("network", "control", "answer", "word"),
    [
        (range(0, 40), range(0, 200), "yes, this data needs a transformer", "better"),
        (range(0, 200), range(0, 40), "no, this data needs a network, but not its", "worse"),
        (range(0, 40), range(20, 60), "no, this data needs a network, but not its", "level"),
        (range(0, 400), range(400, 800), "this data needs a network; cannot", "cannot tell"),
    ],
)
def test_attention_is_credited_with_what_exceeds_the_control(
    two_models, network, control, answer, word
):
    """The baseline is worse than both."""
    comparison = two_models(MANY, network, range(0, 1200), control)
    assert comparison.best_network.name == "net"
    assert comparison.best_without_attention.name == "mlp"
    sentence = verdict(comparison)
    assert sentence.startswith(f"pancreas: {answer}")
    attention = sentence[sentence.index("What attention adds, net against mlp") :]
    given = comparison.best_network, comparison.best_without_attention
    for metric, start in (
        ("macro_f1_common", "in macro-F1 over the 4 types with at least 10 test cells"),
        ("accuracy", "in accuracy"),
        ("log_loss_scaled", "in log-loss, both scaled on val"),
    ):
        found = comparison.difference(*given, metric)
        assert f"{start} {found['difference']:+.3f} (95 % interval" in attention
    assert comparison.difference(*given, "macro_f1_common")["outcome"] == word


@pytest.mark.parametrize("control", [None, ()])
def test_a_missing_control_is_said(two_models, control):
    sentence = verdict(two_models(MANY, (), range(0, 200), control))
    assert ("the control is missing" in sentence) == (control is None)


def test_the_control_is_no_transformer_however_good(two_models):
    """It is best on val and test, and is neither the transformer nor the baseline."""
    comparison = two_models(MANY, range(0, 600), range(0, 200), ())
    assert comparison.best_network.name == "net"
    assert comparison.best_baseline.name == "linear"
    assert verdict(comparison).startswith("pancreas: no, this data does not need a transformer")


def test_level_depends_on_the_margin(two_models):
    comparison = two_models(MANY, range(0, 400), range(400, 800), margin=0.1)
    assert "level (within 0.1)" in verdict(comparison)


def test_a_difference_below_the_margin_is_called_so(two_models):
    comparison = two_models(MANY, range(0, 10), range(0, 30))
    assert "better, though by less than 0.02" in verdict(comparison)


def test_a_difference_that_one_donor_makes_is_called_so(two_models):
    """The baseline is wrong in cells of the first of three donors only."""
    comparison = two_models(MANY, (), range(0, 300, 3))
    assert "better on these cells, though perhaps not in other donors" in verdict(comparison)


def test_a_handful_of_test_cells_cannot_tell(two_models):
    comparison = two_models([0, 1, 2, 3, 0, 1, 2], (), range(5))
    assert verdict(comparison).startswith("pancreas: cannot tell whether")
    assert "7 test cells are too few" in verdict(comparison)
    assert set(comparison.differences["outcome"]) == {"cannot tell"}


def test_types_of_few_cells_cannot_tell(two_models):
    comparison = two_models(np.arange(36) % 4, (), range(30))
    assert comparison.n_rare == 4
    assert verdict(comparison).startswith("pancreas: cannot tell whether")
    assert "no type has 10 test cells" in verdict(comparison)


def test_few_cells_that_all_agree_are_not_level(two_models):
    comparison = two_models(np.arange(60) % 4)
    assert verdict(comparison).startswith("pancreas: cannot tell whether")
    assert "with so few test cells a difference of 0.02 may not show" in verdict(comparison)


def test_one_cell_of_a_type_changes_no_answer(two_models):
    labels = np.append(np.arange(1500) % 3, 3)
    sentence = verdict(two_models(labels, network=[1500]))
    assert sentence.startswith("pancreas: no, this data does not need a transformer")
    assert "over the 3 types with at least 10 test cells" in sentence
    assert "In macro-F1 over all 4 types: -0.250" in sentence
    assert "cannot tell, as it is made by types with fewer than 10 test cells" in sentence


@pytest.mark.parametrize(("sure", "word"), [(0.3, "worse"), (0.99, "better")])
def test_log_loss_has_its_say(write_run, sure, word):
    """Both are right everywhere but in the same cells; one says how sure it is better."""
    rng = np.random.default_rng(0)
    labels = {"val": MANY, "test": MANY}
    wrong = rng.choice(2000, size=300, replace=False)
    doubt = np.where(np.isin(np.arange(2000), wrong), 0.5, 0.9)  # knows where it errs
    knows = {split: _with_confidence(named(own, wrong), doubt) for split, own in labels.items()}
    flat = {
        split: _with_confidence(named(own, wrong), np.full(2000, 0.8))
        for split, own in labels.items()
    }
    network, baseline = (flat, knows) if word == "worse" else (knows, flat)
    given = {"class_names": list("abcd"), "labels": labels}
    write_run("linear", probabilities=baseline, **given)
    folder = write_run("net", kind="rank_transformer", probabilities=network, **given)
    comparison = compared(folder)
    rows = comparison.differences.set_index("metric")
    assert rows.loc["accuracy", "difference"] == 0
    assert rows.loc["log_loss_scaled", "outcome"] == word
    sentence = verdict(comparison)
    assert sentence.startswith("pancreas: no, this data does not need a transformer")
    said = sentence[sentence.index("In log-loss, both scaled on val") :]
    assert word in said


def test_log_loss_is_compared_at_the_temperature_of_val(write_run):
    """One model is the other, made far too sure: scaled on val they are the same."""
    wrong = np.random.default_rng(0).choice(2000, size=300, replace=False)
    doubt = np.where(np.isin(np.arange(2000), wrong), 0.5, 0.9)
    calm = _with_confidence(named(MANY, wrong), doubt)
    given = {"class_names": list("abcd"), "labels": {"val": MANY, "test": MANY}}
    sure = calm**3 / (calm**3).sum(axis=1, keepdims=True)
    write_run("linear", probabilities={"val": calm, "test": calm}, **given)
    folder = write_run(
        "net", kind="rank_transformer", probabilities={"val": sure, "test": sure}, **given
    )
    comparison = compared(folder)
    scores = comparison.scores.set_index("model")["log_loss"]
    assert scores["net"] > scores["linear"] + 0.05
    assert re.search(r"In log-loss, both scaled on val: [+-]0\.000 ", verdict(comparison))


def _with_confidence(probabilities, confidence):
    top = np.eye(4)[probabilities.argmax(axis=1)]
    rest = (1 - confidence)[:, None] / 3
    return np.where(top == 1, confidence[:, None], rest)


def test_verdict_without_a_network_or_a_baseline_says_so(write_run):
    folder = write_run("linear")
    assert "no transformer was run" in verdict(compared(folder))
    other = write_run("net", kind="rank_transformer", data="cortex", data_sha256="c")
    _, cortex = sorted(
        compare_runs(other.parent, n_resamples=5), key=lambda c: c.dataset, reverse=True
    )
    assert "no baseline was run" in verdict(cortex)


def test_nothing_is_concluded_from_val(write_run):
    write_run("linear", settings={"test": False})
    write_run("net", kind="rank_transformer", settings={"test": False}, skill=6.0)
    folder = write_run("mlp", kind="residual_mlp", settings={"test": False})
    (sentence,) = verdicts([compared(folder)])
    assert sentence.startswith("pancreas, on val: no verdict")
    assert "Best: net; train what you keep with test=true" in sentence


HISTORY = {"layer": None, "shuffle": False}
SHUFFLED = {"layer": None, "shuffle": True}


@pytest.mark.parametrize(
    ("own", "other", "answer"),
    [
        (8.0, 1.0, "history helps"),
        (1.0, 8.0, "history harms"),
        (2.5, 2.5, "cannot tell whether history helps"),
        (20.0, 20.0, "history makes no difference"),
    ],
)
def test_history_is_judged_against_the_shuffled_one(write_run, own, other, answer):
    given = {"kind": "rank_transformer", "n_cells": 2000}
    write_run("own", skill=own, data="worm_previous", previous=HISTORY, **given)
    write_run("other", skill=other, data="worm_shuffle", previous=SHUFFLED, **given)
    folder = write_run("now", skill=4.0, data="worm", **given)
    sentence = history_verdict(compared(folder))
    assert sentence.startswith(f"worm: {answer}. In macro-F1")
    assert "own against the same with histories shuffled" in sentence
    assert "against the same without" in sentence


def test_no_sentence_on_history_without_a_control(write_run):
    folder = write_run("network", kind="rank_transformer")
    assert history_verdict(compared(folder)) == ""
    write_run("own", kind="rank_transformer", data="p2", previous=HISTORY)
    assert history_verdict(compared(folder)) == ""


def test_a_control_of_another_config_is_none(write_run):
    write_run("own", kind="rank_transformer", data="p2", previous=HISTORY)
    folder = write_run("other", kind="rank_transformer", data="p3", previous=SHUFFLED, d_model=128)
    assert history_verdict(compared(folder)) == ""
