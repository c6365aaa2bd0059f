"""ReinMax: straight-through with Heun's method, second-order accurate where straight-through is first-order.

    z ~ q,   dz/dlogits := 2 J((p_tau + z) / 2) - J(p) / 2,   J(p) = diag(p) - p p^T,   p_tau = softmax(logits / tau)

Liu et al. 2023 (arXiv 2304.08612). J(p) is the Jacobian of softmax where its value is p; for a Bernoulli it is
p (1 - p). Biased in general. At tau = 1 it equals (J(p) + (z - p)(z - p)^T) / 2, the mean of straight-through and of
a score function with the cost linearized, and is exact in expectation for costs quadratic in z. The paper finds
tau >= 1 to work best (it smooths, and leaves the accuracy behind); its own code refuses tau < 1, this file does not.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import discrete, probabilities, sample, times_jacobian
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, add_temperature
from vi_lab.estimators.surrogates import differentiable, straight_through


def heun(q: Distribution, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """An expression in q's logits whose Jacobian is 2 J((p_tau + z) / 2) - J(p) / 2."""
    b = discrete(q, "ReinMax")
    middle = (probabilities(q, b.logits / temperature) + z) / 2
    return 2 * times_jacobian(q, middle) - b.probs / 2


class ReinMax(GradientEstimator):
    """Hard forward; backward, Heun's step from the probabilities to the sample."""

    unbiased = False
    exact_for = "quadratic"  # at temperature 1
    temperature: Tensor

    def __init__(self, samples: int = 1, temperature: float = 1.0) -> None:
        super().__init__(samples)
        add_temperature(self, temperature)

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q; TypeError where it is not discrete."""
        z = sample(q, self.samples)  # (S, B, *event)
        return differentiable(cost(straight_through(z, heun(q, z, self.temperature))))
