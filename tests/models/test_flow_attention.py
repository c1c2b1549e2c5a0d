import torch
from torch.utils.flop_counter import FlopCounterMode

from models.flow_attention import FlowAttention, flow_attention


def quadratic(q, k, v):
    """Return equations 4 to 8 of Wu et al. 2022 with the weights of all pairs, ``(n, h, e)``."""
    flow = torch.einsum("ihe,jhe->hij", q.sigmoid(), k.sigmoid())  # from source j to sink i
    incoming, outgoing = flow.sum(dim=2, keepdim=True), flow.sum(dim=1, keepdim=True)
    conserved_in = (flow / outgoing).sum(dim=2, keepdim=True)
    conserved_out = (flow / incoming).sum(dim=1, keepdim=True)
    weights = conserved_in.sigmoid() * flow / incoming
    weights = weights * conserved_out.softmax(dim=2) * len(v)
    return torch.einsum("hij,jhe->ihe", weights, v)


def made_up(n, scale=3.0):
    torch.manual_seed(n)
    return tuple(scale * torch.randn(n, 2, 4, dtype=torch.float64) for _ in range(3))


def test_it_is_the_quadratic_formula():
    for n in (1, 2, 50):
        q, k, v = made_up(n)
        torch.testing.assert_close(flow_attention(q, k, v), quadratic(q, k, v))


def test_a_cell_among_its_own_copies_gets_its_own_value():
    q, k, v = (z.expand(7, 2, 4) for z in made_up(1))
    expected = torch.tensor(1.0).sigmoid() * v  # all that flows in is its value; the gate is 1
    torch.testing.assert_close(flow_attention(q, k, v), expected)


def test_the_order_of_the_cells_does_not_matter():
    q, k, v = made_up(20)
    order = torch.randperm(20)
    found = flow_attention(q[order], k[order], v[order])
    torch.testing.assert_close(found, flow_attention(q, k, v)[order])


def test_each_set_is_by_itself_and_no_set_is_no_error():
    torch.manual_seed(0)
    attention, x = FlowAttention(8, 2), torch.randn(9, 8)
    together = attention(x, [4, 1, 4])
    apart = torch.cat([attention(part, [len(part)]) for part in x.split([4, 1, 4])])
    torch.testing.assert_close(together, apart)
    attention(x[:0], []).sum().backward()
    assert all(not p.grad.any() for p in attention.parameters())


def test_heads_are_columns_of_their_own():
    torch.manual_seed(0)
    attention, x = FlowAttention(8, 2), torch.randn(5, 8)
    q, k, v = (z[:, 4:][:, None] for z in attention.to_qkv(x).chunk(3, dim=1))
    second = flow_attention(q, k, v)[:, 0]
    bare = FlowAttention(8, 2)
    bare.to_qkv = attention.to_qkv
    torch.nn.init.eye_(bare.to_out.weight)
    torch.nn.init.zeros_(bare.to_out.bias)
    torch.testing.assert_close(bare(x, [5])[:, 4:], second)


def test_the_cost_grows_with_the_number_of_cells():
    attention, flop = FlowAttention(8, 2), []
    for n in (100, 200):
        with FlopCounterMode(display=False) as counter:
            attention(torch.randn(n, 8), [n])
        flop.append(counter.get_total_flops())
    assert flop[1] == 2 * flop[0]
