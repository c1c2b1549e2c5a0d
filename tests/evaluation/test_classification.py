"""Our scores are scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics

from evaluation import CELL_SCORES, METRICS
from evaluation.classification import (
    accuracy,
    balanced_accuracy,
    confusion,
    log_loss,
    macro_f1,
    per_class,
    top3_accuracy,
    weighted_f1,
)


@pytest.fixture(params=[3, 5, 13])
def cells(request, rng):
    n_classes = request.param
    labels = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=200)])
    probabilities = rng.dirichlet(np.full(n_classes, 0.5), size=len(labels))
    weights = rng.integers(0, 4, size=len(labels))
    weights[:n_classes] = 1  # scikit-learn warns of classes without weight
    return labels, probabilities, weights


@pytest.mark.parametrize("weighted", [False, True])
def test_equal_to_scikit_learn(cells, weighted):
    labels, probabilities, weights = cells
    weights = weights if weighted else None
    predictions = probabilities.argmax(axis=1)
    names = np.arange(probabilities.shape[1])
    pairs = [
        (accuracy, metrics.accuracy_score(labels, predictions, sample_weight=weights)),
        (
            balanced_accuracy,
            metrics.balanced_accuracy_score(labels, predictions, sample_weight=weights),
        ),
        (macro_f1, metrics.f1_score(labels, predictions, average="macro", sample_weight=weights)),
        (
            weighted_f1,
            metrics.f1_score(labels, predictions, average="weighted", sample_weight=weights),
        ),
        (log_loss, metrics.log_loss(labels, probabilities, labels=names, sample_weight=weights)),
    ]
    if len(names) > 3:
        top3 = metrics.top_k_accuracy_score(
            labels, probabilities, k=3, labels=names, sample_weight=weights
        )
        pairs.append((top3_accuracy, top3))
    for ours, theirs in pairs:
        assert ours(labels, probabilities, weights=weights) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_is_so_many_copies(name, cells):
    labels, probabilities, weights = cells
    copies = np.repeat(np.arange(len(labels)), weights)
    weighted = METRICS[name](labels, probabilities, weights=weights)
    assert weighted == pytest.approx(METRICS[name](labels[copies], probabilities[copies]))


def test_confusion_and_per_class_are_scikit_learns(cells):
    labels, probabilities, _ = cells
    n_classes = probabilities.shape[1]
    predictions = probabilities.argmax(axis=1)
    theirs = metrics.confusion_matrix(labels, predictions)
    assert (confusion(labels, predictions, n_classes) == theirs).all()
    table = per_class(labels, predictions, [str(i) for i in range(n_classes)])
    precision, recall, f1, n_cells = metrics.precision_recall_fscore_support(
        labels, predictions, zero_division=0
    )
    np.testing.assert_allclose(table["precision"], precision)
    np.testing.assert_allclose(table["recall"], recall)
    np.testing.assert_allclose(table["f1"], f1)
    assert table["n_cells"].tolist() == n_cells.tolist()


def test_macro_f1_is_over_the_classes_of_the_labels():
    one_hot = np.eye(4)
    labels = np.array([0, 0, 1])
    assert macro_f1(labels, one_hot[[0, 0, 1]]) == 1.0  # classes 2 and 3 are nowhere
    assert macro_f1(labels, one_hot[[0, 0, 3]]) == 0.5  # 3 is handed out, and is no type here
    assert macro_f1(labels, one_hot[[0, 0, 0]]) == 0.4  # 1 is there, and never handed out
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 3, 1, 0, 1])
    expected = metrics.f1_score(labels, predictions, labels=[0, 1, 2], average="macro")
    assert macro_f1(labels, one_hot[predictions]) == pytest.approx(expected)


def test_macro_f1_of_some_classes_is_that_of_their_cells(cells):
    labels, probabilities, weights = cells
    some = np.array([0, 2])
    own = np.isin(labels, some)
    expected = macro_f1(labels[own], probabilities[own], weights=weights[own])
    assert macro_f1(labels, probabilities, weights=weights, classes=some) == expected
    assert np.isnan(macro_f1(labels, probabilities, classes=np.array([], int)))


@pytest.mark.parametrize("name", CELL_SCORES)
def test_means_over_cells_are_the_means_of_what_each_cell_adds(name, cells):
    labels, probabilities, weights = cells
    added = CELL_SCORES[name](labels, probabilities)
    expected = np.average(added, weights=weights)
    assert METRICS[name](labels, probabilities, weights=weights) == pytest.approx(expected)
    assert METRICS[name](labels[:1], probabilities[:1]) == pytest.approx(added[0])


def test_among_equal_probabilities_the_larger_class_is_in_the_top_three():
    even = np.full((5, 5), 0.2)
    assert top3_accuracy(np.arange(5), even) == 0.6
    assert [top3_accuracy(np.array([k]), even[:1]) for k in range(5)] == [0, 0, 1, 1, 1]


def test_an_impossible_class_costs_much_and_not_everything():
    assert np.isfinite(log_loss(np.array([0]), np.array([[0.0, 1.0]])))
