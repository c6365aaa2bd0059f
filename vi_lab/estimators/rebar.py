"""REBAR: REINFORCE with the relaxed cost as control variate, its own gradient added back without bias.

    d/dphi E_q[f(b)] = E[ (f(b) - c(z~)) d/dphi log q(b) + d/dphi c(z) - d/dphi c(z~) ],
    c(z) = eta * f(softmax(z / tau))

    z = logits + Gumbel noise,  b = onehot(argmax z),  z~ ~ p(z | b), reparameterized: gradient flows through it

Tucker et al. 2017 (arXiv 1703.07370); Bernoulli with logistic noise and a sigmoid. Unbiased for every eta and tau, so
both are learned, on the variance. As in the authors' code the noises of z and z~ are tied such that z~ = z in value:
c(z) - c(z~) is then one evaluation of c, where the difference of the two paths flows back. The decoder learns from
the hard sample b only.

Departures: one eta and one variance, that of the gradient for q's logits (the authors: per weight matrix; RELAX: as
here); learned with the model's optimizer (the authors: at ten times its rate); no baseline besides c.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vi_lab.distributions import discrete, from_logits, perturbed_logits, probabilities, tied_conditional, vertex
from vi_lab.estimators.base import Cost, Estimate, GradientEstimator, positive
from vi_lab.estimators.surrogates import with_gradient_of


class REBAR(GradientEstimator):
    """Learned scale and temperature.

    Args:
        temperature: tau at the start. It is learned, so a temperature schedule has no part in it.
        eta: the control variate's scale at the start.
    """

    unbiased = True
    differentiates = True

    def __init__(self, samples: int = 1, temperature: float = 1.0, eta: float = 1.0) -> None:
        super().__init__(samples)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(positive(temperature, "temperature"))))
        self.eta = nn.Parameter(torch.tensor(float(eta)))

    def control(self, relaxed: Tensor, z: Tensor, cost: Cost, context: Tensor | None) -> Tensor:
        """c as a function of the relaxed sample, (S, B, *event) -> (S, B); subclasses may look at z and x, too.

        Args:
            relaxed: softmax(z / tau), (S, B, *event).
            z: perturbed logits, (S, B, *event).
            context: (B, ...) what x is.
        """
        return self.eta * cost(relaxed)

    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        """Takes f at S samples and at S relaxed ones; TypeError where `q` is not discrete."""
        logits = discrete(q, type(self).__name__).logits
        leaf = logits.detach().requires_grad_()  # c is differentiated here, so its gradient stays off the decoder
        free = from_logits(q, leaf)
        z = perturbed_logits(free, self.samples)
        hard = vertex(q, z)
        f = cost(hard)  # (S, B)
        two_paths = with_gradient_of(z, z - tied_conditional(free, z))
        c = self.control(probabilities(q, two_paths / self.log_temperature.exp()), two_paths, cost, context)
        score = hard - q.mean.detach()  # d/dlogits log q(b), for both families
        remainder = (f.detach() - c).view(*c.shape, *(1 for _ in q.event_shape))
        (path,) = torch.autograd.grad(c.mean(0).sum(), leaf, create_graph=True)
        gradient = (remainder * score).mean(0) + path  # (B, *event), differentiable in eta, tau, ...
        surrogate = f.mean(0) + (gradient.detach() * logits).flatten(1).sum(-1)
        return Estimate(with_gradient_of(f.mean(0), surrogate), self._variance(gradient), f.detach())

    def _variance(self, gradient: Tensor) -> Tensor:
        """The squared gradient: up to a constant, the estimator being unbiased, its variance. The derivative for the
        estimator's own parameters is taken here, so that nothing else receives any."""
        own = [p for p in self.parameters() if p.requires_grad]
        if not own:
            return gradient.new_zeros(())
        squared = gradient.square().flatten(1).sum(-1).mean()
        surrogate = gradient.new_zeros(())
        for p, slope in zip(own, torch.autograd.grad(squared, own), strict=True):
            surrogate = surrogate + (p * slope).sum()
        return with_gradient_of(squared, surrogate)
