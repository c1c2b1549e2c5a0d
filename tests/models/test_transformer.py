import math
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from models import packed_attention
from models.packing import cells_of
from models.transformer import Encoder, drop_path, initialize_weights
from training.distributed import compile_blocks


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(n_layers=3, d_model=16, n_heads=2, d_head=8, d_feed_forward=32)
    initialize_weights(encoder)
    return encoder


def test_asking_for_the_first_tokens_changes_nothing_but_the_work(encoder):
    cells = cells_of([9, 5, 2, 1])
    x = torch.randn(17, 16)
    full, short = encoder(x, cells), encoder(x, cells, first_only=True)
    assert short.shape == (4, 16)
    torch.testing.assert_close(short, full[[0, 9, 14, 16]])
    parameters = list(encoder.parameters())
    for a, b in zip(
        torch.autograd.grad(full[[0, 9, 14, 16]].square().sum(), parameters),
        torch.autograd.grad(short.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_equals_torchs_pre_norm_encoder_layer():
    torch.manual_seed(0)
    ours = Encoder(n_layers=1, d_model=16, n_heads=2, d_head=8, d_feed_forward=32)
    theirs = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    block = ours.blocks[0]
    with torch.no_grad():
        attention = theirs.self_attn
        attention.in_proj_weight.copy_(
            torch.cat([block.attention.to_q.weight, block.attention.to_kv.weight])
        )
        attention.in_proj_bias.copy_(
            torch.cat([block.attention.to_q.bias, block.attention.to_kv.bias])
        )
        attention.out_proj.load_state_dict(block.attention.to_out.state_dict())
        theirs.linear1.load_state_dict(block.feed_forward[0].state_dict())
        theirs.linear2.load_state_dict(block.feed_forward[3].state_dict())
    x = torch.randn(2, 6, 16)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    expected = ours.norm(theirs(x, src_key_padding_mask=padding))[~padding]
    torch.testing.assert_close(ours(x[~padding], cells_of([6, 4])), expected, atol=1e-5, rtol=1e-5)


def step(first_only: bool, **fields) -> tuple[list[torch.Tensor], float]:
    """Return output and gradients of an encoder with dropout, and what was kept for them."""
    torch.manual_seed(0)
    encoder = Encoder(3, 16, 2, 8, 32, 0.3, 0.2, 0.5, **fields)
    initialize_weights(encoder)
    x = torch.randn(17, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        output = encoder(x, cells_of([9, 5, 2, 1]), first_only=first_only)
    gradients = torch.autograd.grad(output.square().sum(), [x, *encoder.parameters()])
    return [output, *gradients, torch.rand(3)], sum(kept)


@pytest.mark.parametrize("first_only", [False, True])
def test_computing_blocks_again_changes_no_bit_and_keeps_less(first_only):
    expected, all_kept = step(first_only)
    found, kept = step(first_only, checkpoint_activations=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert kept < all_kept / 5


@pytest.mark.parametrize("first_only", [False, True])
def test_drop_path_leaves_out_the_attention_of_whole_cells(first_only):
    torch.manual_seed(0)
    lengths = [3, 1, 2] * 400
    cells = cells_of(lengths)
    cell_of_row = torch.arange(1200)
    if not first_only:
        cell_of_row = cell_of_row.repeat_interleave(torch.tensor(lengths))
    branch = torch.ones(len(cell_of_row), 4)
    scale = drop_path(branch, cells, 0.25, first_only=first_only)
    kept = torch.stack([scale[cell_of_row == cell].unique() for cell in range(1200)])
    assert kept.shape == (1200, 1)  # one scale a cell
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert float((kept == 0).float().mean()) == pytest.approx(0.25, abs=0.04)


def test_drop_path_acts_in_training_only():
    x, cells = torch.randn(6, 16), cells_of([4, 2])
    encoder = Encoder(2, 16, 2, 8, 32, attention_drop_path=0.5)
    initialize_weights(encoder)
    torch.manual_seed(0)
    drawn = torch.stack([encoder(x, cells, first_only=True) for _ in range(20)])
    assert len(drawn.unique(dim=0)) > 1
    assert torch.equal(encoder.eval()(x, cells), encoder(x, cells))


def masked(q, k, v, q_offsets, k_offsets, *_):
    """Stand in for the CUDA kernel: every cell against every one, under a mask."""
    cell_of_q, cell_of_k = (
        torch.searchsorted(offsets, torch.arange(len(z)), right=True)
        for offsets, z in ((q_offsets, q), (k_offsets, k))
    )
    heads_first = (z.transpose(0, 1) for z in (q, k, v))
    mask = cell_of_q[:, None] == cell_of_k
    attended = nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)
    return attended.transpose(0, 1)


# torch.compile hides this warning of its own, but not from a filter that turns it into an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_are_compiled_twice_for_cells_of_any_number_and_length(monkeypatch, encoder):
    # Traced and differentiated as on a GPU, without the minutes of generating code.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(packed_attention, "varlen_attn", masked)
    torch._dynamo.reset()
    counters.clear()

    def results(x: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
        output = encoder(x, cells_of(lengths), first_only=True)
        gradients = torch.autograd.grad(output.square().sum(), [x, *encoder.parameters()])
        return [output, *gradients]

    cells = [[9, 5, 3], [4, 4, 4, 4], [3, 11], [7, 6, 5, 2, 2]]
    batches = [(torch.randn(sum(n), 16, requires_grad=True), n) for n in cells]
    expected = [results(*batch) for batch in batches]
    names = encoder.state_dict().keys()
    compile_blocks(encoder)
    assert encoder.state_dict().keys() == names
    monkeypatch.setattr(packed_attention, "varlen_supports", lambda *_: True)
    for batch, eager in zip(batches, expected, strict=True):
        for a, b in zip(results(*batch), eager, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2  # all blocks but the last, and the last
    assert not counters["graph_break"]


def test_feed_forward_expands_and_comes_back(encoder):
    expand, contract = encoder.blocks[0].feed_forward[0], encoder.blocks[0].feed_forward[3]
    assert (expand.in_features, expand.out_features) == (16, 32)
    assert (contract.in_features, contract.out_features) == (32, 16)


def test_initialization_keeps_the_size_of_the_residual_stream():
    torch.manual_seed(0)
    encoder = Encoder(n_layers=12, d_model=64, n_heads=4, d_head=16, d_feed_forward=256)
    initialize_weights(encoder)
    x = torch.randn(8 * 20, 64)
    for block in encoder.blocks:
        x = block(x, cells_of([20] * 8))
    assert 0.5 < x.std() < 2


@torch.no_grad()
def test_initialization_values():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(400, 300),
            "norm": nn.LayerNorm(8),
            "embedding": nn.Embedding(500, 64, padding_idx=0),
        }
    )
    initialize_weights(model, embedding_std=0.05)
    assert float(model["linear"].weight.std()) == pytest.approx(1 / math.sqrt(400), rel=0.05)
    assert not model["linear"].bias.any()
    assert (model["norm"].weight == 1).all()
    assert not model["norm"].bias.any()
    assert float(model["embedding"].weight[1:].std()) == pytest.approx(0.05, rel=0.05)
    assert not model["embedding"].weight[0].any()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_without_the_kernel_the_number_of_cells_makes_no_other_program(monkeypatch, encoder):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(encoder)
    n_programs = []
    for lengths in ([9, 5, 3], [4, 4, 4, 4], [7, 6, 5, 2, 2], [3] * 11):
        x = torch.randn(sum(lengths), 16)
        assert encoder(x, cells_of(lengths), first_only=True).shape == (len(lengths), 16)
        n_programs.append(counters["stats"]["unique_graphs"])
    assert len(set(n_programs)) == 1
