"""Calibration: errors of known size are found, and temperature mends what it should."""

import numpy as np
import pytest

from evaluation.calibration import (
    apply_temperature,
    brier,
    confidence_threshold,
    ece,
    fit_temperature,
    reliability,
    squared_distance,
)


@pytest.fixture
def honest(rng):
    """Cells whose labels are drawn from their very probabilities."""
    probabilities = rng.dirichlet(np.full(4, 0.7), size=5000)
    labels = np.array([rng.choice(4, p=p) for p in probabilities])
    return labels, probabilities


def test_honest_probabilities_have_little_error(honest):
    assert ece(*honest) < 0.02
    assert fit_temperature(*honest) == pytest.approx(1, abs=0.1)


def test_error_of_a_constant_confidence_is_its_distance_to_accuracy():
    probabilities = np.tile([0.9, 0.1], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    assert ece(labels, probabilities) == pytest.approx(0.3)
    assert reliability(labels, probabilities)["accuracy"].tolist() == [0.6]


def test_brier_is_the_squared_distance(rng):
    probabilities = rng.dirichlet(np.ones(3), size=50)
    labels = rng.integers(3, size=50)
    expected = np.mean(np.sum((probabilities - np.eye(3)[labels]) ** 2, axis=1))
    assert brier(labels, probabilities) == pytest.approx(expected)


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_temperature_undoes_sharpening(honest, sharpness):
    labels, probabilities = honest
    sharpened = apply_temperature(probabilities, 1 / sharpness)
    temperature = fit_temperature(labels, sharpened)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    mended = apply_temperature(sharpened, temperature)
    np.testing.assert_allclose(mended.sum(axis=1), 1)
    assert (mended.argmax(axis=1) == probabilities.argmax(axis=1)).all()


@pytest.mark.parametrize("n_cells", [10, 1000])
def test_val_cells_all_right_do_not_make_certain(n_cells, rng):
    probabilities = rng.dirichlet([20, 1, 1], size=n_cells)
    labels = probabilities.argmax(axis=1)
    mended = apply_temperature(probabilities, fit_temperature(labels, probabilities))
    doubt = 1 - mended.max(axis=1).mean()
    assert 0.2 / n_cells < doubt < 2 / n_cells


def test_threshold_flags_one_in_twenty_of_the_correctly_predicted(honest):
    labels, probabilities = honest
    threshold = confidence_threshold(labels, probabilities)
    right = probabilities.argmax(axis=1) == labels
    flagged = probabilities.max(axis=1)[right] < threshold
    assert flagged.mean() == pytest.approx(0.05, abs=0.01)


def test_threshold_of_a_model_that_is_never_right_flags_all():
    assert confidence_threshold(np.array([1, 1]), np.array([[0.9, 0.1], [0.8, 0.2]])) == 1.0


def test_bins_are_closed_on_the_right_as_in_the_paper():
    """Confidences of 6/15 and 7/15 are the upper edges of two bins, and each lies in its own."""
    edges = np.array([6, 7, 7, 7, 15]) / 15
    probabilities = np.column_stack([edges, (1 - edges) / 2, (1 - edges) / 2])
    probabilities[:2, 1:] = (1 - edges[:2, None]) / 2
    bins = reliability(np.array([0, 0, 1, 0, 0]), probabilities)
    assert bins.index.tolist() == [5, 6, 14]
    assert bins["n_cells"].tolist() == [1, 3, 1]


def test_error_within_a_bin_cancels_and_between_bins_does_not():
    """Two cells of .62 and .66 confidence share the bin (.6, .667]; .62 and .70 do not."""
    labels = np.array([0, 1])
    together = np.array([[0.62, 0.38], [0.66, 0.34]])
    apart = np.array([[0.62, 0.38], [0.70, 0.30]])
    assert ece(labels, together) == pytest.approx(0.5 * abs(1 - 0.62 - 0.66))
    assert ece(labels, apart) == pytest.approx(0.5 * (0.38 + 0.70))


def test_error_counts_cells_by_their_weight():
    labels = np.array([0, 1])
    apart = np.array([[0.62, 0.38], [0.70, 0.30]])
    expected = (3 * 0.38 + 0.70) / 4
    assert ece(labels, apart, weights=np.array([3, 1])) == pytest.approx(expected)


def test_brier_of_the_worst_is_2():
    assert brier(np.array([0]), np.array([[0.0, 1.0]])) == 2.0
    assert squared_distance(np.array([0, 1]), np.eye(2)[[0, 0]]).tolist() == [0, 2]


def test_temperature_is_no_other_for_more_of_the_same_cells(honest):
    labels, probabilities = honest
    sharp = apply_temperature(probabilities, 0.5)
    twice = fit_temperature(np.tile(labels, 2), np.tile(sharp, (2, 1)))
    assert twice == pytest.approx(fit_temperature(labels, sharp), rel=0.01)


@pytest.mark.parametrize("n_classes", [1, 2])
def test_temperature_of_a_single_cell_is_a_number(n_classes):
    found = fit_temperature(np.array([0]), np.full((1, n_classes), 1 / n_classes))
    assert 0.009 < found < 101
