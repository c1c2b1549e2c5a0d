"""Resampling: intervals that statistics knows by formula, their coverage, and pairing."""

from functools import partial

import numpy as np
import pytest

from evaluation.bootstrap import interval, resample_weights, resampled_scores
from evaluation.classification import accuracy, balanced_accuracy, macro_f1


def test_a_resample_has_as_many_cells(rng):
    for weights in resample_weights(50, 20, rng):
        assert weights.sum() == 50


def test_within_types_every_type_keeps_its_weight(rng):
    types = np.repeat([0, 1, 2, 4], [40, 9, 2, 1])
    drawn = list(resample_weights(len(types), 50, rng, types=types))
    for weights in drawn:
        np.testing.assert_allclose(np.bincount(types, weights), [40, 9, 2, 0, 1])
    assert np.std([weights[0] for weights in drawn]) > 0


def test_within_types_the_spread_is_that_of_the_mean_of_a_sample(rng):
    """The variance of a mean of n cells is s^2 / n with s^2 over n - 1, also of three cells."""
    values = np.array([0.0, 1.0, 5.0])
    draws = resample_weights(3, 20_000, rng, types=np.zeros(3, int))
    means = [np.average(values, weights=weights) for weights in draws]
    assert np.var(means) == pytest.approx(values.var(ddof=1) / 3, rel=0.05)


def test_donors_are_drawn_whole(rng):
    donors = np.array(["a"] * 10 + ["b"] * 30 + ["c"] * 5)
    for weights in resample_weights(45, 20, rng, donors=donors):
        drawn = {donor: set(weights[donors == donor]) for donor in "abc"}
        assert all(len(times) == 1 for times in drawn.values())
        assert sum(times.pop() for times in drawn.values()) == 3


def test_donors_are_drawn_with_replacement(rng):
    draws = resample_weights(3, 200, rng, donors=np.array(list("abc")))
    assert {tuple(sorted(weights)) for weights in draws} == {(1, 1, 1), (0, 1, 2), (0, 0, 3)}


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


def test_an_interval_of_95_percent_leaves_out_two_and_a_half_on_each_side():
    assert interval(np.random.default_rng(0).permutation(np.arange(1001.0))) == (25, 975)


def test_resamples_without_a_score_are_left_out_of_an_interval():
    assert interval(np.append(np.arange(1001.0), [np.nan] * 99)) == (25, 975)
    assert np.isnan(interval(np.full(3, np.nan))).all()


def coverage(trial, truth, n_trials=150, n_resamples=150):
    """Return how often the interval holds the truth: at 95 %, and were it one of 90 %."""
    rng = np.random.default_rng(1)
    held = np.zeros((n_trials, 2))
    for i in range(n_trials):
        values = trial(rng, n_resamples, i)
        for k, (low, high) in enumerate((interval(values), np.quantile(values, [0.05, 0.95]))):
            held[i, k] = low <= truth <= high
    return held.mean(axis=0)


def test_intervals_of_accuracy_hold_the_truth_in_95_of_100_cases():
    """Cells of three types, of random numbers, are predicted correctly with known probability."""
    skills = np.array([0.9, 0.7, 0.4])
    shares = np.array([0.5, 0.3, 0.2])

    def trial(rng, n_resamples, seed):
        labels = rng.choice(3, size=200, p=shares)
        right = rng.random(200) < skills[labels]
        named = np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
        how = {"n_resamples": n_resamples, "seed": seed}
        return resampled_scores(labels, [[named]], {"accuracy": accuracy}, **how)[:, 0, 0]

    of_95, of_90 = coverage(trial, skills @ shares)
    assert 0.92 < of_95 < 0.98
    assert of_90 < 0.92


SIZES = np.array([90, 60, 40, 25, 15, 12, 10])


def confusions(skill):
    """Return the probability of each name for a cell of each type, ``(c, c)``."""
    n = len(SIZES)
    return skill * np.eye(n) + (1 - skill) / (n - 1) * (1 - np.eye(n))


def true_macro_f1(named):
    counts = SIZES[:, None] * named
    return np.mean(2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1)))


def drawn_names(rng, labels, named):
    luck = rng.random(len(labels))[:, None]
    return (luck > np.cumsum(named[labels], axis=1)).sum(axis=1).clip(max=len(SIZES) - 1)


def test_intervals_of_a_difference_in_macro_f1_hold_the_truth_in_95_of_100_cases():
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    one, other = confusions(0.9), confusions(0.8)

    def trial(rng, n_resamples, seed):
        models = [[np.eye(len(SIZES))[drawn_names(rng, labels, m)]] for m in (one, other)]
        how = {"n_resamples": n_resamples, "seed": seed, "types": labels}
        scores = resampled_scores(labels, models, {"macro_f1": macro_f1}, **how)
        return scores[:, 0, 0] - scores[:, 1, 0]

    of_95, of_90 = coverage(trial, true_macro_f1(one) - true_macro_f1(other))
    assert 0.92 < of_95 < 0.98
    assert of_90 < 0.92


def test_a_type_of_one_cell_does_not_make_two_humps(rng):
    """Drawn from all cells it is missing from 37 % of the resamples, and macro-F1 jumps."""
    labels = np.append(np.repeat([0, 1, 2], 60), 3)
    named = labels.copy()
    named[-1] = 0  # the one cell is missed
    cells = [[np.eye(4)[named]]]
    how = {"n_resamples": 300, "seed": 0}
    metrics = {"macro_f1": macro_f1, "balanced_accuracy": balanced_accuracy}
    within = resampled_scores(labels, cells, metrics, types=labels, **how)
    anywhere = resampled_scores(labels, cells, metrics, **how)
    assert np.ptp(within, axis=0).max() < 0.01
    assert np.ptp(anywhere, axis=0).min() > 0.2


def test_models_are_scored_on_the_same_resample(rng):
    labels = rng.integers(3, size=100)
    probabilities = rng.dirichlet(np.ones(3), size=100)
    for types in (None, labels):
        scores = resampled_scores(
            labels,
            [[probabilities], [probabilities]],
            {"accuracy": accuracy},
            n_resamples=50,
            seed=0,
            types=types,
        )
        assert (scores[:, 0] == scores[:, 1]).all()
        assert scores[:, 0].std() > 0


def test_equal_cells_may_be_counted_together(rng):
    """What only looks at the name gives the same from probabilities and from names."""
    labels = rng.integers(4, size=150)
    probabilities = rng.dirichlet(np.ones(4), size=150)
    named = np.eye(4)[probabilities.argmax(axis=1)]
    metrics = {"macro_f1": macro_f1, "some": partial(macro_f1, classes=np.array([1, 2]))}
    how = {"n_resamples": 20, "seed": 3, "types": labels}
    a = resampled_scores(labels, [[probabilities]], metrics, **how)
    b = resampled_scores(labels, [[named]], metrics, **how)
    np.testing.assert_allclose(a, b)
    draws = list(resample_weights(150, 20, np.random.default_rng(3), types=labels))
    by_hand = [macro_f1(labels, probabilities, weights=weights) for weights in draws]
    np.testing.assert_allclose(a[:, 0, 0], by_hand)


def test_score_of_a_model_is_the_mean_of_its_seeds():
    labels = np.zeros(10, dtype=int)
    right, wrong = np.tile([1.0, 0.0], (10, 1)), np.tile([0.0, 1.0], (10, 1))
    scores = resampled_scores(
        labels, [[right, wrong]], {"accuracy": accuracy}, n_resamples=5, seed=0
    )
    assert (scores == 0.5).all()
