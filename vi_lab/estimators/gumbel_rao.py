"""Gumbel-Rao (GR-MCK): the straight-through Gumbel-softmax, its gradient averaged over the noise that gives the sample.

    z ~ q,   dz/dlogits := 1/K sum_k dsoftmax((logits + g_k) / tau)/dlogits
    g_1, ..., g_K ~ Gumbel given argmax(logits + g_k) = z

Paulus et al. 2021 (arXiv 2010.04838). The same mean as the straight-through Gumbel-softmax (so biased), at one
evaluation of the cost; the variance falls with K and K = 1 is the straight-through Gumbel-softmax itself.

The g_k are held constant in the derivative. The paper's text has it taken through g_k too, as a function of the logits
and z; that estimator has another mean, so it would be no Rao-Blackwellization, and not the straight-through
Gumbel-softmax at K = 1, as it says next to it. The usual implementations hold g_k constant as well.

With many g_k and tau -> 0 it becomes ReinMax at tau = 1 (Shekhovtsov 2023 has the limit, under the name ZGR).
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vi_lab.distributions import conditional_perturbed_logits, discrete, probabilities, sample
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, add_temperature
from vi_lab.estimators.surrogates import differentiable, straight_through, with_gradient_of


def conditional_relaxation(
    q: Distribution, logits: Tensor, z: Tensor, temperature: Tensor | float, inner_samples: int
) -> Tensor:
    """Relaxations at `logits` under noise that selects `z`, averaged: z's shape; their gradient goes to q's logits."""
    perturbed = conditional_perturbed_logits(q, logits, z, inner_samples)  # (K, S, B, *event)
    perturbed = with_gradient_of(perturbed, discrete(q, "Gumbel-Rao").logits)
    return probabilities(q, perturbed / temperature).mean(0)


class GumbelRao(GradientEstimator):
    """Hard forward; backward, the mean of relaxations that agree with the sample."""

    unbiased = False
    temperature: Tensor

    def __init__(self, samples: int = 1, temperature: float = 1.0, inner_samples: int = 10) -> None:
        """inner_samples: K, the draws of the noise per sample of z; the paper has 10, 100 and 1000."""
        super().__init__(samples)
        if inner_samples < 1:
            raise ValueError(f"inner_samples must be at least 1, got {inner_samples}")
        add_temperature(self, temperature)
        self.inner_samples = inner_samples

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples of the true q, whatever K; TypeError where it is not discrete."""
        logits = discrete(q, "Gumbel-Rao").logits
        z = sample(q, self.samples)  # (S, B, *event)
        relaxed = conditional_relaxation(q, logits, z, self.temperature, self.inner_samples)
        return differentiable(cost(straight_through(z, relaxed)))
