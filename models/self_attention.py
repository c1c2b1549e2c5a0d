"""Multi-head self-attention from scratch, over cells packed end to end.

Vaswani et al. 2017, section 3.2.2. One deliberate difference: the queries may be the first token
of each cell only (the last block of a classifier reads nothing but ``<cls>``).

Legend of the shapes: ``b`` cells, ``n`` tokens of all cells, ``q`` query tokens, ``h`` heads,
``e`` head width, ``d`` model width.
"""

from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from models.packing import Cells


class SelfAttention(nn.Module):
    """Every query token looks at every token of its own cell.

    Parameters
    ----------
    d_model
        Width of a token.
    n_heads, d_head
        Number of heads and width of each; their product need not be ``d_model``.
    dropout
        Share of the attention weights zeroed in training. Anything but 0 leaves the fast kernels,
        so the model's other dropouts are the ones to use first.
    """

    def __init__(self, d_model: int, n_heads: int, d_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.to_q = nn.Linear(d_model, n_heads * d_head)
        self.to_kv = nn.Linear(d_model, 2 * n_heads * d_head)
        self.to_out = nn.Linear(n_heads * d_head, d_model)

    def forward(self, x: Tensor, cells: Cells, *, first_only: bool = False) -> Tensor:
        """Attend over the tokens of each cell.

        Parameters
        ----------
        x
            Tokens of all cells, ``(n, d)``.
        cells
            Where each cell lies in ``x``.
        first_only
            Compute only the rows of the cells' first tokens.

        Returns
        -------
        ``(q, d)``, where ``q`` is ``b`` for the first tokens only and else ``n``.
        """
        q = self.to_q(x[cells.first] if first_only else x)  # (q, h*e)
        k, v = self.to_kv(x).chunk(2, dim=-1)  # (n, h*e) each
        # rearrange, not reshape: (n, h*e) read as (h, n, e) would mix tokens with heads.
        q, k, v = (rearrange(z, "n (h e) -> n h e", h=self.n_heads) for z in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        if flash_can(q, dropout):
            attended = flash(q, k, v, cells, first_only=first_only)
        else:
            attended = length_by_length(q, k, v, cells, dropout, first_only=first_only)
        return self.to_out(rearrange(attended, "q h e -> q (h e)"))


def flash(q: Tensor, k: Tensor, v: Tensor, cells: Cells, *, first_only: bool) -> Tensor:
    """Attend within each cell by the CUDA kernel for cells of different lengths, ``(q, h, e)``."""
    offsets, longest = cells.offsets, cells.longest
    if first_only:
        each = torch.arange(len(offsets), dtype=offsets.dtype, device=offsets.device)
        attended = varlen_attn(q, k, v, each, offsets, 1, longest)
    else:
        attended = varlen_attn(q, k, v, offsets, offsets, longest, longest)
    assert isinstance(attended, Tensor)  # a pair only where more is asked for
    return attended


def flash_can(q: Tensor, dropout: float) -> bool:
    """Whether the CUDA kernel for cells of different lengths takes these queries.

    It wants half precision, a card from Ampere on, heads of a multiple of 8, at least one cell,
    and has no dropout. Heads beyond 192 train on some cards only.
    """
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and dropout == 0
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 192
        and len(q) > 0
        and torch.cuda.get_device_properties(q.device).major >= 8
    )


@torch.compiler.disable  # a loop over lengths would be compiled anew for every batch
def length_by_length(
    q: Tensor, k: Tensor, v: Tensor, cells: Cells, dropout: float, *, first_only: bool
) -> Tensor:
    """Attend within neighboring cells of one length, then of the next, ``(q, h, e)``.

    Faster on a CPU than padded rows under a mask, even where no two cells are of one length.
    """
    if not cells.lengths:
        return q + k + v  # no rows; gradients of zero for all three
    runs = [(n, len(list(run))) for n, run in groupby(cells.lengths)]
    k_sizes = [n * b for n, b in runs]
    q_sizes = [b for _, b in runs] if first_only else k_sizes
    cut = zip(q.split(q_sizes), k.split(k_sizes), v.split(k_sizes), strict=True)
    attended = []
    for (_, b), q_k_v in zip(runs, cut, strict=True):
        run_q, run_k, run_v = (rearrange(z, "(b t) h e -> b h t e", b=b) for z in q_k_v)
        of_run = F.scaled_dot_product_attention(run_q, run_k, run_v, dropout_p=dropout)
        attended.append(rearrange(of_run, "b h t e -> (b t) h e"))
    return torch.cat(attended)
