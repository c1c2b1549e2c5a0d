"""Figures of a run's cells: what is drawn is what was counted."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from evaluation.calibration import reliability
from evaluation.run_plots import draw_confusion, figures

NASTY = [r"$\frac{$", "a_$", "x" * 300, "two\nlines"]


@pytest.fixture
def cells(rng):
    labels = rng.choice(4, size=400, p=[0.6, 0.3, 0.1, 0.0])
    logits = rng.normal(size=(400, 4)) + 2 * np.eye(4)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def text_of(axis):
    return [label.get_text() for label in axis.texts]


def test_figures_show_the_numbers(cells):
    labels, probabilities = cells
    drawn = figures(labels, probabilities, list("abcd"))
    assert list(drawn) == ["confusion_matrix", "f1_by_class", "calibration"]
    predicted = probabilities.argmax(axis=1)
    of_true_a = int((predicted[labels == 0] == 0).sum())
    matrix = drawn["confusion_matrix"].axes[0]
    assert str(of_true_a) in text_of(matrix)
    assert matrix.images[0].get_array()[0, 0] == pytest.approx(of_true_a / (labels == 0).sum())
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted", "true")
    bars = drawn["f1_by_class"].axes[0]
    n_a = int((labels == 0).sum())
    assert bars.get_yticklabels()[-1].get_text() == f"a  ({n_a})"  # commonest on top
    n_predicted = int((predicted == 0).sum())
    assert bars.patches[-1].get_width() == pytest.approx(2 * of_true_a / (n_a + n_predicted))
    assert len(bars.patches) == 3  # no cell is of the fourth
    line = drawn["calibration"].axes[0].lines[1]
    bins = reliability(labels, probabilities)
    bins = bins[bins["n_cells"] >= 15]
    assert line.get_ydata() == pytest.approx(bins["accuracy"].to_numpy())


@pytest.mark.parametrize("n_cells", [1, 400])
def test_any_names_and_few_cells_can_be_drawn(cells, n_cells, tmp_path):
    labels, probabilities = cells
    for name, figure in figures(labels[:n_cells], probabilities[:n_cells], NASTY).items():
        figure.savefig(tmp_path / f"{name}.png")


def test_of_many_classes_no_counts_are_written():
    axis = Figure().subplots()
    draw_confusion(axis, np.eye(21), [str(i) for i in range(21)])
    assert text_of(axis) == []
