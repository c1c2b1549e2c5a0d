"""Open Problems' controls: what they name, and where a model's scores lie between them."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from evaluation.compare import compare_runs
from evaluation.controls import control_labels, with_controls
from evaluation.results import summary

CONTROLS = ["true labels", "random labels", "majority labels"]


def compared(folder):
    (comparison,) = compare_runs(folder.parent, n_resamples=20)
    return comparison


def test_controls_know_the_answer_the_shares_of_train_or_the_commonest_class():
    labels = np.arange(9000) % 3
    found = control_labels(labels, [10, 70, 20], seed=0)
    assert list(found) == CONTROLS
    assert np.array_equal(found["true labels"], labels)
    assert set(found["majority labels"]) == {1}
    shares = np.bincount(found["random labels"]) / len(labels)
    assert shares == pytest.approx([0.1, 0.7, 0.2], abs=0.02)
    again = control_labels(labels, [10, 70, 20], seed=0)["random labels"]
    assert np.array_equal(found["random labels"], again)
    other = control_labels(labels, [10, 70, 20], seed=1)["random labels"]
    assert not np.array_equal(found["random labels"], other)


def test_scores_are_scaled_as_open_problems_does(write_run):
    labels = np.repeat([0, 1, 2], [120, 60, 20])
    given = {"labels": {"val": labels, "test": labels}}
    right = 0.9 * np.eye(3)[labels] + 0.1 / 3
    half = right.copy()
    half[::2] = [0.2, 0.2, 0.6]
    write_run("right", probabilities={"val": right, "test": right}, **given)
    folder = write_run("half", kind="knn", probabilities={"val": half, "test": half}, **given)
    comparison = compared(folder)
    scores = with_controls(comparison).set_index("model")
    assert list(scores.index) == ["right", "half", *CONTROLS]
    named_by_half = half.argmax(axis=1)[np.argsort([f"test-{i}" for i in range(200)])]
    labels = comparison.labels  # in the order of the cells' names
    drawn = control_labels(labels, [60, 30, 10], comparison.seed)["random labels"]
    majority = np.zeros(200, dtype=int)
    metrics = {
        "accuracy": accuracy_score,
        "macro_f1": lambda true, named: f1_score(true, named, average="macro", zero_division=0),
        "weighted_f1": lambda true, named: f1_score(
            true, named, average="weighted", zero_division=0
        ),
    }
    of_half = []
    for key, metric in metrics.items():
        expected = [metric(labels, named) for named in (labels, drawn, majority)]
        assert scores.loc[CONTROLS, key].tolist() == pytest.approx(expected)
        low = min(expected)
        of_half.append((metric(labels, named_by_half) - low) / (1 - low))
        assert scores.loc["half", f"{key}_above_controls"] == pytest.approx(of_half[-1])
    assert scores.loc["half", "above_controls"] == pytest.approx(np.mean(of_half))
    assert scores.loc[["right", "true labels"], "above_controls"].tolist() == [1, 1]
    lowest = scores.loc[CONTROLS, "accuracy_above_controls"].min()
    assert lowest == 0


def test_controls_stand_in_the_table_and_are_no_models(write_run):
    comparison = compared(write_run("linear"))
    shown = summary(comparison)
    assert list(shown.index) == ["linear", *CONTROLS]
    assert shown.loc["true labels", "accuracy"] == "1.000"
    assert shown.loc["true labels", "above controls"] == "1.000"
    left_out = shown.loc[CONTROLS, ["seeds", "val macro-F1", "log-loss", "seconds"]]
    assert (left_out == "").all(axis=None)
    assert [model.name for model in comparison.models] == ["linear"]


def test_cells_of_one_type_are_no_trouble(write_run):
    labels = {"val": np.zeros(40, int), "test": np.zeros(40, int)}
    scores = with_controls(compared(write_run("linear", labels=labels)))
    assert np.isfinite(scores["above_controls"]).all()
