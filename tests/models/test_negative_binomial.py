import numpy as np
import torch
from scipy.stats import nbinom

from models.negative_binomial import nll_of_counts, nll_of_zero


def test_it_is_that_of_scipy():
    counts = np.array([0, 1, 2, 7, 300])[:, None, None]
    mean, theta = np.array([0.01, 1.0, 40.0])[:, None], np.array([0.05, 1.0, 80.0])
    expected = -nbinom.logpmf(counts, theta, theta / (theta + mean))
    log_mean, log_theta = torch.tensor(mean).log(), torch.tensor(theta).log()
    found = nll_of_counts(torch.tensor(counts, dtype=torch.float64), log_mean, log_theta)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    np.testing.assert_allclose(nll_of_zero(log_mean, log_theta), expected[0], rtol=1e-8)


def test_extreme_means_have_finite_gradients():
    log_mean = torch.tensor([-60.0, 0.0, 20.0], requires_grad=True)
    log_theta = torch.tensor([-20.0, 0.0, 20.0], requires_grad=True)
    nll_of_counts(torch.tensor([0.0, 3.0, 1e4]), log_mean, log_theta).sum().backward()
    assert log_mean.grad.isfinite().all()
    assert log_theta.grad.isfinite().all()
