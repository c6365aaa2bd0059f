"""Surrogate losses: expressions whose gradient is the estimator, kept apart from the value that is reported."""

from __future__ import annotations

import math

from torch import Tensor

from vi_lab.estimators.base import Estimate


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value` going forward, the gradient of `surrogate` going backward."""
    return value.detach() + (surrogate - surrogate.detach())


def differentiable(cost: Tensor) -> Estimate:
    """The estimate of a method whose gradient flows through the samples: the mean cost (S, B) -> (B,)."""
    return Estimate(cost.mean(0), cost.new_zeros(()), cost.detach())


def score_function(cost: Tensor, advantage: Tensor, log_q: Tensor, control_loss: Tensor | None = None) -> Estimate:
    """mean_s [ f(z_s) + advantage_s * log q(z_s) ]: the score-function gradient with the value of the mean cost.

    Args:
        cost: (S, B) f at samples without gradient; carries the gradient of the cost's own parameters.
        advantage: (S, B) the cost less a baseline that has not seen the sample; detached here.
        log_q: (S, B) log q(z_s), with gradient.
        control_loss: () the error of a learned baseline.
    """
    surrogate = (cost + advantage.detach() * log_q).mean(0)
    zero = cost.new_zeros(()) if control_loss is None else control_loss
    return Estimate(with_gradient_of(cost.mean(0), surrogate), zero, cost.detach())


def importance_weighted_bound(cost: Tensor) -> Tensor:
    """-log 1/S sum_s exp(-f(z_s)): (S, B) -> (B,). With f = -log w this is -log of the mean weight (IWAE)."""
    return math.log(cost.shape[0]) - (-cost).logsumexp(0)


def antithetic(cost: Tensor, score: Tensor) -> Estimate:
    """mean over pairs of [ (f(z) + f(z')) / 2 + (f(z) - f(z')) * score ]: a difference of costs for an advantage.

    Args:
        cost: (S, B) f at the first members of the pairs, then at the second; both are samples of the true q.
        score: (S/2, B) the weighted logits whose gradient the difference of each pair multiplies.
    """
    first, second = cost.detach().chunk(2)
    surrogate = cost.mean(0) + ((first - second) * score).mean(0)
    return Estimate(with_gradient_of(cost.mean(0), surrogate), cost.new_zeros(()), cost.detach())


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` going forward, `soft` going backward (Bengio et al. 2013)."""
    return with_gradient_of(hard, soft)
