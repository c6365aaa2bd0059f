"""Gapped straight-through (GST): the straight-through Gumbel-softmax with the noise replaced by what it must achieve.

    z ~ q,   theta_z = max(logits),   theta_j = min(logits_j, max(logits) - gap)  for the other classes
    dz/dlogits := dsoftmax(theta / tau)/dlogits,  with theta - logits held constant

Fan et al. 2022 (arXiv 2206.07235): logits + m1 - m2, where m1 raises the sampled class to the maximum and m2 lowers
the others to at least `gap` below it, so that z is the strict argmax as it is under Gumbel noise. The backward pass
is a function of the sample alone, hence of low variance. Biased; the value is that of a true sample. A Bernoulli is
the case of two classes with logits l and 0: its theta is +-max(+-l, gap), with the sign of the sample. Of the
paper's two gaps this is the constant one; it has none that depends on the probability of the sample.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from vi_lab.distributions import discrete, probabilities, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, add_temperature
from vi_lab.estimators.surrogates import differentiable, straight_through, with_gradient_of


class GappedStraightThrough(GradientEstimator):
    """Hard forward; backward, a relaxation in which the sampled class leads by a gap."""

    unbiased = False
    temperature: Tensor

    def __init__(self, samples: int = 1, temperature: float = 1.0, gap: float = 1.0) -> None:
        super().__init__(samples)
        if not gap >= 0:
            raise ValueError(f"gap must be at least 0, got {gap}")
        add_temperature(self, temperature)
        self.gap = gap

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q; TypeError where it is not discrete."""
        b = discrete(q, "gapped straight-through")
        z = sample(q, self.samples)  # (S, B, *event)
        if isinstance(b, OneHotCategorical):
            top = b.logits.amax(-1, keepdim=True)
            theta = torch.where(z.bool(), top, torch.minimum(b.logits, top - self.gap))
        else:
            sign = 2 * z - 1
            theta = sign * (sign * b.logits).clamp_min(self.gap)
        relaxed = probabilities(q, with_gradient_of(theta, b.logits) / self.temperature)
        return differentiable(cost(straight_through(z, relaxed)))
