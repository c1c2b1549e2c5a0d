"""Scores of what a run predicts, whichever objectives predict it."""

import numpy as np
import pytest

from evaluation import METRICS
from models.objectives.classify import ClassifyConfig
from models.objectives.masked_gene import MaskedGeneConfig
from models.objectives.neighbors import NeighborsConfig
from training.results import score


@pytest.fixture
def predictions(rng):
    return {
        "probabilities": rng.dirichlet(np.ones(3), 20),
        "masked_gene_hidden": np.full(20, 2),
        "masked_gene_correct": np.ones(20),
        "masked_gene_loss": np.full(20, 3.0),
    }


@pytest.mark.parametrize("objectives", [[], [ClassifyConfig(), NeighborsConfig()]])
def test_probabilities_are_scored_once_whoever_predicts_them(rng, predictions, objectives):
    labels = rng.integers(0, 3, 20)
    found = score(objectives, predictions, labels)
    assert list(found) == list(METRICS)
    for name, metric in METRICS.items():
        assert found[name] == metric(labels, predictions["probabilities"])


def test_an_objectives_own_scores_stand_beside_them(rng, predictions):
    objectives = [MaskedGeneConfig(), ClassifyConfig()]
    found = score(objectives, predictions, rng.integers(0, 3, 20))
    assert found.keys() == METRICS.keys() | {"masked_gene_loss", "masked_gene_accuracy"}
    del predictions["probabilities"]
    found = score(objectives[:1], predictions, np.full(20, -1))
    assert found == {"masked_gene_loss": 1.5, "masked_gene_accuracy": 0.5}
