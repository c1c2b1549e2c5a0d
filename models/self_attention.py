"""Multi-head self-attention from scratch, over cells packed end to end.

Vaswani et al. 2017, section 3.2.2. One deliberate difference: the queries may be the first token
of each cell only (the last block of a classifier reads nothing but ``<cls>``).

Legend of the shapes: ``b`` cells, ``n`` tokens of all cells, ``q`` query tokens, ``h`` heads,
``e`` head width, ``d`` model width.
"""

from einops import rearrange
from torch import Tensor, nn

from models.packed_attention import attend_within_cells
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
        attended = attend_within_cells(q, k, v, cells, dropout, first_only=first_only)
        return self.to_out(rearrange(attended, "q h e -> q (h e)"))
