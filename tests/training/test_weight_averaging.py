"""Alone; on several processes it is tested in tests/test_several_processes.py."""

import numpy as np
import pytest
import torch
from torch import nn

from training.weight_averaging import averaged, start_average, update_average


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def weights_of(network: nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in network.parameters()]


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_it_is_the_moving_average_that_numpy_computes(network, decay):
    average, expected = start_average(network), weights_of(network)
    for step in range(1, 61):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        update_average(average, network, step, decay)
        kept = min(decay, (1 + step) / (10 + step))
        now = weights_of(network)
        expected = [kept * a + (1 - kept) * w for a, w in zip(expected, now, strict=True)]
        for mean, array in zip(average.values(), expected, strict=True):
            np.testing.assert_allclose(mean.numpy(), array, atol=1e-5)


def test_the_random_start_is_soon_forgotten(network):
    average = start_average(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    for step in range(1, 41):
        update_average(average, network, step, 0.99)
    for mean in average.values():
        torch.testing.assert_close(mean, torch.ones_like(mean), atol=1e-5, rtol=0)


def test_inside_the_block_the_model_has_the_average_and_its_own_tensors(network):
    average = start_average(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    own, means = weights_of(network), [t.numpy().copy() for t in average.values()]
    places = [p.data_ptr() for p in network.parameters()]

    def look() -> None:
        assert [p.data_ptr() for p in network.parameters()] == places
        for found, mean in zip(weights_of(network), means, strict=True):
            assert np.array_equal(found, mean)

    def interrupted() -> None:
        with averaged(average, network):
            look()
            raise KeyboardInterrupt

    with averaged(average, network):
        look()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for found, expected in zip(weights_of(network), own, strict=True):
        assert np.array_equal(found, expected)
    for found, expected in zip(average.values(), means, strict=True):
        assert np.array_equal(found.numpy(), expected)


def test_running_statistics_are_averaged_like_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network.register_buffer("constant", torch.ones(1), persistent=False)  # no checkpoint has it
    average = start_average(network)
    assert average.keys() == network.state_dict().keys() - {"1.num_batches_tracked"}
    expected = network[1].running_mean.numpy().copy()
    for step in range(1, 21):
        network(torch.randn(8, 3))
        update_average(average, network, step, 0.7)
        kept = min(0.7, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * network[1].running_mean.numpy()
    np.testing.assert_allclose(average["1.running_mean"], expected, atol=1e-6)
    own = network[1].running_mean.clone()
    with averaged(average, network):
        np.testing.assert_allclose(network[1].running_mean, expected, atol=1e-6)
    assert torch.equal(network[1].running_mean, own)
    assert (own - average["1.running_mean"]).abs().max() > 1e-3


def test_frozen_weights_have_no_average_of_their_own(network):
    network[0].requires_grad_(False)
    assert start_average(network).keys() == {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_without_an_average_the_weights_are_the_models_own(network):
    own = weights_of(network)
    with averaged({}, network):
        for found, expected in zip(weights_of(network), own, strict=True):
            assert np.array_equal(found, expected)
