"""A Gaussian latent whose prior couples neighboring dimensions.

    p(z) = N(0, R R^T),  (R R^T)_ij = correlation^|i - j|

The posterior stays diagonal. torch has no KL divergence for this pair, so it is registered here:

    KL(N(mu, diag sigma^2) || N(0, R R^T)) = (|R^-1 diag sigma|^2 + |R^-1 mu|^2 - D) / 2 + sum_d log(R_dd / sigma_d)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, register_kl

from vi_lab.latents import Gaussian


class CorrelatedNormal(MultivariateNormal):
    """A type of its own, so that the rule below is ours alone."""


class CorrelatedGaussian(Gaussian):
    """Diagonal Gaussian posterior, correlated Gaussian prior. Event (D,).

    Args:
        dim: D.
        correlation: of neighboring dimensions under the prior, in (-1, 1); 0 is the standard normal prior.
    """

    def __init__(self, dim: int = 10, correlation: float = 0.5) -> None:
        super().__init__(dim)
        if not -1 < correlation < 1:
            raise ValueError(f"correlation must lie in (-1, 1), got {correlation}")
        distance = (torch.arange(dim)[:, None] - torch.arange(dim)).abs()
        scale_tril = torch.linalg.cholesky(torch.tensor(float(correlation)) ** distance)
        self.register_buffer("prior_scale_tril", scale_tril, persistent=False)

    def prior(self) -> Distribution:
        return CorrelatedNormal(self.prior_mean, scale_tril=self.prior_scale_tril, validate_args=False)


@register_kl(Independent, CorrelatedNormal)
def _kl_diagonal_correlated(q: Independent, p: CorrelatedNormal) -> Tensor:
    """(B,) nats, for q = Independent(Normal, 1) and p of mean zero."""
    mean, scale = q.base_dist.loc, q.base_dist.scale  # (B, D)
    inverse = torch.linalg.solve_triangular(p.scale_tril, torch.eye(len(p.scale_tril)).to(p.scale_tril), upper=False)
    quadratic = (inverse * scale.unsqueeze(-2)).square().sum((-1, -2)) + (mean @ inverse.T).square().sum(-1)
    return 0.5 * (quadratic - mean.shape[-1]) + p.scale_tril.diagonal().log().sum() - scale.log().sum(-1)
