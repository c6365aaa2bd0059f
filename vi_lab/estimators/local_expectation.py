"""Local expectation gradients: for each variable the exact sum over its values, the others held at their sample.

    d/dphi E_q[f(z)] = sum_i E_{z_-i}[ sum_k f(z_i = k, z_-i) d/dphi q_i(k) ]

Titsias and Lazaro-Gredilla 2015 (arXiv 1503.01494), for factorized q. Unbiased; exact for a single variable. Costs
one evaluation of f per variable and value, without gradient; the decoder learns from the samples z alone.
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
        values: (K, S or 1, B or 1, L or 1, *) what each variable is set to.
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
        """Takes f at S samples and, without gradient, with each variable set to each value: S * L * K times."""
        b = discrete(q, "local expectation")
        if isinstance(b, OneHotCategorical):
            probs = b.probs  # (B, L, K)
            values = torch.eye(probs.shape[-1], dtype=probs.dtype, device=probs.device)[:, None, None, None]
        else:
            probs = torch.stack([1 - b.probs, b.probs], -1)
            values = torch.tensor([0.0, 1.0], dtype=probs.dtype, device=probs.device)[:, None, None, None]
        z = sample(q, self.samples)
        f = cost(z)
        replaced = costs_of_replacements(cost, z, values, self.chunk).mean(2)  # (L, K, B)
        surrogate = f.mean(0) + (replaced.permute(2, 0, 1) * probs).sum((1, 2))
        return Estimate(with_gradient_of(f.mean(0), surrogate), f.new_zeros(()), f.detach())
