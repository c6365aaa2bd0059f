"""MuProp: REINFORCE less a first-order Taylor expansion of the cost around q's mean mu, whose mean is known.

    d/dphi E_q[f(z)] = E_q[ (f(z) - f(mu) - f'(mu) . (z - mu)) d/dphi log q(z) ] + f'(mu) . dmu/dphi

Gu et al. 2016 (arXiv 1511.05176). Unbiased; without noise where f is linear. mu is q's probabilities, where f must be
differentiable; the decoder learns from the hard samples only. Departure: no further baseline on the remainder (the
paper offers NVIL's).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import discrete, log_prob, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import score_function, with_gradient_of


class MuProp(GradientEstimator):
    """Score function of the Taylor remainder, pathwise gradient of the expansion."""

    unbiased = True
    differentiates = True

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples and, for the expansion, once at the mean of q, between the vertices."""
        discrete(q, "MuProp")
        mean = q.mean.detach().requires_grad_()  # (B, *event)
        at_mean = cost(mean.unsqueeze(0))  # (1, B)
        (slope,) = torch.autograd.grad(at_mean.sum(), mean)
        z = sample(q, self.samples)
        f = cost(z)
        taylor = at_mean + (slope * (z - mean)).flatten(2).sum(-1)  # (S, B)
        expansion = (slope * q.mean).flatten(1).sum(-1)  # (B,)
        return score_function(with_gradient_of(f, f + expansion), f - taylor, log_prob(q, z))
