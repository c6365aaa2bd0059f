"""ARM: augment, REINFORCE, merge. Antithetic pairs of binary samples that share one logistic draw.

    u ~ Uniform(0, 1),  z = 1[u > sigmoid(-phi)],  z' = 1[u < sigmoid(phi)],
    d/dphi E_q[f(z)] = E_u[ (f(z) - f(z')) (u - 1/2) ]

Yin and Zhou 2019 (arXiv 1807.11143; there with f(z') - f(z) and the names exchanged). Unbiased, no parameters. All
variables are drawn at once, so a pair costs two evaluations of f however many variables there are.

Here u = sigmoid(l) with logistic noise l, so that z = 1[phi + l > 0] and z' = 1[phi - l > 0] keep both tails of u.
Departures: the cost's own gradient is averaged over the pair, whose members are both true samples of q; and several
pairs are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import bernoulli, logistic_like
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import antithetic


class ARM(GradientEstimator):
    """`samples` / 2 antithetic pairs for Bernoulli variables."""

    unbiased = True

    def __init__(self, samples: int = 2) -> None:
        super().__init__(samples)
        if samples % 2:
            raise ValueError(f"{type(self).__name__} draws antithetic pairs: samples must be even, got {samples}")

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S / 2 pairs, in one call; TypeError where `q` is not Bernoulli."""
        phi = bernoulli(q, type(self).__name__).logits  # (B, L)
        noise = logistic_like(phi, self.samples // 2)  # (S/2, B, L)
        z = (torch.cat([phi + noise, phi - noise]) > 0).to(phi.dtype)  # (S, B, L)
        return antithetic(cost(z), (self.weight(phi, noise).detach() * phi).sum(-1))

    def weight(self, phi: Tensor, noise: Tensor) -> Tensor:
        """What multiplies f(z) - f(z') in the derivative with respect to each logit."""
        return noise.sigmoid() - 0.5
