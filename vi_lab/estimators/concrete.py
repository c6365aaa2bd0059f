"""Concrete: Gumbel-softmax whose KL is that of the relaxed variables, so that the loss is a bound.

    z = softmax((logits + g) / tau),  g ~ Gumbel        (Bernoulli: sigmoid((logit + l) / tau), l ~ Logistic)
    E_{q_tau}[ -log p(x|z) + log q_tau(z|x) - log p_tau0(z) ]  >=  -log p(x) of the relaxed model

Maddison et al. 2017 (arXiv 1611.00712). The densities are those of log z (ExpConcrete)
or logit z, which neither under- nor overflow; their ratio is that of z's. The objective `RelaxedELBO` asks for these
terms; called with a cost alone, the estimator is Gumbel-softmax. Unbiased for the relaxed objective, biased for the
discrete one.

The posterior's tau and the prior's tau0 are set apart, as in the paper; up to 1 / (C - 1) a density over C classes has
no mode within the simplex. With `learn_temperature` tau is a parameter that the bound moves; tau0 belongs to the
model and stays. Departure: the paper fixes tau, here a schedule may anneal it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from vi_lab.distributions import Chain, base, log_relaxed_sample, relaxed_log_prob
from vi_lab.estimators.base import Cost, RelaxedDensities, add_temperature
from vi_lab.estimators.gumbel_softmax import GumbelSoftmax


class Concrete(GumbelSoftmax, RelaxedDensities):
    """Relaxed samples forward and backward, with their densities."""

    prior_temperature: Tensor

    def __init__(
        self,
        samples: int = 1,
        temperature: float = 1.0,
        prior_temperature: float = 0.5,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__(samples, temperature, learn_temperature)
        add_temperature(self, prior_temperature, "prior_temperature")

    def terms(self, q: Distribution, p: Distribution, cost: Cost) -> tuple[Tensor, Tensor]:
        """The cost and log q_tau - log p_tau0 at relaxed samples: (S, B) each, with the gradient through them. Of
        several stochastic layers each is relaxed, in the posterior and in the prior (their section 5)."""
        tau, tau0 = self.temperature, self.prior_temperature
        if isinstance(q, Chain) and isinstance(p, Chain):
            return self._terms_of_layers(q, p, cost)
        y = log_relaxed_sample(q, tau, self.samples)  # (S, B, *event)
        return cost(self._relaxed(q, y)), relaxed_log_prob(q, tau, y) - relaxed_log_prob(p, tau0, y)

    @staticmethod
    def _relaxed(q: Distribution, y: Tensor) -> Tensor:
        """log z, or logit z, to z."""
        return y.exp() if isinstance(base(q), OneHotCategorical) else y.sigmoid()

    def _terms_of_layers(self, q: Chain, p: Chain, cost: Cost) -> tuple[Tensor, Tensor]:
        """`terms` of z_1 and of the sum over the layers."""
        tau, tau0, given, total = self.temperature, self.prior_temperature, q.start, torch.zeros(())
        drawn: list[tuple[Tensor, Tensor]] = []  # log z or logit z, and z
        for step in [*q.steps, None]:  # upward
            y = log_relaxed_sample(given, tau, 1 if drawn else self.samples)
            y = y[0] if drawn else y  # (S, B, *layer)
            total = total + relaxed_log_prob(given, tau, y)
            drawn.append((y, self._relaxed(given, y)))
            given = step(drawn[-1][1]) if step else given
        layers = torch.stack([z for _, z in drawn], -1 - len(q.start.event_shape))  # (S, B, T, *layer)
        for (prior, _), (y, _) in zip(p.pairs(layers), reversed(drawn), strict=True):  # downward
            total = total - relaxed_log_prob(prior, tau0, y)
        return cost(drawn[0][1]), total
