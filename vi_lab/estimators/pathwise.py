"""Pathwise ("reparameterization") gradient: z = mu + sigma * eps, gradient through z.

    d/dphi E_q[f(z)] = E_eps[ f'(z) dz/dphi ]

Kingma and Welling 2014 (arXiv 1312.6114), Rezende et al. 2014 (arXiv 1401.4082). Unbiased for any q with `rsample`.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import reparameterized_sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import differentiable


class Pathwise(GradientEstimator):
    """Gradient through reparameterized samples."""

    unbiased = True

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S reparameterized samples; TypeError where `q` has none."""
        return differentiable(cost(reparameterized_sample(q, self.samples, "the pathwise gradient")))
