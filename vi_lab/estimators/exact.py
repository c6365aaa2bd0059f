"""The exact expectation and gradient, by summing over every state of a small discrete q.

    E_q[f(z)] = sum_z q(z) f(z)

No sampling, no bias, no noise: the yardstick of the other estimators. Costs C^L evaluations of f per image.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import enumerate_support, log_prob, number_of_states
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator


class Exact(GradientEstimator):
    """Enumeration of the joint support.

    Raises (at call):
        ValueError: q has more than `max_states` states.
    """

    unbiased = True
    deterministic = True

    def __init__(self, max_states: int = 4096) -> None:
        super().__init__(samples=1)
        self.max_states = max_states

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at all N states for every image, in one call: (N, B, *event)."""
        states = number_of_states(q)
        if states > self.max_states:
            raise ValueError(f"exact enumeration takes at most max_states={self.max_states} states, q has {states}")
        z = enumerate_support(q)  # (N, *event)
        z = z.unsqueeze(1).expand(states, *q.batch_shape, *q.event_shape)  # (N, B, *event)
        loss = (log_prob(q, z).exp() * cost(z)).sum(0)
        return Estimate(loss, loss.new_zeros(()), loss.detach().unsqueeze(0))
