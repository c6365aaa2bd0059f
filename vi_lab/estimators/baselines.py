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

    def control_loss(self, cost: Tensor, baseline: Tensor) -> Tensor | None:
        """() the error that teaches the baseline; None where it has no parameters."""
        return None


class NoBaseline(Baseline):
    """Zero."""

    def forward(self, cost: Tensor, context: Tensor | None) -> Tensor:
        return cost.new_zeros(())


class MovingAverage(Baseline):
    """Exponential moving average of the costs of past steps, used first and updated after.

    Corrected for its start at zero, as in Adam (Kingma and Ba 2015): the first step has no baseline.
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("weight", torch.tensor(0.0))

    def forward(self, cost: Tensor, context: Tensor | None) -> Tensor:
        # weight is 0 only before the first update, where total is 0 too
        baseline = self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)
        if self.training:
            self.total.lerp_(cost.mean().to(self.total.dtype), 1 - self.decay)
            self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        return baseline.to(cost.dtype)


class LeaveOneOut(Baseline):
    """Mean cost of the other samples of the same image (Kool et al. 2019; Salimans and Knowles 2014)."""

    minimum_samples = 2

    def forward(self, cost: Tensor, context: Tensor | None) -> Tensor:
        return (cost.sum(0) - cost) / (cost.shape[0] - 1)
