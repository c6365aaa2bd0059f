"""REINFORCE, the score-function gradient.

    d/dphi E_q[f(z)] = E_q[ (f(z) - b) d/dphi log q(z) ] + E_q[ d/dphi f(z) ]

Williams 1992; for variational inference Paisley et al. 2012, Ranganath et al. 2014, Mnih and Gregor 2014. Unbiased
for any q with a density and any baseline b that does not depend on z. As one backward pass: the surrogate
f(z) + stop_gradient(f(z) - b) * log q(z). With a Monte Carlo KL, f(z) holds log q(z) - log p(z) too, which gives
the discrete-VAE notes' equation 9: their entropy term is the part of f(z) that log q is, and the mean of its own
derivative, E_q[d/dphi log q(z)], is zero.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import log_prob, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.baselines import Baseline, NoBaseline
from vi_lab.estimators.surrogates import score_function


class Reinforce(GradientEstimator):
    """Score function with a baseline: none, moving average, leave-one-out, or a learned one."""

    unbiased = True

    def __init__(self, samples: int = 1, baseline: Baseline | None = None) -> None:
        super().__init__(samples)
        self.baseline = baseline or NoBaseline()
        if samples < self.baseline.minimum_samples:
            raise ValueError(
                f"baseline {type(self.baseline).__name__} needs samples={self.baseline.minimum_samples} or more, "
                f"got samples={samples}"
            )

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q; `context` is for the baseline."""
        z = sample(q, self.samples)
        f = cost(z)
        baseline = self.baseline(f.detach(), context)
        advantage = self.baseline.normalize(f - baseline)
        return score_function(f, advantage, log_prob(q, z), self.baseline.control_loss(f.detach(), baseline))
