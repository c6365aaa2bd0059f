"""VQ: straight-through over the nearest code, with the losses that teach the codebook and bind the encoder to it.

    z_l = c_k,  k = argmin_j |e_l - c_j|,  dz/de := 1
    gradient of  f(z) + sum_l |sg[e_l] - c_k|^2 + beta sum_l |e_l - sg[c_k]|^2,  sg: stop gradient

van den Oord, Vinyals and Kavukcuoglu 2017 (arXiv 1711.00937, equation 3), for `latent=vq`. Biased: the posterior is
certain, so the exact gradient with respect to e is zero almost everywhere. The value is f at the code, as for every
estimator, and so the loss is a bound; the codebook and commitment terms are in the gradient alone.

Departures: the paper's released code divides the terms by the number of dimensions and scales f; here all three are
sums, as its equation 3 has them, in nats and squared distance. The codebook learns by its loss, not by moving averages.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import nearest_code
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import straight_through, with_gradient_of


class VectorQuantization(GradientEstimator):
    """Code forward, encoding backward."""

    unbiased = False
    deterministic = True

    def __init__(self, commitment: float = 0.25) -> None:
        super().__init__(samples=1)
        if commitment < 0:
            raise ValueError(f"commitment must not be negative, got {commitment}")
        self.commitment = commitment

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f once, at the codes: (1, B, L, D); TypeError where `q` is not a `NearestCode`."""
        q = nearest_code(q, "vector quantization")
        f = cost(straight_through(q.codes, q.encoding).unsqueeze(0))  # (1, B, L, D) -> (1, B)
        codebook_loss = (q.encoding.detach() - q.codes).square().sum((-1, -2))
        commitment_loss = (q.encoding - q.codes.detach()).square().sum((-1, -2))
        loss = with_gradient_of(f.mean(0), f.mean(0) + codebook_loss + self.commitment * commitment_loss)
        return Estimate(loss, loss.new_zeros(()), f.detach())
