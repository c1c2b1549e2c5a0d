import math

import numpy as np
import torch
from scipy.integrate import quad
from scipy.stats import norm

from models.gaussian_mixture import GaussianMixture


def mixture(means, variances) -> GaussianMixture:
    prior = GaussianMixture(len(means), 1)
    with torch.no_grad():
        prior.mean[:, 0] = torch.tensor(means)
        prior.log_variance[:, 0] = torch.tensor(variances).log()
    return prior


def found(prior, mean, variance):
    divergences = prior.divergences(torch.tensor([[mean]]), torch.tensor([[variance]]).log())
    return divergences[0], prior.assignment(divergences)[0], prior.divergence(divergences).item()


def by_quadrature(mean, variance, means, variances):
    """Integrate q log(q / p) of a Gaussian q and a mixture p with equal shares."""
    q = norm(mean, math.sqrt(variance))

    def integrand(z):
        p = np.mean([norm.pdf(z, m, math.sqrt(v)) for m, v in zip(means, variances, strict=True)])
        return q.pdf(z) * (q.logpdf(z) - math.log(p))

    return quad(integrand, mean - 12 * math.sqrt(variance), mean + 12 * math.sqrt(variance))[0]


def test_the_divergence_from_each_component_is_that_of_quadrature():
    means, variances = [0.0, 1.5, -3.0], [1.0, 0.3, 4.0]
    divergences, _, _ = found(mixture(means, variances), 0.7, 0.5)
    expected = [by_quadrature(0.7, 0.5, [m], [v]) for m, v in zip(means, variances, strict=True)]
    np.testing.assert_allclose(divergences.detach(), expected, rtol=1e-5)


def test_the_bound_is_tight_where_components_are_apart_and_never_below():
    apart = [0.0, 30.0, -30.0], [1.0, 1.0, 2.0]
    _, assignment, bound = found(mixture(*apart), 0.7, 0.5)
    np.testing.assert_allclose(bound, by_quadrature(0.7, 0.5, *apart), rtol=1e-4)
    np.testing.assert_allclose(assignment.detach(), [1, 0, 0], atol=1e-6)
    close = [0.0, 1.5, -3.0], [1.0, 0.3, 4.0]
    for mean, variance in ((0.7, 0.5), (-2.0, 1.0), (1.0, 3.0)):
        _, _, bound = found(mixture(*close), mean, variance)
        exact = by_quadrature(mean, variance, *close)
        assert exact - 1e-5 <= bound < exact + math.log(3)


def test_the_assignment_is_the_one_with_the_least_bound():
    """E_y[KL_y] + KL(y || uniform), the evidence lower bound's part, has its minimum there."""
    prior = mixture([0.0, 1.0, 3.0], [1.0, 0.5, 2.0])
    divergences, assignment, bound = found(prior, 0.8, 0.4)

    def cost(y):
        return (y * divergences).sum() + (y * (y * 3).log()).sum()

    torch.testing.assert_close(cost(assignment).item(), bound)
    for _ in range(20):
        assert cost(torch.rand(3).softmax(dim=0)) >= bound - 1e-6
