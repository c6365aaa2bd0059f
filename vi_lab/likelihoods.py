"""p(x|z): what the decoder's output means. Each maps (output, x) to -log p(x|z) in nats per image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Likelihood(nn.Module, ABC):
    """A pixel distribution, independent over pixels given the decoder's output."""

    @abstractmethod
    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """-log p(x|z). output (S, B, *shape), x (B, *shape) -> (S, B), nats summed over pixels."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """E[x|z], in output's shape, for pictures."""

    def output_of(self, mean: Tensor) -> Tensor:
        """The decoder's output whose `mean` is this: where its bias may begin.

        Raises:
            NotImplementedError: the distribution has none.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which output has a given mean")


class Bernoulli(Likelihood):
    """Binary pixels; the output is their logits.

    For gray x in (0, 1) the same formula is a cross-entropy and no normalized likelihood: numbers from gray pixels
    do not compare with those from binary ones (the continuous Bernoulli, arXiv 1907.06845, would normalize it).
    """

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy of pixels in [0, 1] with their logits: (S, B), nats summed over pixels."""
        nats = F.binary_cross_entropy_with_logits(output, x.to(output).expand_as(output), reduction="none")
        return nats.flatten(2).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """The pixels' probabilities."""
        return output.sigmoid()

    def output_of(self, mean: Tensor) -> Tensor:
        """The logits, of probabilities within [0.001, 0.999] (Burda et al. 2016): some pixels are never on."""
        return mean.clamp(0.001, 0.999).logit()


class Gaussian(Likelihood):
    """Normal(output, scale^2) per pixel; one scale for all pixels, fixed or learned.

    A learned shared scale is the sigma-VAE (Rybkin et al. 2021, arXiv 2006.13202). Densities: nats may be negative.
    """

    def __init__(self, scale: float = 1.0, learn_scale: bool = False) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """-log density: (S, B), nats summed over pixels; negative where densities exceed 1."""
        residual = (x - output) * (-self.log_scale).exp()
        nats = 0.5 * residual.square().flatten(2).sum(-1)
        return nats + x[0].numel() * (self.log_scale + 0.5 * math.log(2 * math.pi))

    def mean(self, output: Tensor) -> Tensor:
        """The output as it is."""
        return output

    def output_of(self, mean: Tensor) -> Tensor:
        """The mean as it is."""
        return mean
