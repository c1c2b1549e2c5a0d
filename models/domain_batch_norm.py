"""Batch normalization whose statistics belong to the domain of each row, without scale or shift.

DSBN (Chang et al. 2019, Domain-specific batch normalization), by which scGPT (Cui et al. 2024)
normalizes its embedded inputs. A domain is a value of a condition, such as a donor. As in scGPT's
code no scale and shift are learned: those of a domain's own tell the network its domain again (on
the planted cells of ``tests/models/test_domain_batch_norm.py`` a probe found it as well as without
any normalization). Of one domain it is torch's ``BatchNorm1d(affine=False)``. Deliberate
differences from scGPT:

- each row is normalized by its own domain; there by that of the first cell, whatever the others'
- a row whose domain is unknown is normalized by the statistics over all rows
- epsilon is torch's, 1e-5; there 6.1e-5
- rows may be normalized and not counted, such as genes whose value is hidden
- running statistics begin as the mean of a domain's first ten batches, and become a moving average
  with these: a rare domain does not keep what they started from

In training the statistics are those of the rows that are computed at once, on all processes:
several give the numbers of one, but ``optim.tokens_per_batch`` changes them. Few rows of a domain
make noisy statistics; of fewer than two there are none, and the running ones are taken.

Legend: ``n`` rows, ``d`` width, ``k`` domains and, in row 0, all of them together.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn

MOMENTUM, EPS = 0.1, 1e-5  # as torch's


class DomainBatchNorm(nn.Module):
    """Normalize rows over those of their domain.

    Attributes
    ----------
    running_mean, running_var
        Of each domain, ``(k, d)``: what is normalized by in evaluation.
    num_batches_tracked
        Batches that had rows of each domain, ``(k,)``.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, n_domains: int, d_model: int) -> None:
        super().__init__()
        k = 1 + n_domains
        self.register_buffer("running_mean", torch.zeros(k, d_model))
        self.register_buffer("running_var", torch.ones(k, d_model))
        self.register_buffer("num_batches_tracked", torch.zeros(k, dtype=torch.int64))

    def forward(self, x: Tensor, codes: Tensor, is_counted: Tensor) -> Tensor:
        """Normalize rows.

        Parameters
        ----------
        x
            ``(n, d)``.
        codes
            Domain of each row from 0 on, -1 where it is unknown, ``(n,)``.
        is_counted
            Rows that make the statistics, ``(n,)`` bool.

        Returns
        -------
        ``(n, d)`` float32.
        """
        domain = 1 + codes
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            mean, var = self.running_mean, self.running_var
            if self.training:
                n, batch_mean, batch_var = statistics(x, domain, is_counted[:, None], len(mean))
                self._track(n, batch_mean.detach(), batch_var.detach())
                mean, var = (
                    torch.where(n > 1, batch_mean, mean),
                    torch.where(n > 1, batch_var, var),
                )
            centered = x - mean.index_select(0, domain)
            return centered * (var + EPS).rsqrt().index_select(0, domain)

    @torch.no_grad()
    def _track(self, n: Tensor, mean: Tensor, var: Tensor) -> None:
        is_seen = n > 1  # (k, 1)
        self.num_batches_tracked += is_seen[:, 0]
        step = is_seen / self.num_batches_tracked[:, None].clamp(1, round(1 / MOMENTUM))
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(var * n / (n - 1).clamp(min=1), step)  # unbiased, as torch's


def statistics(
    x: Tensor, domain: Tensor, is_counted: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the counted rows of each domain, ``(k, 1)``, their mean and variance, ``(k, d)``.

    Over the rows of all processes. Those of all domains follow from those of each: around the mean
    of all lie a domain's own deviations, and that of its mean.
    """
    counted = is_counted.float()  # no indexing, which would wait for the device
    sums = sum_by_domain(torch.cat([counted, x * counted], dim=1), domain, k)
    n, total = sums.split([1, x.shape[1]], dim=1)
    mean = total / n.clamp(min=1)
    deviations = (x - mean.index_select(0, domain)) ** 2 * counted
    squares = sum_by_domain(deviations, domain, k)
    n_all = n.sum(dim=0, keepdim=True)
    mean_all = total.sum(dim=0, keepdim=True) / n_all.clamp(min=1)
    squares_all = (squares + n * (mean - mean_all) ** 2).sum(dim=0, keepdim=True)
    n, mean, squares = (
        torch.cat([of_all, of_each[1:]])
        for of_all, of_each in ((n_all, n), (mean_all, mean), (squares_all, squares))
    )
    return n, mean, squares / n.clamp(min=1)


def sum_by_domain(x: Tensor, domain: Tensor, k: int) -> Tensor:
    """Sum the rows ``(n, d)`` of each domain, on all processes, ``(k, d)``."""
    total = x.new_zeros(k, x.shape[1]).index_add(0, domain, x)
    summed: Any = SumOverProcesses.apply(total) if distributed.is_initialized() else total
    return summed


class SumOverProcesses(torch.autograd.Function):
    """The sum of what all processes have; so are its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the sum."""
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total
