"""ReinMax-Rao: ReinMax whose first Jacobian is that of Gumbel-Rao at the midpoint.

    z ~ q,   m = (p + z) / 2,   dz/dlogits := 2 J_GR(m; z) - J(p) / 2
    J_GR(m; z) = 1/K sum_k dsoftmax((log m + g_k) / tau)/dlogits,   g_k ~ Gumbel given argmax(log m + g_k) = z

Wang and Bui 2026 (arXiv 2603.08257). Written from the abstract, the authors' public code and others' accounts of
equation 17; the text of the paper itself was not at hand. Biased. Less variance than ReinMax at tau around 1 and
above, but another mean, in spite of the name: J_GR(m; z) is not J(m) on average, so that even costs linear in z have a
bias, and as tau -> 0 the gradient of those falls to a half. The authors run it at tau = 1 with K = 100.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import discrete, midpoint_logits, sample
from vi_lab.estimators.base import Cost, Estimate
from vi_lab.estimators.gumbel_rao import GumbelRao, conditional_relaxation
from vi_lab.estimators.surrogates import differentiable, straight_through


class ReinMaxRao(GumbelRao):
    """Hard forward; backward, Heun's step with a Gumbel-Rao relaxation at its midpoint."""

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q, whatever K; TypeError where it is not discrete."""
        probs = discrete(q, "ReinMax-Rao").probs
        z = sample(q, self.samples)  # (S, B, *event)
        rao = conditional_relaxation(q, midpoint_logits(q, z), z, self.temperature, self.inner_samples)
        return differentiable(cost(straight_through(z, 2 * rao - probs / 2)))
