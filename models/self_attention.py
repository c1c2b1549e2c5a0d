"""Multi-head self-attention from scratch, on ``F.scaled_dot_product_attention``.

Vaswani et al. 2017, section 3.2.2. Two deliberate differences: the queries may be the first few
tokens only (the last block of a classifier reads nothing but ``<cls>``), and a row that is all
padding attends to itself, so that it gives numbers and not NaN.

Legend of the shapes: ``b`` cells, ``t`` tokens, ``q`` query tokens, ``h`` heads, ``e`` head width,
``d`` model width.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Every query token looks at every token of its own cell that is not padding.

    Parameters
    ----------
    d_model
        Width of a token.
    n_heads, d_head
        Number of heads and width of each; their product need not be ``d_model``.
    dropout
        Share of the attention weights zeroed in training. On a CPU anything but 0 leaves the fast
        kernel, so the model's other dropouts are the ones to use first.
    """

    def __init__(self, d_model: int, n_heads: int, d_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.to_q = nn.Linear(d_model, n_heads * d_head)
        self.to_kv = nn.Linear(d_model, 2 * n_heads * d_head)
        self.to_out = nn.Linear(n_heads * d_head, d_model)

    def forward(self, x: Tensor, padding_mask: Tensor, n_queries: int | None = None) -> Tensor:
        """Attend over the tokens of each cell; padding is never attended to.

        Parameters
        ----------
        x
            Tokens, ``(b, t, d)``.
        padding_mask
            True where a token is padding, ``(b, t)``.
        n_queries
            Compute only the first ``n_queries`` rows of the result; all of them by default.

        Returns
        -------
        ``(b, q, d)``.
        """
        q = self.to_q(x[:, :n_queries])  # (b, q, h*e)
        k, v = self.to_kv(x).chunk(2, dim=-1)  # (b, t, h*e) each
        # rearrange, not reshape: (b, t, h*e) read as (b, h, t, e) would mix tokens with heads.
        q, k, v = (rearrange(z, "b t (h e) -> b h t e", h=self.n_heads) for z in (q, k, v))
        # A row of nothing but padding has no one to attend to: softmax over nothing is NaN.
        may_attend = ~padding_mask | padding_mask.all(dim=1, keepdim=True)
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=may_attend[:, None, None, :],  # (b, 1, 1, t), True = may attend
            dropout_p=self.dropout if self.training else 0.0,
        )  # (b, h, q, e)
        return self.to_out(rearrange(attended, "b h t e -> b t (h e)"))
