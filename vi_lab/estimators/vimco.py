"""VIMCO: the score-function gradient of the importance-weighted bound, with a baseline per sample.

    L = log 1/S sum_s w_s
    dL/dphi ~ sum_s (L - L_-s) d/dphi log q(z_s) + sum_s (w_s / sum_t w_t) d/dphi log w_s

L_-s is L with w_s replaced by the geometric mean of the others, so it does not see z_s. Mnih and Rezende 2016
(arXiv 1602.06725). Unbiased for the bound of S >= 2 samples; the cost is -log w.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import log_prob, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import importance_weighted_bound, with_gradient_of


def leave_one_out_bound(log_w: Tensor) -> Tensor:
    """L_-s for each s: (S, B) -> (S, B)."""
    samples = len(log_w)
    others = (log_w.sum(0) - log_w) / (samples - 1)  # log of the geometric mean of the other weights
    # row s of the first axis holds all weights, with the s-th replaced
    replaced = torch.where(torch.eye(samples, dtype=torch.bool, device=log_w.device)[..., None], others, log_w)
    return replaced.logsumexp(1) - math.log(samples)


class VIMCO(GradientEstimator):
    """Multi-sample score function with leave-one-out baselines."""

    unbiased = True
    multi_sample = True
    kl = "monte_carlo"

    def __init__(self, samples: int = 5) -> None:
        super().__init__(samples)
        if samples < 2:
            raise ValueError(f"VIMCO needs samples=2 or more, got samples={samples}")

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f = -log w at S samples; the loss is the bound in nats."""
        z = sample(q, self.samples)
        f = cost(z)
        loss = importance_weighted_bound(f)  # -L
        advantage = -loss.detach() - leave_one_out_bound(-f.detach())
        surrogate = loss - (advantage * log_prob(q, z)).sum(0)
        return Estimate(with_gradient_of(loss, surrogate), f.new_zeros(()), f.detach())
