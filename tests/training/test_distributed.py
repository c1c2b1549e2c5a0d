import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from configs.base import ConfigError
from models.rank_transformer import RankTransformerConfig
from tests import made_up
from training.distributed import (
    Ranks,
    choose_device,
    gather_rows,
    gradient_sync,
    mixed_precision,
    seed_everything,
    start_ranks,
    sum_over_ranks,
    wrap,
)

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def test_alone_everything_is_the_identity():
    rows = [torch.arange(4.0).reshape(2, 2), torch.ones(1, 2)]
    assert gather_rows(rows, [3], ALONE).tolist() == [[0, 1], [2, 3], [1, 1]]
    assert sum_over_ranks([1.5, 2], ALONE) == [1.5, 2]
    model = nn.Linear(1, 1)
    assert wrap(model, ALONE) is model


@pytest.fixture
def two_ranks():
    """Stand as the first of two processes whose collectives do nothing."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield Ranks(rank=0, world_size=2, device=torch.device("cpu"))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fsdp_leaves_each_process_its_slice(two_ranks, precision):
    network = made_up.learner(RankTransformerConfig(d_model=8, n_heads=2))
    names, whole = list(network.state_dict()), sum(p.numel() for p in network.parameters())
    assert wrap(network, two_ranks, "fsdp", precision) is network
    assert list(network.state_dict()) == names
    assert all(isinstance(p, DTensor) for p in network.parameters())
    held = sum(p.to_local().numel() for p in network.parameters())
    assert 0.5 <= held / whole < 0.52  # 21 rows of genes are 11 and 10
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_ddp_averages_in_the_last_pass_only(two_ranks):
    model = wrap(nn.Linear(2, 2), two_ranks)
    with gradient_sync(model, enabled=False):
        assert not model.require_backward_grad_sync
    with gradient_sync(model, enabled=True):
        assert model.require_backward_grad_sync


def test_start_without_torchrun_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    ranks = start_ranks("cpu")
    assert (ranks.rank, ranks.world_size, ranks.device.type) == (0, 1, "cpu")
    assert ranks.is_first


def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_said_so(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device: {name}"):
        choose_device(name)


def test_random_numbers_follow_from_seed_step_and_process():
    def draw(*key: int) -> list[float]:
        seed_everything(*key)
        return torch.rand(3).tolist()

    first = draw(0, 5, 0)
    torch.rand(100)
    assert draw(0, 5, 0) == first
    assert first not in (draw(1, 5, 0), draw(0, 6, 0), draw(0, 5, 1))


def test_precision():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for precision, dtype in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        with mixed_precision(precision, torch.device("cpu")):
            assert layer(x).dtype == dtype
