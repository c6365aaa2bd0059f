"""Straight-through Gumbel-softmax: the true sample going forward, its relaxation going backward.

    y = softmax((logits + g) / tau),  z = onehot(argmax y),  dz/dlogits := dy/dlogits

Jang et al. 2017, section 2.2 (arXiv 1611.01144). Biased; the value is that of a true sample.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import harden, relaxed_sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, add_temperature
from vi_lab.estimators.surrogates import differentiable, straight_through


class StraightThroughGumbelSoftmax(GradientEstimator):
    """Hard forward, relaxed backward, with shared noise."""

    unbiased = False

    def __init__(self, samples: int = 1, temperature: float = 1.0) -> None:
        super().__init__(samples)
        add_temperature(self, temperature)

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        relaxed = relaxed_sample(q, self.temperature, self.samples)
        return differentiable(cost(straight_through(harden(q, relaxed), relaxed)))
