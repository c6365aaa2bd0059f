"""Classical straight-through: a sample going forward, the probabilities going backward.

    z ~ q,  dz/dlogits := dp/dlogits,  p = softmax(logits)

Bengio et al. 2013 (arXiv 1308.3432). Biased in general, exact in expectation for costs linear in z. Unlike the
straight-through Gumbel-softmax it has no temperature and its backward pass holds no noise but f'(z).
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import discrete, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import differentiable, straight_through


class StraightThrough(GradientEstimator):
    """One-hot sample forward, probabilities backward."""

    unbiased = False
    exact_for = "linear"

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q; TypeError where it is not discrete."""
        probs = discrete(q, "straight-through").probs.expand(self.samples, *q.batch_shape, *q.event_shape)
        return differentiable(cost(straight_through(sample(q, self.samples), probs)))
