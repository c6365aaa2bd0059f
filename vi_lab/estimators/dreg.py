"""DReG: the doubly reparameterized gradient of the importance-weighted bound.

    d/dphi E[log 1/S sum_s w_s] = E[ sum_s (w_s / sum_t w_t)^2  dlog w_s/dz_s  dz_s/dphi ]

Tucker et al. 2019 (arXiv 1810.04152), section 5. Equals the IWAE gradient in mean, with a signal-to-noise that does not
fall as S grows. q's parameters get the squared weights and reach log w through z alone (hence kl=path); the decoder
keeps the IWAE gradient, with plain weights.

Beyond the paper, whose log w has log q with weight 1: with log w = log p(x|z) - beta (log q(z|x) - log p(z)), v_s the
normalized weight w_s / sum_t w_t, the score that kl=path leaves out is -beta sum_s v_s d/dphi log q(z_s), in mean
-beta sum_s dv_s/dz_s dz_s/dphi with dv_s/dz_s = v_s (1 - v_s) dlog w_s/dz_s. So v_s^2 becomes v_s (1 - beta (1 - v_s)).
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import reparameterized_sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import importance_weighted_bound


class DoublyReparameterized(GradientEstimator):
    """IWAE whose gradient through z is multiplied once more by the normalized weight.

    Unbiased where the cost is -log w of this very q, as `ELBO(kl="path")` makes it; for another cost the identity
    behind it does not hold.

    Args:
        beta: with which log q enters the cost, that of the objective.
    """

    unbiased = True
    multi_sample = True
    kl = "path"

    def __init__(self, samples: int = 1, beta: float = 1.0) -> None:
        super().__init__(samples)
        if beta < 0:
            raise ValueError(f"beta must not be negative, got {beta}")
        self.beta = beta

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f = -log w at S samples; a hook on z multiplies the gradient that flows through it."""
        z = reparameterized_sample(q, self.samples, type(self).__name__)
        f = cost(z)
        if z.requires_grad:
            weights = (-f.detach()).softmax(0)  # w_s / sum_t w_t; the gradient has this factor already
            factor = weights if self.beta == 1 else 1 - self.beta * (1 - weights)
            z.register_hook(lambda gradient: gradient * factor.reshape(*factor.shape, *[1] * len(q.event_shape)))
        return Estimate(importance_weighted_bound(f), f.new_zeros(()), f.detach())


DoublyReparameterised = DoublyReparameterized  # its name before 0.2.0
