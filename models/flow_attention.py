"""Flow attention across the cells of a set, whose cost grows linearly with their number.

Wu et al. 2022, Flowformer, section 3. Attention weights are seen as a flow from sources (keys) to
sinks (queries), with sigmoid as the map that keeps it positive. What flows into each sink and out
of each source is normalized to 1, so that sources compete for the sinks' attention.

Deliberate differences from the original's code:

- no epsilon: a flow is a sum of products of sigmoids and cannot be 0
- no clamp. There what leaves a source is limited to 1 before sources compete; its mean over the
  sources is 1, so that about half of them, the stronger ones, compete as equals
- sets of different sizes lie end to end

Legend: ``b`` cells of all sets, ``i`` sinks and ``j`` sources of one set, ``h`` heads, ``e`` and
``f`` head width, ``d`` width.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor, nn


def flow_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let each cell of a set gather from all of them; queries, keys, values ``(n, h, e)``."""
    q, k = q.sigmoid(), k.sigmoid()
    incoming = einsum(q, k.sum(dim=0), "i h e, h e -> i h")[..., None]
    outgoing = einsum(k, q.sum(dim=0), "j h e, h e -> j h")[..., None]
    q_normed, k_normed = q / incoming, k / outgoing
    conserved_in = einsum(q, k_normed.sum(dim=0), "i h e, h e -> i h")[..., None]
    conserved_out = einsum(k, q_normed.sum(dim=0), "j h e, h e -> j h")[..., None]
    competing = v * (len(v) * conserved_out.softmax(dim=0))
    gathered = einsum(k, competing, "j h e, j h f -> h e f")
    return conserved_in.sigmoid() * einsum(q_normed, gathered, "i h e, h e f -> i h f")


class FlowAttention(nn.Module):
    """Multi-head flow attention within each set of cells."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.to_qkv = nn.Linear(d_model, 3 * d_model)
        self.to_out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Attend over the cells of each set.

        Parameters
        ----------
        x
            Cells of all sets, one set behind the other, ``(b, d)``.
        sizes
            Cells of each set.
        """
        q, k, v = (
            rearrange(z, "b (h e) -> b h e", h=self.n_heads)
            for z in self.to_qkv(x).chunk(3, dim=-1)
        )
        if not sizes:
            attended = q + k + v  # no rows; gradients of zero for all three
        else:
            of_sets = zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
            attended = torch.cat([flow_attention(*of_set) for of_set in of_sets])
        return self.to_out(rearrange(attended, "b h e -> b (h e)"))
