"""Resampling: intervals that statistics knows by formula, and pairing."""

import numpy as np
import pytest

from evaluation.bootstrap import interval, resample_weights, resampled_scores
from evaluation.classification import accuracy


def test_a_resample_has_as_many_cells(rng):
    for weights in resample_weights(50, 20, rng):
        assert weights.sum() == 50


def test_donors_are_drawn_whole(rng):
    donors = np.array(["a"] * 10 + ["b"] * 30 + ["c"] * 5)
    for weights in resample_weights(45, 20, rng, donors=donors):
        drawn = {donor: set(weights[donors == donor]) for donor in "abc"}
        assert all(len(times) == 1 for times in drawn.values())
        assert sum(times.pop() for times in drawn.values()) == 3


def test_interval_of_accuracy_is_the_binomial_one(rng):
    labels = np.zeros(400, dtype=int)
    right = rng.random(400) < 0.8
    probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    scores = resampled_scores(
        labels, [[probabilities]], {"accuracy": accuracy}, n_resamples=2000, seed=0
    )
    low, high = interval(scores[:, 0, 0])
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert low == pytest.approx(right.mean() - half, abs=0.01)
    assert high == pytest.approx(right.mean() + half, abs=0.01)


def test_models_are_scored_on_the_same_resample(rng):
    labels = rng.integers(3, size=100)
    probabilities = rng.dirichlet(np.ones(3), size=100)
    scores = resampled_scores(
        labels, [[probabilities], [probabilities]], {"accuracy": accuracy}, n_resamples=50, seed=0
    )
    assert (scores[:, 0] == scores[:, 1]).all()
    assert scores[:, 0].std() > 0


def test_score_of_a_model_is_the_mean_of_its_seeds():
    labels = np.zeros(10, dtype=int)
    right, wrong = np.tile([1.0, 0.0], (10, 1)), np.tile([0.0, 1.0], (10, 1))
    scores = resampled_scores(
        labels, [[right, wrong]], {"accuracy": accuracy}, n_resamples=5, seed=0
    )
    assert (scores == 0.5).all()
