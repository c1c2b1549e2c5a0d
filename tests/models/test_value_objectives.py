"""Objectives of values: against numpy, and planted problems that they solve."""

import numpy as np
import pytest
import torch

from dataset.vocabulary import CLS
from models.network import Encoded
from models.objectives.base import Bank
from models.objectives.cell_value import CellValueConfig
from models.objectives.elastic_similarity import ElasticSimilarityConfig
from models.objectives.hidden_values import TARGET
from models.objectives.masked_value import MaskedValueConfig
from models.value_embedding import HIDDEN
from tests.made_up import facts, learner
from tests.value_cells import CONFIG, SIZES, pairs, train
from training.counter_random import draw_for


def test_a_share_of_the_values_is_hidden_with_its_counts_and_once_only(rng):
    batch = pairs(rng, 400)
    one, other = MaskedValueConfig(masked_fraction=0.3), CellValueConfig(masked_fraction=0.9)
    draw, data = draw_for(batch, 3), facts(**SIZES)
    found = one.hide(batch, draw, data)
    hidden = found[TARGET] >= 0
    assert hidden.float().mean() == pytest.approx(0.3 * 6 / 7, abs=0.02)
    assert not hidden[batch["token_ids"] == CLS].any()
    assert torch.equal(found[TARGET][hidden], batch["values"][hidden].float())
    assert (found["values"][hidden] == HIDDEN).all()
    assert not found["counts"][hidden].any()
    for name in ("values", "counts"):
        assert torch.equal(found[name][~hidden], batch[name][~hidden].float())
    assert torch.equal(found["token_ids"], batch["token_ids"])
    assert other.hide(found, draw, data) is found


@pytest.mark.parametrize("kind", [MaskedValueConfig, CellValueConfig])
def test_losses_and_scores_are_those_of_numpy(rng, kind):
    torch.manual_seed(0)
    objective = kind()
    model = learner(CONFIG, [objective], **SIZES).eval()
    batch = pairs(rng, 9)
    hidden = model.hide(batch, draw_for(batch, 1))
    head = model.heads[objective.kind]
    with torch.no_grad():
        encoded = model.network(hidden, tokens=True)
        losses = model(hidden)[:, 0]
        predictions = {k: v.numpy() for k, v in model(hidden, predict=[objective.kind]).items()}
        genes = model.network.gene_embedding.weight
    errors, targets, expected = [], [], []
    model.requires_grad_(False)
    for cell in range(9):
        of_cell = []
        for token in range(7 * cell + 1, 7 * cell + 7):
            if hidden[TARGET][token] < 0:
                continue
            if kind is MaskedValueConfig:
                found = head.layers(encoded.token_states[token])[0]
            else:
                query = 1 / (1 + torch.exp(-head.to_query(genes[batch["token_ids"][token]])))
                found = (head.to_cell.weight @ query) @ encoded.cell_embedding[cell] / 4
            target = float(batch["values"][token]) / 10
            of_cell.append((float(found) - target) ** 2)
            targets.append(target)
        errors += of_cell
        expected.append(np.mean(of_cell) if of_cell else 0.0)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    scores = objective.score(predictions, np.zeros(9))
    assert scores[f"{objective.kind}_loss"] == pytest.approx(np.mean(errors), rel=1e-4)
    r2 = 1 - np.mean(errors) / np.var(targets)
    assert scores[f"{objective.kind}_r2"] == pytest.approx(r2, rel=1e-3)


def test_a_value_that_another_gene_determines_is_recovered(rng):
    torch.manual_seed(0)
    objectives = [MaskedValueConfig(masked_fraction=0.25), CellValueConfig()]
    model = learner(CONFIG, objectives, **SIZES)
    train(model, lambda: pairs(rng, 128), n_steps=400, lr=1e-2)
    new = pairs(rng, 300)
    hidden = model.hide(new, draw_for(new, 10_000))
    shuffled = hidden | {TARGET: hidden[TARGET].clone()}
    places = torch.nonzero(hidden[TARGET] >= 0)[:, 0]
    shuffled[TARGET][places] = hidden[TARGET][places.roll(1)]
    with torch.no_grad():
        of_both = [
            model.eval()(b, predict=[o.kind for o in objectives]) for b in (hidden, shuffled)
        ]
    for objective in objectives:
        right, wrong = (
            objective.score({k: v.numpy() for k, v in found.items()}, np.zeros(300))
            for found in of_both
        )
        # Of four values one has its partner hidden too, and cannot be known.
        assert 0.45 < right[f"{objective.kind}_r2"] < 0.9, objective.kind
        assert wrong[f"{objective.kind}_r2"] < 0.1


def test_elastic_similarity_is_that_of_numpy_and_moves_pairs_apart_or_together(rng):
    objective = ElasticSimilarityConfig(threshold=0.5)
    head = objective.head(None, 0.0, facts())
    others = rng.normal(size=(5, 4))
    x = rng.normal(size=(3, 4))
    x[0] = others[0] + 0.3 * x[0]
    rows = torch.tensor([7, 8, 9, 10, 11])
    bank = torch.tensor(others, dtype=torch.float32)
    objective.remember(head, Bank(bank, torch.zeros(5), rows))
    cells, states = torch.tensor([2, 8, 3]), torch.tensor(x, dtype=torch.float32).requires_grad_()
    losses = objective.loss(Encoded(states), head, {"cell_index": cells})
    expected = []
    for i, cell in enumerate(x):
        terms = []
        for row, other in zip(rows.tolist(), others, strict=True):
            if row != int(cells[i]):
                cosine = cell @ other / np.linalg.norm(cell) / np.linalg.norm(other)
                terms.append(1 - (max(cosine, 0) - 0.5) ** 2)
        expected.append(np.mean(terms))
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-5)
    for cosine, closer in ((0.8, True), (0.3, False)):
        one = torch.tensor([[cosine, (1 - cosine**2) ** 0.5]], requires_grad=True)
        objective.remember(head, Bank(torch.tensor([[1.0, 0.0]]), torch.zeros(1), torch.ones(1)))
        objective.loss(Encoded(one), head, {"cell_index": torch.zeros(1)}).sum().backward()
        assert (one.grad[0, 0] < 0) == closer  # a step goes against the gradient
