import numpy as np
import pytest
import torch
from scipy import stats

from training.counter_random import binomial, uniform, update_key


def test_the_mixer_is_splitmix64():
    # The first outputs of the published C code for the state 1234567.
    from training.counter_random import _mix, _signed

    counter = torch.arange(1, 4) * _signed(0x9E3779B97F4A7C15)
    found = [int(z) % 2**64 for z in _mix(counter + 1234567)]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_belong_to_key_cell_stream_and_place():
    cells, places = torch.arange(50)[:, None], torch.arange(20)
    whole = uniform(3, cells, places, stream=1)
    assert torch.equal(uniform(3, cells[[7, 2]], places[:12], stream=1), whole[[7, 2], :12])
    one_each = uniform(3, torch.tensor([7, 7, 2]), torch.tensor([0, 11, 5]), stream=1)
    assert torch.equal(one_each, whole[[7, 7, 2], [0, 11, 5]])
    assert torch.equal(uniform(3, cells, places[4], stream=1), whole[:, 4:5])
    for other in (uniform(4, cells, places, stream=1), uniform(3, cells, places, stream=0)):
        assert (other != whole).float().mean() > 0.99
    assert len(whole.unique()) > 990  # neither do cells share theirs


def test_numbers_stay_as_they_were():
    # Recorded runs are drawn from them.
    found = uniform(3, torch.tensor([[7], [2]]), torch.arange(3), stream=1) * 2**24
    assert found.tolist() == [[15655345, 2908238, 14535204], [7587332, 10815620, 6901040]]


def test_keys_differ():
    assert len({update_key(seed, step) for seed in range(20) for step in range(20)}) == 400


def test_numbers_are_uniform_and_unrelated():
    u = uniform(0, torch.arange(300)[:, None], torch.arange(300), stream=0).double().numpy()
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01
    for a, b in ((u[:, 1:], u[:, :-1]), (u[1:], u[:-1])):  # along a row, from cell to cell
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("n", [1, 2, 9, 19, 40, 500, 20_000])
def test_binomial_numbers_are_binomial(n, p):
    u = torch.linspace(0, 1 - 2**-24, 20_001)
    found = binomial(torch.full_like(u, n), torch.full_like(u, p), u).numpy()
    assert (found == np.round(found)).all()
    assert found.min() >= 0
    assert found.max() <= n
    values = np.arange(n + 1)
    share = np.searchsorted(np.sort(found), values, side="right") / len(found)
    error = np.abs(share - stats.binom.cdf(values, n, p)).max()
    assert error < (2e-4 if n * min(p, 1 - p) < 10 else 0.021)


def test_binomial_at_the_ends():
    n = torch.tensor([0.0, 7.0, 7.0, 0.0, 65_535.0])
    p = torch.tensor([0.5, 1.0, 0.0, 1.0, 1.0])
    for u in (0.0, 1 - 2**-24):
        assert binomial(n, p, torch.full_like(n, u)).tolist() == [0, 7, 0, 0, 65_535]
    assert binomial(n[:0], p[:0], p[:0]).shape == (0,)
