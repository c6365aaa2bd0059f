"""ReinMax-CV: ReinMax plus the difference of Gumbel-Rao and straight-through Gumbel-softmax, as a control variate.

    z ~ q,   m = (p + z) / 2,   dz/dlogits := 2 J(m) - J(p) / 2 + eta (J_GR(m; z) - J_GS(m; z))
    J_GS(m; z) = dsoftmax((log m + g) / tau)/dlogits,   J_GR the mean of K more of them,   g ~ Gumbel given z

Wang and Bui 2026 (arXiv 2603.08257). Written from the abstract, the authors' public code and others' accounts of
equation 18; the text of the paper itself was not at hand. Biased as ReinMax at tau = 1 is, and like it exact in
expectation for costs quadratic in z, at every tau and eta: g is drawn given argmax(log m + g) = z in both terms, which
makes their difference zero on average for each z. But then it is uncorrelated with ReinMax, which is a function of z
alone, and can only add variance: eta = 0, which is ReinMax, has the least. Noise of another law, such as the Gumbels
that gave z, gives the difference a mean and the estimator a bias; in the version of the public code that was read,
relaxed samples stand in the place of g. Whether the paper means one of these could not be told.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import discrete, midpoint_logits, sample
from vi_lab.estimators.base import Cost, Estimate
from vi_lab.estimators.gumbel_rao import GumbelRao, conditional_relaxation
from vi_lab.estimators.reinmax import heun
from vi_lab.estimators.surrogates import differentiable, straight_through


class ReinMaxCV(GumbelRao):
    """Hard forward; backward, Heun's step with a centered control variate at its midpoint."""

    exact_for = "quadratic"

    def __init__(self, samples: int = 1, temperature: float = 1.0, inner_samples: int = 10, eta: float = 0.5) -> None:
        """temperature: the control variate's; eta: how much of it."""
        super().__init__(samples, temperature, inner_samples)
        self.eta = eta

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q, whatever K; TypeError where it is not discrete."""
        discrete(q, "ReinMax-CV")
        z = sample(q, self.samples)  # (S, B, *event)
        middle = midpoint_logits(q, z)
        rao = conditional_relaxation(q, middle, z, self.temperature, self.inner_samples)
        single = conditional_relaxation(q, middle, z, self.temperature, 1)
        return differentiable(cost(straight_through(z, heun(q, z) + self.eta * (rao - single))))
