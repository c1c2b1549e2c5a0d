import pytest
import torch
from torch import nn

from models.rank_transformer import RankTransformerConfig
from tests import made_up
from training.checkpoint import optimizer_tensors
from training.optim import freeze, learning_rate, make_optimizer, set_learning_rate


def test_only_the_weights_of_linear_layers_decay():
    config = RankTransformerConfig(d_model=8, n_heads=2, value_embedding="mlp")
    model = made_up.learner(config, n_segments=2)
    decayed, plain = make_optimizer(model, lr=1e-3, weight_decay=0.1).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {names[id(p)] for p in decayed["params"]} == linear


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return made_up.learner(RankTransformerConfig(d_model=8, n_heads=2), n_segments=2)


def test_gene_embeddings_may_have_a_rate_of_their_own(learner):
    (name,) = learner.gene_embeddings
    assert name == "network.gene_embedding.weight"
    plain = make_optimizer(learner, lr=1e-3, weight_decay=0.1, lr_factors={name: 1.0})
    assert len(plain.param_groups) == 2  # as without the setting
    optimizer = make_optimizer(learner, lr=1e-3, weight_decay=0.1, lr_factors={name: 0.25})
    set_learning_rate(optimizer, 4e-3)
    *others, genes = optimizer.param_groups
    assert [p is learner.get_parameter(name) for p in genes["params"]] == [True]
    assert (genes["lr"], genes["weight_decay"]) == (1e-3, 0.0)
    assert [group["lr"] for group in others] == [4e-3, 4e-3]
    n_parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    assert n_parameters == len(list(learner.parameters()))


def test_frozen_weights_stay_bit_equal_and_have_no_state(learner):
    # The first is a gene embedding, the other a matrix that would decay.
    factors = {"network.gene_embedding.weight": 0.0, "heads.classify.layers.0.weight": 0.0}
    freeze(learner, factors)
    optimizer = make_optimizer(learner, lr=0.1, weight_decay=0.5, lr_factors=factors)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for parameter in learner.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in learner.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in factors), name
    stateful = {name.rpartition("/")[0] for name in optimizer_tensors(optimizer, learner)}
    assert stateful == before.keys() - factors.keys()


def test_learning_rate_rises_then_falls():
    rates = [
        learning_rate(step, peak=1.0, n_steps=100, warmup_fraction=0.1) for step in range(100)
    ]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_learning_rate_without_warmup_and_beyond_the_end():
    assert learning_rate(0, peak=2.0, n_steps=10, warmup_fraction=0.0) == 2.0
    assert learning_rate(50, peak=2.0, n_steps=10, warmup_fraction=0.0) == pytest.approx(0.02)
    assert learning_rate(0, peak=2.0, n_steps=1, warmup_fraction=0.5) == 2.0


def test_set_learning_rate_reaches_every_group():
    optimizer = make_optimizer(nn.Linear(2, 2), lr=1.0, weight_decay=0.1)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert isinstance(optimizer, torch.optim.AdamW)


def test_a_decayed_weight_shrinks_by_rate_times_decay_where_no_gradient_moves_it():
    layer = nn.Linear(3, 2)
    optimizer = make_optimizer(layer, lr=0.1, weight_decay=0.5)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias.detach(), bias)
