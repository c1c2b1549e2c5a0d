"""Alone; on several processes it is tested in tests/test_several_processes.py."""

import pytest
import torch
from torch import nn

from training.checkpoint import CheckpointError
from training.clock import Clock
from training.distributed import Ranks
from training.optim import make_optimizer
from training.state import Training


@pytest.fixture
def make_training():
    def make(seed: int, average_decay: float | None = None) -> Training:
        torch.manual_seed(seed)
        network = nn.Linear(3, 2)
        optimizer = make_optimizer(network, lr=0.1, weight_decay=0.1)
        ranks = Ranks(0, 1, torch.device("cpu"))
        return Training(network, network, optimizer, ranks, average_decay)

    return make


def update(training: Training) -> list[torch.Tensor]:
    training.learner(torch.ones(1, 3)).square().sum().backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    training.end_update()
    return [p.detach().clone() for p in training.learner.parameters()]


def test_the_best_weights_come_back(make_training):
    training = make_training(0)
    seen = []
    for epoch, rating in enumerate([(0.5, -1.0), (0.7, -2.0), (0.7, -2.0), (0.6, -0.1)]):
        training.epoch = epoch
        seen.append(update(training))
        training.keep_if_best(rating)
    assert (training.best_epoch, training.best_rating) == (1, (0.7, -2.0))
    training.restore_best()
    assert all(
        torch.equal(a, b) for a, b in zip(training.learner.parameters(), seen[1], strict=True)
    )


def test_of_an_average_it_is_the_average_that_is_kept(make_training):
    training = make_training(0, average_decay=0.5)
    last = update(training)
    expected = [t.clone() for t in training.average.values()]
    training.keep_if_best((0.5, 0.0))
    for a, b, c in zip(training.best_weights.values(), expected, last, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    update(training)
    training.restore_best()
    for a, b in zip(training.learner.parameters(), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", [None, 0.7])
def test_a_resumed_training_goes_on_as_if_never_stopped(make_training, tmp_path, decay):
    one, other = make_training(0, decay), make_training(1, decay)
    update(one)
    one.epoch, one.clock = 1, Clock(2.5, 0.5)
    one.keep_if_best((0.25, -0.5))
    update(one)
    one.save(tmp_path / "checkpoint.safetensors")
    other.resume(tmp_path / "checkpoint.safetensors")
    for name in ("epoch", "step", "clock", "best_epoch", "best_rating"):
        assert getattr(other, name) == getattr(one, name)
    assert all(torch.equal(one.best_weights[k], other.best_weights[k]) for k in one.best_weights)
    for _ in range(3):
        for a, b in zip(update(one), update(other), strict=True):
            assert torch.equal(a, b)
        assert one.average.keys() == other.average.keys()
        assert all(torch.equal(one.average[name], other.average[name]) for name in one.average)


def test_a_checkpoint_without_the_average_is_refused(make_training, tmp_path):
    make_training(0).save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="weights of another model"):
        make_training(0, average_decay=0.7).resume(tmp_path / "checkpoint.safetensors")
