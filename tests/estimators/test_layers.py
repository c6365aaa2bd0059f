"""Two stochastic layers: every estimator, one for each layer, against enumeration of both.

Per draw one row of the batch, with parameters of its own: logits of q(z_1|x), the weights of q(z_2|z_1), of p(z_1|z_2)
and the decoder's. The prior of z_2 is one for all, as it always is. False alarms as in `toy.py`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from tests.estimators.toy import PAIRS, THRESHOLD, make, posterior, problem, worst
from vi_lab.distributions import Chain, enumerate_support
from vi_lab.estimators import RLOO, Concrete, Exact, GradientEstimator
from vi_lab.estimators.surrogates import importance_weighted_bound
from vi_lab.objectives import ELBO, RelaxedELBO

ROWS = 20_000
DISCRETE = [(name, kind) for name, kind in PAIRS if kind in ("categorical", "bernoulli")]
NAMES = ("logits of q(z1|x)", "weights of q(z2|z1)", "weights of p(z1|z2)", "decoder")


def parameters(kind: str) -> list[Tensor]:
    """Of one row, in the order of `NAMES`."""
    toy, generator = problem(kind, "nonlinear"), torch.Generator().manual_seed(3)
    size = toy.phi.numel()
    upward, downward = (torch.randn(size, size, dtype=torch.float64, generator=generator) for _ in range(2))
    return [toy.phi, upward, downward, toy.theta]


def step(kind: str, weights: Tensor, z: Tensor) -> Distribution:
    """z (*, R, *layer) -> a distribution whose logits are linear in z, by the weights (R, n, n) of each row."""
    flat = z.flatten(-2) if kind == "categorical" else z  # (..., R, n), or with the leading ones flattened
    rows = flat.reshape(-1, len(weights), flat.shape[-1])
    logits = torch.einsum("srn,rnm->srm", rows, weights).reshape(flat.shape)
    return posterior(kind, logits.reshape(z.shape))


def parts(kind: str, theta: list[Tensor], layers: int = 2) -> tuple[Chain, Chain]:
    """q and p of the rows' parameters (R, ...); further layers have the weights of the second with another sign."""
    phi, upward, downward, _ = theta
    signs = [(-1) ** i for i in range(layers - 1)]
    q = Chain(posterior(kind, phi), [lambda z, s=s: step(kind, s * upward, z) for s in signs])
    top = torch.linspace(-1, 1, phi[0].numel(), dtype=torch.float64).reshape(phi[0].shape)
    p_top = posterior(kind, top)
    return q, Chain(p_top, [lambda z, s=s: step(kind, s * downward, z) for s in reversed(signs)], downward=True)


def exact(kind: str, beta: float, samples: int = 1, layers: int = 2) -> tuple[Tensor, list[Tensor]]:
    """The bound and its gradients by enumeration, of `samples` samples jointly: our own sum, not the objective's."""
    theta = [p[None].clone().requires_grad_() for p in parameters(kind)]
    q, p = parts(kind, theta, layers)
    states = enumerate_support(q.start)  # (N, *layer)
    z = states[torch.cartesian_prod(*[torch.arange(len(states))] * layers)].unsqueeze(1)  # (N^T, 1, T, *layer)
    log_q, log_p = q.log_prob(z)[:, 0], p.log_prob(z)[:, 0]
    cost = problem(kind, "nonlinear").f(z[:, :, 0].flatten(2), theta[-1])[:, 0] + beta * (log_q - log_p)
    weight = log_q.exp()
    torch.testing.assert_close(weight.sum().detach(), torch.ones((), dtype=torch.float64))
    if samples > 1:
        index = torch.cartesian_prod(*[torch.arange(len(cost))] * samples)
        cost, weight = importance_weighted_bound(cost[index].T), weight[index].prod(-1)
    value = (weight * cost).sum()
    return value.detach(), [g[0] for g in torch.autograd.grad(value, theta)]


def draws(
    kind: str, estimators: list[GradientEstimator], objective: ELBO, rows: int = ROWS
) -> tuple[Tensor, list[Tensor]]:
    """Independent draws of the value (R,) and of the gradients (R, ...), with a layer for each estimator."""
    theta = [p.expand(rows, *p.shape).clone().requires_grad_() for p in parameters(kind)]
    q, p = parts(kind, theta, len(estimators))
    toy, context = problem(kind, "nonlinear"), theta[0].flatten(1).detach()
    terms = objective(
        q, p, lambda z: toy.f(_first(q, z).flatten(2), theta[-1]), estimators[0], context, deeper=estimators[1:]
    )
    torch.testing.assert_close(terms.at_samples, terms.reconstruction + objective.beta * terms.kl)
    return terms.loss.detach(), list(torch.autograd.grad(terms.loss.sum(), theta))


def _first(q: Chain, z: Tensor) -> Tensor:
    """z_1 of a sample of all layers, as a multi-sample bound takes it, or of z_1 alone."""
    return z.select(2, 0) if z.ndim - 2 == len(q.event_shape) else z


@pytest.mark.parametrize(("name", "kind"), DISCRETE)
def test_an_estimator_for_each_layer_is_as_unbiased_as_for_one(name: str, kind: str) -> None:
    torch.manual_seed(0)
    estimators = [make(name), make(name)]
    objective = ELBO(estimators[0].kl or "analytic")
    draws(kind, estimators, objective, rows=100)  # warms up baselines
    values, gradients = draws(kind, estimators, objective)
    value, wanted = exact(kind, 1.0, estimators[0].samples if estimators[0].multi_sample else 1)
    off = {part: worst(d, e) for part, d, e in zip(NAMES, gradients, wanted, strict=True)}
    if estimators[0].unbiased:
        assert max(off.values()) < THRESHOLD, f"standard errors off: {off}"
    else:
        assert max(off[part] for part in NAMES[:2]) > 2 * THRESHOLD, f"biased, but only so far off: {off}"
    if not estimators[0].relaxed:
        assert worst(values, value) < THRESHOLD


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_the_exact_estimator_is_exact_for_any_weight_of_the_kl(kind: str, kl: str) -> None:
    values, gradients = draws(kind, [Exact(), Exact()], ELBO(kl, beta=0.3), rows=1)
    value, wanted = exact(kind, 0.3)
    torch.testing.assert_close(values[0], value)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient[0], other)


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_three_layers_are_unbiased_too(kl: str) -> None:
    torch.manual_seed(0)
    values, gradients = draws("bernoulli", [RLOO(2), RLOO(3), RLOO(2)], ELBO(kl, beta=0.7), rows=4000)
    value, wanted = exact("bernoulli", 0.7, layers=3)
    for found, true in zip([values, *gradients], [value, *wanted], strict=True):
        assert worst(found, true) < THRESHOLD


def test_the_relaxed_bound_of_two_layers_that_do_not_depend_on_each_other_is_the_sum_of_theirs() -> None:
    torch.manual_seed(0)
    rows, estimator = 200_000, Concrete(temperature=0.6, prior_temperature=0.4).double()
    phi = torch.tensor([[0.4, -1.1], [0.9, 0.2]], dtype=torch.float64)
    first, second = (posterior("bernoulli", row.expand(rows, 2)) for row in phi)
    top, below = (posterior("bernoulli", torch.tensor(p, dtype=torch.float64)) for p in ([0.3, 0.1], [0.0, -0.5]))
    q = Chain(first, [lambda z: posterior("bernoulli", phi[1].expand(z.shape))])
    p = Chain(top, [lambda z: posterior("bernoulli", below.base_dist.logits.expand(z.shape))], downward=True)
    zero = lambda z: z.new_zeros(z.shape[:2])  # noqa: E731
    both = RelaxedELBO()(q, p, zero, estimator).loss
    alone = RelaxedELBO()(first, below, zero, estimator).loss + RelaxedELBO()(second, top, zero, estimator).loss
    assert worst(both - alone, torch.zeros((), dtype=torch.float64)) < THRESHOLD
    assert worst(both, torch.zeros((), dtype=torch.float64)) > THRESHOLD
