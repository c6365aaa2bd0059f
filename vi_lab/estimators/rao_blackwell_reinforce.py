"""Rao-Blackwellized REINFORCE: the k most probable categories summed, one of the rest sampled.

    d/dphi E_q[f(z)] = sum_{j in top k} q(j) (f(j) - b) d/dphi log q(j)
                       + (1 - sum_{j in top k} q(j)) E_v[ (f(v) - b) d/dphi log q(v) ],  v ~ q outside the top k

Liu et al. 2019 (arXiv 1810.04777). Unbiased; with k = C it is exact for a single variable. The paper has one
categorical variable. Here it acts on each of L variables in turn, with the others held at their sample z_-i (the
joint top k would hold next to no mass), which reaches from REINFORCE per variable to local expectation at k = C, for
L * (k + 1) evaluations of f without gradient. Departure: the baseline b, the mean cost of the top k, which comes for
nothing and does not depend on v.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import categorical, gumbel_like, one_hot, one_hot_argmax, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator
from vi_lab.estimators.local_expectation import costs_of_replacements
from vi_lab.estimators.surrogates import with_gradient_of


class RaoBlackwellReinforce(GradientEstimator):
    """Categorical posteriors only: for two values and k = 1 this is `LocalExpectation`.

    Args:
        top_k: categories per variable that are summed; more than there are means all.
        chunk: variables per call of the cost; smaller takes less memory.
    """

    unbiased = True

    def __init__(self, samples: int = 1, top_k: int = 2, chunk: int = 10) -> None:
        super().__init__(samples)
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.top_k, self.chunk = top_k, chunk

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples and, without gradient, at S * L * (k + 1) replacements of one variable, or S * L * C
        where k is C; TypeError where `q` is not categorical."""
        logits = categorical(q, "Rao-Blackwellized REINFORCE").logits  # (B, L, C), normalized
        k = min(self.top_k, logits.shape[-1])
        with torch.no_grad():
            values, weights = self._candidates(logits, k)  # (K, S, B, L, C), (K, S, B, L)
            z = sample(q, self.samples)
            replaced = costs_of_replacements(cost, z, values, self.chunk).movedim(0, -1)  # (K, S, B, L)
            top = weights[:k]
            baseline = (top * replaced[:k]).sum(0) / top.sum(0)  # (S, B, L)
        f = cost(z)
        log_q = (values * logits).sum(-1)  # (K, S, B, L)
        surrogate = f.mean(0) + (weights * (replaced - baseline) * log_q).sum((0, -1)).mean(0)
        return Estimate(with_gradient_of(f.mean(0), surrogate), f.new_zeros(()), f.detach())

    def _candidates(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Per variable the top categories with their probabilities, then a draw of the rest, if there is one, with all
        of theirs."""
        top = logits.topk(k).indices  # (B, L, k)
        best = one_hot(top.movedim(-1, 0), logits.shape[-1], logits.dtype)  # (k, B, L, C)
        values = best.unsqueeze(1).expand(-1, self.samples, -1, -1, -1)
        weights = (best * logits.exp()).sum(-1).unsqueeze(1)  # (k, 1, B, L)
        if k < logits.shape[-1]:
            rest = logits.scatter(-1, top, -torch.inf)
            drawn = one_hot_argmax(rest + gumbel_like(rest, self.samples))  # (S, B, L, C)
            values = torch.cat([values, drawn.unsqueeze(0)])
            weights = torch.cat([weights, rest.exp().sum(-1)[None, None]])
        return values, weights.expand(values.shape[:-1])
