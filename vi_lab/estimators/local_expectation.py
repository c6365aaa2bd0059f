"""Local expectation gradients: for each variable the exact sum over its values, the others held at their sample.

    d/dphi E_q[f(z)] = sum_i E_{z_-i}[ sum_k f(z_i = k, z_-i) d/dphi q_i(k) ]

Titsias and Lazaro-Gredilla 2015 (arXiv 1503.01494), for factorized q. Unbiased; exact for a single variable. Costs
one evaluation of f per variable and value other than its own, without gradient; the decoder learns from z alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from vi_lab.distributions import discrete, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.surrogates import with_gradient_of


@torch.no_grad()
def costs_of_replacements(cost: Cost, z: Tensor, values: Tensor, chunk: int) -> Tensor:
    """f with one variable replaced at a time: (L, K, S, B).

    Args:
        cost: f.
        z: (S, B, L, *) the samples.
        values: (K, S, B, L, *) what each variable is set to.
        chunk: variables per call of f; bounds the memory.
    """
    variables = z.shape[2]
    here = torch.eye(variables, dtype=torch.bool, device=z.device)
    here = here.view(variables, 1, 1, 1, variables, *(1 for _ in z.shape[3:]))  # (L, K, S, B, L, *)
    costs = []
    for some in here.split(chunk):
        states = torch.where(some, values, z)  # (chunk, K, S, B, L, *)
        costs += [cost(states.flatten(0, 2)).unflatten(0, states.shape[:3])]
    return torch.cat(costs)


class LocalExpectation(GradientEstimator):
    """Enumerates one variable at a time.

    Args:
        chunk: variables per call of the cost; smaller takes less memory.
    """

    unbiased = True

    def __init__(self, samples: int = 1, chunk: int = 10) -> None:
        super().__init__(samples)
        self.chunk = chunk

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples and, without gradient, with each variable set to each of its other values:
        S * (1 + L * (K - 1)) times."""
        b = discrete(q, "local expectation")
        z = sample(q, self.samples)  # (S, B, *event)
        if isinstance(b, OneHotCategorical):
            others = [z.roll(shift, -1) for shift in range(1, z.shape[-1])]
            probs = [(value * b.probs).sum(-1) for value in (z, *others)]
        else:
            others = [1 - z]
            probs = [torch.where(value.bool(), b.probs, 1 - b.probs) for value in (z, *others)]
        f = cost(z)
        here = f.detach().expand(z.shape[2], 1, *f.shape)  # where a variable keeps its value
        replaced = costs_of_replacements(cost, z, torch.stack(others), self.chunk) if others else here[:, :0]
        costs = torch.cat([here, replaced], 1).permute(1, 2, 3, 0)  # (L, K, S, B) -> (K, S, B, L)
        surrogate = (f + (costs * torch.stack(probs)).sum((0, -1))).mean(0)
        return Estimate(with_gradient_of(f.mean(0), surrogate), f.new_zeros(()), f.detach())
