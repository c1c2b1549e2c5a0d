"""Alone; with shards it is tested in tests/test_several_processes.py."""

import pytest
import torch

from training.checkpoint import CheckpointError
from training.distributed import Ranks
from training.sharding import broadcast, gather_full_state, load_full_state

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def test_what_is_gathered_is_a_copy_and_can_be_spread_again():
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, 2, requires_grad=True)}
    whole = gather_full_state(weights, ALONE)
    weights["a"] += 1
    assert whole["a"].tolist() == [0, 1, 2]
    assert not whole["b"].requires_grad
    load_full_state(whole, weights, ALONE)
    assert weights["a"].tolist() == [0, 1, 2]
    assert broadcast({"step": 3}, ALONE) == {"step": 3}


def test_only_the_first_process_has_whole_tensors():
    other = Ranks(rank=1, world_size=2, device=torch.device("cpu"))
    assert gather_full_state({"a": torch.ones(2)}, other) == {}


@pytest.mark.parametrize("other", [{}, {"a": torch.ones(3)}, {"b": torch.ones(2)}], ids=str)
def test_weights_of_another_model_are_refused(other):
    with pytest.raises(CheckpointError, match=r"another model: 'a' is (None|\(3,\)) and should"):
        load_full_state(other, {"a": torch.ones(2)}, ALONE)
