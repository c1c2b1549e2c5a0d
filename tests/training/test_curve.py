import numpy as np
import pytest
import torch

from models.rank_transformer import RankTransformerConfig
from tests import made_up
from training import curve
from training.distributed import Ranks


@pytest.fixture
def learner():
    return made_up.learner(RankTransformerConfig(d_model=8, n_heads=2))


@pytest.fixture
def clock(monkeypatch):
    """Show a time that only the test moves on."""
    now = [100.0]
    monkeypatch.setattr(curve.time, "perf_counter", lambda: now[0])
    return now


def test_a_point_is_a_mean_over_cells_and_a_rate_over_seconds(learner, clock):
    points = curve.Curve(learner, "float32", Ranks(0, 1, torch.device("cpu")))
    for _ in range(2):
        with points.waiting():
            clock[0] += 1
        points.add(torch.tensor([[2.0], [4.0]]), [3, 1])
        clock[0] += 3
    points.add(torch.zeros(0, 1), [])
    point = points.read()
    model, hardware = learner.network.training_flop([3, 1] * 2)
    assert 0 < hardware < model
    assert point == {
        "train/loss": 3.0,
        "perf/cells_per_second": 4 / 8,
        "perf/tokens_per_second": 8 / 8,
        "perf/model_gflop_per_second": pytest.approx(model / 8e9),
        "perf/hardware_gflop_per_second": pytest.approx(hardware / 8e9),
        "perf/data_wait_fraction": 2 / 8,
    }
    clock[0] += 1
    points.add(torch.tensor([[1.0]]), [3])
    assert points.read()["perf/tokens_per_second"] == 3  # since the last point


def test_on_cards_the_rate_is_held_against_a_matrix_product(learner, clock, monkeypatch):
    asked = []

    def matmul_flop_per_second(device, dtype):
        asked.append((device, dtype))
        return 1e12

    monkeypatch.setattr(curve, "matmul_flop_per_second", matmul_flop_per_second)
    gpu = torch.device("cuda", 1)
    points = curve.Curve(learner, "bfloat16", Ranks(0, 1, gpu))
    points.add(torch.ones(2, 1), [12, 12])
    clock[0] += 2
    model, hardware = learner.network.training_flop(np.array([12, 12]))
    point = points.read()
    assert point["perf/model_flop_utilization"] == pytest.approx(model / 2 / 1e12)
    assert point["perf/hardware_flop_utilization"] == pytest.approx(hardware / 2 / 1e12)
    assert asked == [(gpu, torch.bfloat16)]
