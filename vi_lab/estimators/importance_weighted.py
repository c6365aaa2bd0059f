"""The importance-weighted bound with the pathwise gradient (IWAE).

    -log p(x) <= E[ -log 1/S sum_s w_s ],  w_s = p(x, z_s) / q(z_s|x),  z_s reparameterized

Burda et al. 2016 (arXiv 1509.00519). Unbiased for the bound of S samples, which tightens with S; the cost is -log w,
so the objective's KL is by Monte Carlo. The encoder's signal-to-noise falls as S grows (Rainforth et al. 2018).
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import reparameterized_sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import importance_weighted_bound


class ImportanceWeighted(GradientEstimator):
    """-log mean_s exp(-f(z_s)) at reparameterized samples."""

    unbiased = True
    multi_sample = True
    kl = "monte_carlo"

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f = -log w at S samples; the loss is the bound in nats; TypeError where `q` has no `rsample`."""
        f = cost(reparameterized_sample(q, self.samples, type(self).__name__))
        return Estimate(importance_weighted_bound(f), f.new_zeros(()), f.detach())
