"""Negative log-likelihood of counts under a negative binomial of mean and inverse dispersion.

With mean ``mu`` and inverse dispersion ``theta`` the variance is ``mu + mu^2 / theta``
(Lopez et al. 2018, scVI; ``scipy.stats.nbinom(theta, theta / (theta + mu))``).
"""

import torch
from torch import Tensor


def nll_of_zero(log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Negative log-probability of no count at all; shapes broadcast."""
    return log_theta.exp() * torch.nn.functional.softplus(log_mean - log_theta)


def nll_of_counts(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Negative log-probability of the counts; shapes broadcast."""
    theta = log_theta.exp()
    choose = torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    excess = counts * torch.nn.functional.softplus(log_theta - log_mean)
    return nll_of_zero(log_mean, log_theta) + excess - choose
