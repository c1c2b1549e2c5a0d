"""Dropout on a CPU: what torch's does, from fewer random numbers."""

import pytest
import torch
from torch.autograd import gradcheck

from models.dropout import LEVELS, Dropout


def drop(p: float, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(p).train()(x)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9, 2 / LEVELS])
def test_the_share_that_is_dropped_and_the_scale_of_the_rest(p):
    n = 4_000_000
    dropped = drop(p, torch.ones(n)) == 0
    # each of the four numbers that a random number is cut into has the same share
    for which in range(4):
        share = dropped[which::4].double().mean()
        assert abs(share - p) < 5 * (p * (1 - p) / (n / 4)) ** 0.5 + 0.5 / LEVELS
    kept = drop(p, torch.ones(n))[~dropped]
    # p is rounded to a multiple of 1 / LEVELS, and the scale belongs to what it is then
    assert kept.unique().tolist() == pytest.approx([1 / (1 - p)], rel=0.5 / LEVELS / (1 - p))


def test_values_are_dropped_independently():
    dropped = (drop(0.5, torch.ones(1_000_000)) == 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8, 512):
        assert abs((dropped[lag:] * dropped[:-lag]).mean() * 4) < 0.005


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_type_are_kept(shape, dtype):
    y = drop(0.3, torch.ones(shape, dtype=dtype))
    assert y.shape == shape
    assert y.dtype == dtype


def test_the_seed_decides():
    x = torch.randn(100, 8)
    torch.testing.assert_close(drop(0.3, x), drop(0.3, x), rtol=0, atol=0)
    assert (drop(0.3, x) != drop(0.3, x, seed=1)).any()


def test_gradients_pass_where_values_did():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda z: drop(0.4, z), x)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped_at_0_and_in_evaluation(p, training):
    x = torch.randn(10, 3)
    assert torch.equal(Dropout(p).train(training)(x), x)


def test_all_is_dropped_at_1():
    assert not drop(1.0, torch.ones(10)).any()


def test_a_share_outside_of_0_and_1_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.2)
