import math

import pytest
import torch
from einops import rearrange
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from models import packed_attention
from models.packed_attention import varlen_supports
from models.packing import cells_of
from models.self_attention import SelfAttention


@pytest.fixture
def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(d_model=12, n_heads=3, d_head=4)


@pytest.fixture
def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Three cells of 7, 4 and 1 tokens as padded rows, and where they are padding."""
    torch.manual_seed(1)
    padding = torch.arange(7)[None, :] >= torch.tensor([7, 4, 1])[:, None]
    return torch.randn(3, 7, 12), padding


CELLS = cells_of([7, 4, 1])


def explicit(attention: SelfAttention, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """Compute the textbook formula over padded rows, without any kernel."""
    q = attention.to_q(x)
    k, v = attention.to_kv(x).chunk(2, dim=-1)
    q, k, v = (rearrange(z, "b t (h e) -> b h t e", h=attention.n_heads) for z in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(padding[:, None, None, :], -math.inf).softmax(-1)
    return attention.to_out(rearrange(weights @ v, "b h t e -> b t (h e)"))


def test_equals_torchs_multi_head_attention(attention, padded):
    x, padding = padded
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([attention.to_q.weight, attention.to_kv.weight]))
        reference.in_proj_bias.copy_(torch.cat([attention.to_q.bias, attention.to_kv.bias]))
        reference.out_proj.weight.copy_(attention.to_out.weight)
        reference.out_proj.bias.copy_(attention.to_out.bias)
    expected, _ = reference(x, x, x, key_padding_mask=padding)
    torch.testing.assert_close(
        attention(x[~padding], CELLS), expected[~padding], atol=1e-6, rtol=1e-5
    )


def test_equals_the_explicit_formula_in_values_and_gradients(attention, padded):
    x, padding = padded
    ours, theirs = attention(x[~padding], CELLS), explicit(attention, x, padding)[~padding]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    parameters = list(attention.parameters())
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(theirs.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    unmasked = explicit(attention, x, torch.zeros_like(padding))[~padding]
    assert (unmasked - ours).abs().max() > 1e-2


def test_every_head_sees_every_token(attention, padded):
    # Reshaped without a transpose, a head would see a third of the tokens only.
    x = padded[0][0].clone().requires_grad_()
    for head in range(3):
        with torch.no_grad():
            attention.to_out.weight.zero_()
            attention.to_out.weight[:, 4 * head : 4 * head + 4] = torch.randn(12, 4)
        (gradient,) = torch.autograd.grad(attention(x, cells_of([7]))[0].sum(), x)
        assert (gradient.abs().sum(-1) > 1e-6).all(), f"head {head}"


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [3, 3, 6], [6, 3, 3], [1, 1, 9, 1]])
def test_a_cell_does_not_see_its_neighbors(attention, lengths):
    # Cells of one length share a call of the kernel: the first and last of a run, and lone ones.
    x = torch.randn(12, 12)
    alone = [attention(one, cells_of([len(one)])) for one in x.split(lengths)]
    torch.testing.assert_close(attention(x, cells_of(lengths)), torch.cat(alone))


@pytest.mark.parametrize("lengths", [[7, 4, 1], [4, 4, 4], [12]])
def test_first_tokens_only_are_the_rows_of_the_first_tokens(attention, lengths):
    x, cells = torch.randn(12, 12), cells_of(lengths)
    torch.testing.assert_close(
        attention(x, cells, first_only=True), attention(x, cells)[cells.first]
    )


@pytest.mark.parametrize("first_only", [False, True])
def test_no_cells_give_no_rows_and_gradients_of_zero(attention, first_only):
    output = attention(torch.randn(0, 12), cells_of([]), first_only=first_only)
    assert output.shape == (0, 12)
    output.sum().backward()
    assert all(not p.grad.any() for p in attention.parameters())


def test_attention_dropout_acts_in_training_only():
    x = torch.randn(12, 12)
    torch.manual_seed(0)
    attention = SelfAttention(12, 3, 4, dropout=0.5)
    assert not torch.equal(attention(x, CELLS), attention(x, CELLS))
    attention.eval()
    assert torch.equal(attention(x, CELLS), attention(x, CELLS))


def one_cell_after_the_other(q, k, v, q_offsets, k_offsets, longest_q, longest_k):
    """Stand in for torch's kernel: the same arguments, read as its documentation says."""
    assert q_offsets.dtype == k_offsets.dtype == torch.int32
    assert (longest_q, longest_k) == (int(q_offsets.diff().max()), int(k_offsets.diff().max()))
    parts = []
    for i in range(len(q_offsets) - 1):
        here, there = (slice(int(o[i]), int(o[i + 1])) for o in (q_offsets, k_offsets))
        scores = torch.einsum("qhe,khe->hqk", q[here], k[there]) / math.sqrt(q.shape[-1])
        parts.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), v[there]))
    return torch.cat(parts)


@pytest.mark.parametrize("first_only", [False, True])
def test_the_cuda_kernel_is_told_where_the_cells_lie(monkeypatch, attention, first_only):
    # Without a GPU: the call that it would be given, answered by the plain formula.
    x = torch.randn(12, 12)
    expected = attention(x, CELLS, first_only=first_only)
    monkeypatch.setattr(packed_attention, "varlen_supports", lambda *_: True)
    monkeypatch.setattr(packed_attention, "varlen_attn", one_cell_after_the_other)
    torch.testing.assert_close(attention(x, CELLS, first_only=first_only), expected)


@pytest.mark.parametrize("first_only", [False, True])
def test_the_cuda_kernel_takes_the_call_and_gives_gradients(monkeypatch, first_only):
    # Without a GPU: torch's own account of the kernel's shapes, forward and backward.
    monkeypatch.setattr(packed_attention, "varlen_supports", lambda *_: True)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        attention = SelfAttention(12, 3, 16)
        output = attention(torch.randn(12, 12), cells_of([7, 4, 1]), first_only=first_only)
        output.sum().backward()
        assert output.shape == (3 if first_only else 12, 12)
        assert all(p.grad.shape == p.shape for p in attention.parameters())


def test_the_cuda_kernel_is_not_asked_on_a_cpu():
    assert not varlen_supports(torch.zeros(3, 2, 16, dtype=torch.bfloat16), 0.0)


@pytest.mark.parametrize("first_only", [False, True])
def test_half_precision_on_a_cpu_attends_in_float32(monkeypatch, first_only):
    torch.manual_seed(0)
    attention, x = SelfAttention(64, 4, 16), torch.randn(436, 64)
    cells, kernel, seen = cells_of([300, 7, 1, 128]), F.scaled_dot_product_attention, []

    def watched(q, *args, **kwargs):
        seen.append(q.dtype)
        return kernel(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    results = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = attention(x, cells, first_only=first_only)
        assert output.dtype == (torch.bfloat16 if half else torch.float32)
        loss = output.float().square().mean()
        results.append((output, *torch.autograd.grad(loss, list(attention.parameters()))))
    assert set(seen) == {torch.float32}
    for exact, rough in zip(*results, strict=True):
        assert (exact - rough).norm() < 0.02 * exact.norm() + 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("d_head", [16, 64])
def test_the_cuda_kernel_in_half_precision_equals_float32(d_head, first_only):
    torch.manual_seed(0)
    attention = SelfAttention(64, 4, d_head).cuda()
    cells = cells_of([300, 7, 1, 128], "cuda")
    x = torch.randn(436, 64, device="cuda")
    results = []
    for half in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            assert varlen_supports(attention.to_q(x).view(-1, 4, d_head), 0.0) == half
            output = attention(x, cells, first_only=first_only).float()
        gradients = torch.autograd.grad(output.square().mean(), list(attention.parameters()))
        results.append((output, *gradients))
    for exact, rough in zip(*results, strict=True):
        assert (exact - rough).norm() < 0.02 * exact.norm() + 1e-6
