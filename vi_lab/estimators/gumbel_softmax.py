"""Gumbel-softmax: the cost at relaxed samples, gradient through the relaxation.

    z = softmax((logits + g) / tau),  g ~ Gumbel        (Bernoulli: sigmoid((logit + l) / tau), l ~ Logistic)

Jang et al. 2017 (arXiv 1611.01144), Maddison et al. 2017 (arXiv 1611.00712). Unbiased for the relaxed objective,
biased for the true one; the bias vanishes as tau -> 0 while the variance grows. The value reported is the relaxed
cost, so with the categorical KL the loss is not a bound on log p(x).

tau is fixed, annealed, or with `learn_temperature` a parameter that the loss itself moves (Jang et al. 2017, section
2). As that loss is no bound, it can fall by moving the relaxed samples away from one-hot: watch the relaxation gap.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import relaxed_sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, add_temperature
from vi_lab.estimators.surrogates import differentiable


class GumbelSoftmax(GradientEstimator):
    """Relaxed samples forward and backward."""

    unbiased = False
    relaxed = True
    temperature: Tensor

    def __init__(self, samples: int = 1, temperature: float = 1.0, learn_temperature: bool = False) -> None:
        super().__init__(samples)
        add_temperature(self, temperature, learn=learn_temperature)

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S relaxed samples, inside the simplex or (0, 1); TypeError where `q` is not discrete."""
        return differentiable(cost(relaxed_sample(q, self.temperature, self.samples)))
