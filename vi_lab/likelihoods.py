"""p(x|z): what the decoder's output means. Each maps (output, x) to -log p(x|z) in nats per image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Likelihood(nn.Module, ABC):
    """A pixel distribution, independent over pixels given the decoder's output."""

    planes: int = 1
    """Of how many numbers per pixel and channel the decoder's output is: (planes * C, H, W) for images (C, H, W)."""
    levels: int = 1
    """Densities of pixels in [0, 1] are read as probabilities of so many gray levels, each 1 / levels wide, where bits
    per dimension are wanted; 1 where the nats are those of probabilities already."""
    of_levels: bool = False
    """Whether pixels must be the 256 gray levels k / 255, as with `data.binarization=none`."""

    @abstractmethod
    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """-log p(x|z). output (S, B, planes * C, H, W), x (B, C, H, W) -> (S, B), nats summed over pixels."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """E[x|z], (..., C, H, W), for pictures."""

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
    Bits per dimension are those of 256 levels; with `data.binarization=dequantize` they bound what the levels take.
    """

    levels = 256

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


class DiscretizedLogistic(Likelihood):
    """Probabilities of the 256 levels x = k / 255: what a logistic distribution has between the middles to the next
    levels, the tails added to the first and the last one (Kingma et al. 2016, arXiv 1606.04934; one component of
    Salimans et al. 2017, arXiv 1701.05517).

    The output is, for each pixel and channel, a mean and a log scale, of pixels scaled to [-1, 1] as the authors have
    them: first the means of all channels, then their log scales.
    """

    planes = 2
    of_levels = True
    log_scales = (-7.0, 20.0)
    """Clamped to these: the authors' least one, and one from which on float32 would call all levels equal."""

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """-log probability of the levels: (S, B), nats summed over pixels; never negative."""
        mean, log_scale = self._parts(output)
        per_scale = (-log_scale).exp()
        centered = 2 * x.to(output) - 1 - mean
        upper, lower = per_scale * (centered + 1 / 255), per_scale * (centered - 1 / 255)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), where nothing cancels
        between = F.logsigmoid(upper) + F.logsigmoid(-lower) + (-(-2 / 255 * per_scale).expm1()).log()
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        nats = -torch.where(x < 0.5 / 255, below, torch.where(x > 1 - 0.5 / 255, above, between))
        return nats.flatten(2).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """The logistic's mean, within [0, 1]."""
        return ((self._parts(output)[0] + 1) / 2).clamp(0, 1)

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 2C, H, W) -> mean and log scale (..., C, H, W)."""
        mean, log_scale = output.chunk(2, -3)
        return mean, log_scale.clamp(*self.log_scales)

    def output_of(self, mean: Tensor) -> Tensor:
        """The mean, and log scales of 0."""
        return torch.cat([2 * mean - 1, torch.zeros_like(mean)], -3)
