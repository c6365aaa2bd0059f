"""ReinMax with relaxed samples at its midpoint: Heun's step to them in place of the sample, averaged over their noise.

    z ~ q,   dz/dlogits := 2/K sum_k J((p + y_k) / 2) - J(p) / 2,   y_k = softmax((logits + g_k) / tau)
    g_1, ..., g_K ~ Gumbel given argmax(logits + g_k) = z,   J(p) = diag(p) - p p^T

The method "reinmax_v2" of the code of Wang and Bui 2026 (arXiv 2603.08257, branch thang_experimental), where K = 100;
`reinmax_rao.py` is its "reinmax_v3". Biased, for costs linear in z too, as the y_k do not have the mean p. With
tau -> 0 they become z, and this ReinMax at tau = 1.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import conditional_perturbed_logits, discrete, probabilities, sample, times_jacobian
from vi_lab.estimators.base import Cost, Estimate
from vi_lab.estimators.gumbel_rao import GumbelRao
from vi_lab.estimators.surrogates import differentiable, straight_through


class ReinMaxRelaxed(GumbelRao):
    """Hard forward; backward, the mean of Heun's steps from the probabilities to relaxations that agree with the
    sample."""

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q, whatever K; TypeError where it is not discrete."""
        b = discrete(q, "ReinMax-relaxed")
        z = sample(q, self.samples)  # (S, B, *event)
        perturbed = conditional_perturbed_logits(q, b.logits, z, self.inner_samples)  # (K, S, B, *event)
        middle = (b.probs + probabilities(q, perturbed / self.temperature)) / 2
        return differentiable(cost(straight_through(z, 2 * times_jacobian(q, middle).mean(0) - b.probs / 2)))
