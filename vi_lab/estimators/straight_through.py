"""Classical straight-through: a sample going forward, the probabilities going backward.

    z ~ q,  dz/dlogits := dp_tau/dlogits,  p_tau = softmax(logits / tau)        (Bernoulli: sigmoid(logit / tau))

Bengio et al. 2013 (arXiv 1308.3432), where tau is 1. Biased in general; at tau = 1 exact in expectation for costs
linear in z. Unlike the straight-through Gumbel-softmax its backward pass holds no noise but f'(z).

With another tau it is the baseline of Liu et al. 2023 (ReinMax, arXiv 2304.08612), and decoupled straight-through
(Shah et al. 2024, arXiv 2410.13331) with tau as the backward temperature. Departure: the sample is always q's, see
`st_gumbel_softmax.py`.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import discrete, probabilities, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, add_temperature
from vi_lab.estimators.surrogates import differentiable, straight_through


class StraightThrough(GradientEstimator):
    """One-hot sample forward, probabilities backward."""

    unbiased = False
    exact_for = "linear"  # at backward temperature 1
    backward_temperature: Tensor | None

    def __init__(self, samples: int = 1, backward_temperature: float | None = None) -> None:
        """backward_temperature: what divides the logits going backward; null: 1."""
        super().__init__(samples)
        self.register_buffer("backward_temperature", None)
        if backward_temperature is not None:
            add_temperature(self, backward_temperature, "backward_temperature")

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q; TypeError where it is not discrete."""
        b, tau = discrete(q, "straight-through"), self.backward_temperature
        probs = b.probs if tau is None else probabilities(q, b.logits / tau)
        probs = probs.expand(self.samples, *q.batch_shape, *q.event_shape)
        return differentiable(cost(straight_through(sample(q, self.samples), probs)))
