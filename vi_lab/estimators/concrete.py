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

from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from vi_lab.distributions import base, log_relaxed_sample, relaxed_log_prob
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
        """The cost and log q_tau - log p_tau0 at relaxed samples: (S, B) each, with the gradient through them."""
        tau = self.temperature
        y = log_relaxed_sample(q, tau, self.samples)  # (S, B, *event)
        z = y.exp() if isinstance(base(q), OneHotCategorical) else y.sigmoid()
        return cost(z), relaxed_log_prob(q, tau, y) - relaxed_log_prob(p, self.prior_temperature, y)
