"""Scaled dot-product attention within each cell of a packed batch, by the fastest kernel there is.

On CUDA the flash kernel for sequences of different lengths takes the batch as it lies; elsewhere
neighboring cells of one length are computed together. So they are under a mask, which the flash
kernel does not take.

Legend: ``b`` cells, ``n`` tokens of all cells, ``q`` query tokens, ``h`` heads, ``e`` head width.
"""

from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from models.attention_masks import generative_mask
from models.packing import Cells


def attend_within_cells(
    q: Tensor, k: Tensor, v: Tensor, cells: Cells, dropout: float, *, first_only: bool
) -> Tensor:
    """Let each query attend to the tokens of its own cell.

    Parameters
    ----------
    q, k, v
        Queries ``(q, h, e)``, keys and values ``(n, h, e)``.
    cells
        Where each cell lies, and which tokens are known, where not all of them are.
    dropout
        Share of the attention weights zeroed.
    first_only
        The queries are the first token of each cell, and not all tokens.

    Returns
    -------
    ``(q, h, e)``.
    """
    if cells.is_known is not None or not varlen_supports(q, dropout):
        return attend_by_length(q, k, v, cells, dropout, first_only=first_only)
    offsets, longest = cells.offsets, cells.longest
    if first_only:
        each = torch.arange(len(offsets), dtype=offsets.dtype, device=offsets.device)
        attended = varlen_attn(q, k, v, each, offsets, 1, longest)
    else:
        attended = varlen_attn(q, k, v, offsets, offsets, longest, longest)
    assert isinstance(attended, Tensor)  # a pair only where more is asked for
    return attended


def varlen_supports(q: Tensor, dropout: float) -> bool:
    """Whether the CUDA kernel for cells of different lengths takes these queries.

    It wants half precision, a GPU from Ampere on, heads of a multiple of 8, at least one cell,
    and has no dropout. Heads beyond 192 train on some GPUs only.
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
def attend_by_length(
    q: Tensor, k: Tensor, v: Tensor, cells: Cells, dropout: float, *, first_only: bool
) -> Tensor:
    """Attend within neighboring cells of one length, then of the next, ``(q, h, e)``.

    Faster on a CPU than padded rows under a mask, even where no two cells are of one length.
    """
    if not cells.lengths:
        return q + k + v  # no rows; gradients of zero for all three
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The kernel's backward pass is four times slower there than in float32
        with torch.autocast("cpu", enabled=False):
            full = attend_by_length(
                q.float(), k.float(), v.float(), cells, dropout, first_only=first_only
            )
        return full.to(q.dtype)
    runs = [(n, len(list(run))) for n, run in groupby(cells.lengths)]
    k_sizes = [n * b for n, b in runs]
    q_sizes = [b for _, b in runs] if first_only else k_sizes
    cut = zip(q.split(q_sizes), k.split(k_sizes), v.split(k_sizes), strict=True)
    known = [None] * len(runs) if cells.is_known is None else cells.is_known.split(k_sizes)
    attended = []
    for (_, b), q_k_v, is_known in zip(runs, cut, known, strict=True):
        run_q, run_k, run_v = (rearrange(z, "(b t) h e -> b h t e", b=b) for z in q_k_v)
        mask = None
        if is_known is not None:
            mask = generative_mask(rearrange(is_known, "(b t) -> b t", b=b))
            mask = mask[:, :, : run_q.shape[2]]  # the first query is the first token
        of_run = F.scaled_dot_product_attention(run_q, run_k, run_v, mask, dropout_p=dropout)
        attended.append(rearrange(of_run, "b h t e -> (b t) h e"))
    return torch.cat(attended)
