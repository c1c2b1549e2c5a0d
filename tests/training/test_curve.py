import numpy as np
import pytest
import torch

from models.flops import training_flop
from models.rank_transformer import RankTransformerConfig
from training import curve
from training.distributed import Ranks


@pytest.fixture
def network():
    return RankTransformerConfig(d_model=8, n_heads=2).build(
        n_vocabulary=21, n_classes=4, n_tokens=12, n_segments=1
    )


@pytest.fixture
def clock(monkeypatch):
    """Show a time that only the test moves on."""
    now = [100.0]
    monkeypatch.setattr(curve.time, "perf_counter", lambda: now[0])
    return now


def test_a_point_is_a_mean_over_cells_and_a_rate_over_seconds(network, clock):
    points = curve.Curve(network, "float32", Ranks(0, 1, torch.device("cpu")))
    for _ in range(2):
        with points.waiting():
            clock[0] += 1
        points.add(torch.tensor([2.0, 4.0]), [3, 1])
        clock[0] += 3
    points.add(torch.zeros(0), [])
    point = points.read()
    model, hardware = training_flop(network, [3, 1] * 2)
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
    points.add(torch.tensor([1.0]), [3])
    assert points.read()["perf/tokens_per_second"] == 3  # since the last point


def test_on_cards_the_rate_is_held_against_a_matrix_product(network, clock, monkeypatch):
    asked = []

    def card_rate(device, dtype):
        asked.append((device, dtype))
        return 1e12

    monkeypatch.setattr(curve, "card_rate", card_rate)
    card = torch.device("cuda", 1)
    points = curve.Curve(network, "bfloat16", Ranks(0, 1, card))
    points.add(torch.ones(2), [12, 12])
    clock[0] += 2
    model, hardware = training_flop(network, np.array([12, 12]))
    point = points.read()
    assert point["perf/model_flop_utilization"] == pytest.approx(model / 2 / 1e12)
    assert point["perf/hardware_flop_utilization"] == pytest.approx(hardware / 2 / 1e12)
    assert asked == [(card, torch.bfloat16)]
