import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from sklearn.metrics.pairwise import cosine_similarity

from evaluation.annotated_file import AnnotationError
from evaluation.hidden_scores import DECODER, METRICS, HiddenScores, judge


@pytest.fixture
def hidden(rng):
    """Return cell, gene, truth and predictions of 60 cells x 8 genes; the last is hardly there."""
    is_hidden = rng.random((60, 8)) < 0.8
    cell, gene = np.nonzero(is_hidden)
    truth = np.where(rng.random(len(cell)) < 0.4, rng.gamma(2.0, 1.0, len(cell)), 0)
    truth[(gene == 7) & (cell > 5)] = 0
    noise = rng.normal(size=len(cell))
    predictions = {
        DECODER: truth + 0.5 * noise,
        "worse": truth + noise,
        "mean": np.linspace(0.5, 1.5, 8)[gene],
        "the same": truth + 0.5 * noise,
    }
    return cell, gene, truth, predictions


NAMES = np.array([f"G{i}" for i in range(8)])


@pytest.mark.parametrize("scope", ["all", "detected"])
def test_scores_are_those_of_others(hidden, scope):
    cell, gene, truth, predictions = hidden
    found = judge(cell, gene, truth, predictions, NAMES, n_resamples=20)
    table = found.scores[found.scores["genes"] == scope]
    score = table.set_index(["method", "metric"])["score"]
    asked = truth > (0 if scope == "detected" else -1)
    for name, p in predictions.items():
        assert score[name, "rmse"] == pytest.approx(
            root_mean_squared_error(truth[asked], p[asked])
        )
        assert score[name, "mae"] == pytest.approx(mean_absolute_error(truth[asked], p[asked]))
        pairs = [(truth[asked & (gene == g)], p[asked & (gene == g)]) for g in range(7)]
        cosines = [cosine_similarity(t[None], q[None]).item() for t, q in pairs]
        assert score[name, "cosine"] == pytest.approx(np.mean(cosines))
        r = [0 if name == "mean" else pearsonr(t, q).statistic for t, q in pairs]
        assert score[name, "pearson"] == pytest.approx(np.mean(r), abs=1e-9)
        if scope == "all":
            np.testing.assert_allclose(found.genes[name], r, atol=1e-9)
    assert found.genes.index.tolist() == NAMES[:7].tolist()


def test_the_decoder_is_better_worse_or_nobody_can_tell(hidden):
    cell, gene, truth, predictions = hidden
    table = judge(cell, gene, truth, predictions, NAMES, n_resamples=100).scores
    said = table.set_index(["genes", "method", "metric"])
    for metric in METRICS:
        assert said["decoder_is"]["all", "worse", metric] == "better"
        assert said["decoder_is"]["all", "the same", metric] in ("level", "cannot tell")
        row = said.loc["all", "worse", metric]
        assert row["low"] < row["difference"] < row["high"]
    turned = {DECODER: predictions["worse"], "better": predictions[DECODER]}
    table = judge(cell, gene, truth, turned, NAMES, n_resamples=100).scores
    against = table[(table["method"] == "better") & (table["genes"] == "all")]
    assert set(against["decoder_is"]) == {"worse"}


def test_a_cell_that_is_drawn_twice_counts_twice(hidden):
    cell, gene, truth, predictions = hidden
    weights = np.ones((60, 1))
    weights[3], weights[11] = 2, 0
    found = HiddenScores(cell, gene, truth, predictions, 60).scores(weights)
    order = np.concatenate([np.flatnonzero(cell != 11), np.flatnonzero(cell == 3)])
    again = {name: p[order] for name, p in predictions.items()}
    drawn = HiddenScores(cell[order], gene[order], truth[order], again, 60)
    drawn.genes, expected = drawn.genes, drawn.scores(np.ones((60, 1)))
    for name in predictions:
        np.testing.assert_allclose(found[name], expected[name])


def test_nothing_hidden_is_said():
    nothing = np.empty(0, dtype=int)
    with pytest.raises(AnnotationError, match="no gene was hidden"):
        judge(nothing, nothing, nothing.astype(float), {}, NAMES)
