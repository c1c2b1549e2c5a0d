import math

import pytest
import torch
from einops import rearrange
from torch import nn

from models.self_attention import SelfAttention


@pytest.fixture
def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(d_model=12, n_heads=3, d_head=4)


@pytest.fixture
def cells() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    padding = torch.arange(7)[None, :] >= torch.tensor([7, 4, 1])[:, None]
    return torch.randn(3, 7, 12), padding


def explicit(attention: SelfAttention, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """The textbook formula, without the kernel."""
    q = attention.to_q(x)
    k, v = attention.to_kv(x).chunk(2, dim=-1)
    q, k, v = (rearrange(z, "b t (h e) -> b h t e", h=attention.n_heads) for z in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(padding[:, None, None, :], -math.inf).softmax(-1)
    return attention.to_out(rearrange(weights @ v, "b h t e -> b t (h e)"))


def test_equals_torchs_multi_head_attention(attention, cells):
    x, padding = cells
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([attention.to_q.weight, attention.to_kv.weight]))
        reference.in_proj_bias.copy_(torch.cat([attention.to_q.bias, attention.to_kv.bias]))
        reference.out_proj.weight.copy_(attention.to_out.weight)
        reference.out_proj.bias.copy_(attention.to_out.bias)
    expected, _ = reference(x, x, x, key_padding_mask=padding)
    torch.testing.assert_close(attention(x, padding), expected, atol=1e-6, rtol=1e-5)


def test_equals_the_explicit_formula_in_values_and_gradients(attention, cells):
    x, padding = cells
    ours, theirs = attention(x, padding), explicit(attention, x, padding)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    parameters = list(attention.parameters())
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(theirs.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_every_head_sees_every_token(attention, cells):
    # Reshaped without a transpose, a head would see a third of the tokens only.
    x = cells[0][:1].clone().requires_grad_()
    nothing_padded = torch.zeros(1, 7, dtype=torch.bool)
    for head in range(3):
        with torch.no_grad():
            attention.to_out.weight.zero_()
            attention.to_out.weight[:, 4 * head : 4 * head + 4] = torch.randn(12, 4)
        (gradient,) = torch.autograd.grad(attention(x, nothing_padded)[0, 0].sum(), x)
        assert (gradient[0].abs().sum(-1) > 1e-6).all(), f"head {head}"


def test_padding_has_no_influence(attention, cells):
    x, padding = cells
    changed = torch.where(padding[..., None], torch.full_like(x, 1e3), x)
    real = ~padding
    torch.testing.assert_close(attention(changed, padding)[real], attention(x, padding)[real])


def test_a_row_of_padding_gives_numbers(attention, cells):
    x, padding = cells
    padding = padding.clone()
    padding[1] = True
    output = attention(x, padding)
    output.sum().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("n_queries", [1, 3])
def test_first_queries_only_are_the_first_rows(attention, cells, n_queries):
    x, padding = cells
    torch.testing.assert_close(
        attention(x, padding, n_queries), attention(x, padding)[:, :n_queries]
    )


def test_attention_dropout_acts_in_training_only(cells):
    x, padding = cells
    torch.manual_seed(0)
    attention = SelfAttention(12, 3, 4, dropout=0.5)
    assert not torch.equal(attention(x, padding), attention(x, padding))
    attention.eval()
    assert torch.equal(attention(x, padding), attention(x, padding))
