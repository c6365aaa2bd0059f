"""Objectives: the analytic and the Monte Carlo KL, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td

from tests.estimators.toy import LATENTS, ROWS, THRESHOLD, posterior, problem, worst
from vi_lab.estimators import RLOO, Exact, Pathwise, Reinforce
from vi_lab.objectives import ELBO


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [("categorical", RLOO(2)), ("categorical", Reinforce(1)), ("categorical", Exact()), ("bernoulli", RLOO(3)),
     ("gaussian", Pathwise(2)), ("gaussian", RLOO(4))],
)  # fmt: skip
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_monte_carlo_kl_has_the_gradient_of_the_analytic_one(
    kind: str, estimator: torch.nn.Module, beta: float
) -> None:
    """E_q[f + beta (log q - log p)]: the entropy by sampling (the discrete-VAE notes' eq. 9) in one backward pass."""
    torch.manual_seed(0)
    toy, prior = problem(kind, "nonlinear"), LATENTS[kind].double().prior()
    phi = toy.phi.clone().requires_grad_()
    kl = td.kl_divergence(posterior(kind, phi[None]), prior.expand((1,))).sum()
    (kl_gradient,) = torch.autograd.grad(kl, phi)
    value, gradient, _ = toy.exact()
    rows = toy.phi.expand(ROWS, *toy.phi.shape).clone().requires_grad_()
    theta = toy.theta.expand(ROWS, -1)
    terms = ELBO("monte_carlo", beta)(posterior(kind, rows), prior, lambda z: toy.f(z.flatten(2), theta), estimator)
    (draws,) = torch.autograd.grad(terms.loss.sum(), rows)
    assert worst(draws, gradient + beta * kl_gradient) < THRESHOLD
    assert worst(terms.loss.detach(), value + beta * kl.detach()) < THRESHOLD
    torch.testing.assert_close(terms.reconstruction + beta * terms.kl, terms.loss.detach())


def test_analytic_elbo_is_cost_plus_kl() -> None:
    toy, prior = problem("categorical", "nonlinear"), LATENTS["categorical"].double().prior()
    q = posterior("categorical", toy.phi[None])
    terms = ELBO(beta=0.5)(q, prior, lambda z: toy.f(z.flatten(2), toy.theta[None]), Exact())
    torch.testing.assert_close(terms.loss.sum(), toy.exact()[0] + 0.5 * td.kl_divergence(q, prior.expand((1,))).sum())
    torch.manual_seed(0)
    unrelaxed = ELBO(beta=0.5).unrelaxed(q, prior, lambda z: toy.f(z.flatten(2), toy.theta[None]), samples=ROWS)
    assert worst(unrelaxed.cost[:, 0], toy.exact()[0]) < THRESHOLD
