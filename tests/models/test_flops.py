import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.flops import forward_flop
from models.packing import cells_of
from models.rank_transformer import RankTransformerConfig
from models.transformer import Encoder
from tests.made_up import facts

SHAPE = {"n_layers": 3, "d_model": 16, "n_heads": 2, "d_head": 4, "d_feed_forward": 24}


def build(n_segments: int = 1, **fields):
    config = RankTransformerConfig(**SHAPE, **fields)
    return config.build(facts(n_vocabulary=9, row_length=50, n_segments=n_segments))


def counted(encoder: Encoder, length: int, *, first_only: bool, backward: bool = False) -> int:
    """Let torch count the products of one cell."""
    x = torch.randn(length, 16, requires_grad=True)
    counter = FlopCounterMode(display=False)
    # The counter knows the products that attention is written as, not every fused CPU kernel.
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = encoder(x, cells_of([length]), first_only=first_only)
        if backward:
            found.square().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_equals_what_torch_counts_of_one_cell(length, n_layers):
    shape = SHAPE | {"n_layers": n_layers}
    encoder, found = Encoder(**shape), forward_flop([length], **shape)
    assert found.model == counted(encoder, length, first_only=False)
    assert found.hardware == counted(encoder, length, first_only=True)


@pytest.mark.parametrize("again", [False, True])
def test_equals_what_torch_counts_of_a_training_step(again):
    network = build(checkpoint_activations=again)
    found = network.training_flop([9])
    encoder = network.encoder
    assert found.hardware == counted(encoder, 9, first_only=True, backward=True)
    encoder.checkpoint_activations = False
    assert found.model == counted(encoder, 9, first_only=False, backward=True)


def test_cells_add_up_and_attention_grows_with_the_square_of_each():
    both = forward_flop([5, 9], **SHAPE)
    for i in range(2):
        assert both[i] == forward_flop([5], **SHAPE)[i] + forward_flop([9], **SHAPE)[i]
        assert forward_flop([10], **SHAPE)[i] > 2 * forward_flop([5], **SHAPE)[i] * (1, 0.9)[i]
    assert forward_flop([], **SHAPE) == (0, 0)


def test_training_costs_three_forward_passes_of_the_network_as_built():
    forward = forward_flop([5, 9], **SHAPE)
    assert build().training_flop([5, 9]) == (3 * forward.model, 3 * forward.hardware)


@pytest.mark.parametrize(("n_segments", "longest"), [(1, 7), (2, 14)])
def test_ranks_the_network_does_not_read_cost_nothing(n_segments, longest):
    network = build(n_segments, context_genes=6)
    expected = build(n_segments).training_flop([5, longest])
    assert network.training_flop([5, 30]) == expected
