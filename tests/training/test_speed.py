import pytest
import torch

from training.speed import PRODUCTS, matmul_flop_per_second


def test_the_rate_is_that_of_the_asked_for_product_and_measured_once(monkeypatch):
    now, asked = [0.0], []

    def product(a, b):
        asked.append((tuple(a.shape), tuple(b.shape), a.dtype))
        now[0] += 0.5 if len(asked) > 2 * PRODUCTS else 60  # the first ones warm up

    monkeypatch.setattr("training.speed.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    cpu = torch.device("cpu")
    assert matmul_flop_per_second(cpu, torch.bfloat16, n=16) == pytest.approx(2 * 16**3 / 0.5)
    assert set(asked) == {((16, 16), (16, 16), torch.bfloat16)}
    n_asked = len(asked)
    matmul_flop_per_second(cpu, torch.bfloat16, n=16)
    assert len(asked) == n_asked
