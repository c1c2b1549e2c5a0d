"""A latent whose prior is a mixture of Gaussians, and how far a cell's posterior is from it.

Wen et al. 2024, section 3.3, with the KL divergence in closed form. A cell's posterior is a
Gaussian with a diagonal covariance, and the best assignment to the components, each as likely as
the others, is known: ``softmax(-KL)`` over its divergences from them. What remains of the evidence
lower bound, ``log K - logsumexp(-KL)``, is never below the divergence from the whole mixture
(Hershey & Olsen 2007, section 7). Deliberate differences: the original draws the
assignment by Gumbel-softmax from a layer of its own, and the posterior depends on what was drawn.

Legend: ``b`` cells, ``k`` components, ``z`` width of the latent.
"""

import math

import torch
from torch import Tensor, nn


class GaussianMixture(nn.Module):
    """The prior: ``k`` components with means and variances that are learned."""

    def __init__(self, n_components: int, d_latent: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(n_components, d_latent))
        self.log_variance = nn.Parameter(torch.zeros(n_components, d_latent))

    def divergences(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """KL divergence in nats of each posterior, ``(b, z)``, from each component, ``(b, k)``."""
        difference = (mean[:, None] - self.mean).square()  # (b, k, z)
        ratio = log_variance[:, None] - self.log_variance
        scaled = difference / self.log_variance.exp() + ratio.exp() - 1 - ratio
        return 0.5 * scaled.sum(dim=2)

    def assignment(self, divergences: Tensor) -> Tensor:
        """Probability of each component, ``(b, k)``."""
        return (-divergences).softmax(dim=1)

    def divergence(self, divergences: Tensor) -> Tensor:
        """Bound on the KL divergence from the mixture, in nats, ``(b,)``."""
        return math.log(divergences.shape[1]) - (-divergences).logsumexp(dim=1)
