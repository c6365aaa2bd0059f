"""Straight-through with a temperature in its backward pass.

    z ~ q,  dz/dlogits := d softmax(logits / tau) / dlogits

At tau = 1 this is the classical straight-through estimator (Bengio et al. 2013, arXiv 1308.3432). A larger tau smooths
the backward pass and divides its size by about tau; a smaller one sharpens it. Biased; at tau = 1 exact in expectation
for costs linear in z. The value is that of a true sample, and no noise but that of z enters the backward pass.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import discrete, probabilities, sample
from vi_lab.estimators import Cost, Estimate, GradientEstimator
from vi_lab.estimators.base import add_temperature
from vi_lab.estimators.surrogates import differentiable, straight_through


class TemperedStraightThrough(GradientEstimator):
    """One-hot sample forward, tempered probabilities backward."""

    unbiased = False

    def __init__(self, samples: int = 1, temperature: float = 1.0) -> None:
        super().__init__(samples)
        add_temperature(self, temperature)  # a buffer that the schedule writes

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        logits = discrete(q, "tempered straight-through").logits  # (B, *event)
        z = sample(q, self.samples)  # (S, B, *event), without gradient
        soft = probabilities(q, logits / self.temperature).expand_as(z)
        return differentiable(cost(straight_through(z, soft)))
