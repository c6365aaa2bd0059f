"""Baselines for score-function estimators: what is taken off the cost before it multiplies the score.

A baseline must not see the sample that it is used on, or the gradient is biased: a batch mean that includes it
shrinks the gradient by (N - 1) / N.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Baseline(nn.Module, ABC):
    """Maps the costs of the current samples to what is subtracted from each."""

    minimum_samples: int = 1

    @abstractmethod
    def forward(self, cost: Tensor, context: Tensor | None) -> Tensor:
        """cost (S, B), detached -> baseline, broadcastable to (S, B)."""

    def normalize(self, advantage: Tensor) -> Tensor:
        """(S, B) the cost less the baseline, rescaled; by default as it is."""
        return advantage

    def control_loss(self, cost: Tensor, baseline: Tensor) -> Tensor | None:
        """() the error that teaches the baseline; None where it has no parameters."""
        return None


class NoBaseline(Baseline):
    """Zero."""

    def forward(self, cost: Tensor, context: Tensor | None) -> Tensor:
        """() 0."""
        return cost.new_zeros(())


class MovingAverage(Baseline):
    """Exponential moving average of the costs of past steps, used first and updated after.

    Corrected for its start at zero, as in Adam (Kingma and Ba 2015): the first step has no baseline.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("weight", torch.tensor(0.0))

    def forward(self, cost: Tensor, context: Tensor | None) -> Tensor:
        """() mean cost of past steps, in nats; in training, this step's enters it afterwards."""
        # weight is 0 only before the first update, where total is 0 too
        baseline = self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)
        if self.training:
            self.total.mul_(self.decay).add_(cost.mean().to(self.total.dtype), alpha=1 - self.decay)
            self.weight.mul_(self.decay).add_(1 - self.decay)
        return baseline.to(cost.dtype)


class LeaveOneOut(Baseline):
    """Mean cost of the other samples of the same image (Kool et al. 2019; Salimans and Knowles 2014)."""

    minimum_samples = 2

    def forward(self, cost: Tensor, context: Tensor | None) -> Tensor:
        """(S, B): for each sample the mean cost of the other S - 1, in nats."""
        return (cost.sum(0) - cost) / (cost.shape[0] - 1)


class InputDependent(Baseline):
    """NVIL: a network predicts the cost from the input, b(x) (Mnih and Gregor 2014, arXiv 1402.0030, section 3).

    The mean c of what it leaves is taken off too, as a moving average: the baseline is b(x) + c. Learned by least
    squares on f - c - b(x). Departure: c and the scale are used before the current batch updates them, so that no
    sample meets its own statistics.

    Args:
        hidden: tanh units of the network's one hidden layer. Its input size is that of x, taken at the first call.
        decay: of the moving averages.
        normalize_variance: divide the advantage by max(1, its moving standard deviation), as the paper does. This
            rescales the gradient of q's parameters but not the decoder's, so it is biased: off by default.
    """

    def __init__(self, hidden: int = 100, decay: float = 0.8, normalize_variance: bool = False) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.LazyLinear(hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.mean = MovingAverage(decay)
        self.variance = MovingAverage(decay) if normalize_variance else None

    def forward(self, cost: Tensor, context: Tensor | None) -> Tensor:
        """(B,) b(x) + c in nats, with gradient to the network; ValueError where x is not given."""
        if context is None:
            raise ValueError("the baseline InputDependent needs the input x as context, got none")
        prediction = self.network(context.detach().to(cost.dtype)).squeeze(-1)  # (B, ...) -> (B,)
        return prediction + self.mean(cost - prediction.detach(), None)

    def normalize(self, advantage: Tensor) -> Tensor:
        """(S, B) divided by max(1, moving standard deviation), where that is wanted."""
        if self.variance is None:
            return advantage
        return advantage / self.variance(advantage.detach().square(), None).sqrt().clamp_min(1)

    def control_loss(self, cost: Tensor, baseline: Tensor) -> Tensor:
        """() squared error, mean over samples and images."""
        return (cost - baseline).square().mean()
