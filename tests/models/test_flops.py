import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.flops import forward_flop, training_flop
from models.packing import cells_of
from models.rank_transformer import RankTransformerConfig
from models.transformer import Encoder

SHAPE = {"n_layers": 3, "d_model": 16, "n_heads": 2, "d_head": 4, "d_feed_forward": 24}


def build(n_segments: int = 1, **fields):
    config = RankTransformerConfig(**SHAPE, **fields)
    return config.build(n_vocabulary=9, n_classes=2, n_tokens=50, n_segments=n_segments)


@pytest.mark.parametrize("length", [1, 7, 12])
def test_equals_what_torch_counts_of_one_cell(length):
    encoder = Encoder(**SHAPE)
    counter = FlopCounterMode(display=False)
    # The counter knows the products that attention is written as, not every fused CPU kernel.
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        encoder(torch.randn(length, 16), cells_of([length]))
    assert forward_flop([length], **SHAPE) == counter.get_total_flops()


def test_cells_add_up_and_attention_grows_with_the_square_of_each():
    both = forward_flop([5, 9], **SHAPE)
    assert both == forward_flop([5], **SHAPE) + forward_flop([9], **SHAPE)
    assert forward_flop([10], **SHAPE) > 2 * forward_flop([5], **SHAPE)
    assert forward_flop([], **SHAPE) == 0


def test_training_costs_three_forward_passes_of_the_network_as_built():
    assert training_flop(build(), [5, 9]) == 3 * forward_flop([5, 9], **SHAPE)


@pytest.mark.parametrize(("n_segments", "longest"), [(1, 7), (2, 14)])
def test_ranks_the_network_does_not_read_cost_nothing(n_segments, longest):
    network = build(n_segments, n_tokens=6)
    expected = 3 * forward_flop([5, longest], **SHAPE)
    assert training_flop(network, [5, 30]) == expected
