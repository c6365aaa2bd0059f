"""Identities of the score-function family: what each control variate is exactly, beyond being unbiased.

The family-wise false-alarm rate is that of `toy.py`, whose thresholds these tests share.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.estimators.toy import COORDINATES, FAMILY_ERROR, THRESHOLD, Problem, posterior, problem, worst
from vi_lab import distributions
from vi_lab.build import build
from vi_lab.config import compose_job
from vi_lab.distributions import perturbed_logits, vertex
from vi_lab.estimators import (
    REBAR,
    RELAX,
    GradientEstimator,
    LocalExpectation,
    MuProp,
    RaoBlackwellReinforce,
    Reinforce,
)
from vi_lab.estimators.baselines import InputDependent

discrete = pytest.mark.parametrize("kind", ["categorical", "bernoulli"])


def variance(toy: Problem, estimator: GradientEstimator, rows: int = 4000) -> float:
    """Of the gradient for the posterior's parameters, summed over coordinates."""
    torch.manual_seed(1)
    return toy.draws(estimator, rows)[1].var(0).sum().item()


def one_variable(kind: str, classes: int = 3) -> Problem:
    """One categorical or Bernoulli variable with a cost whose values have no pattern."""
    generator = torch.Generator().manual_seed(0)
    size = classes if kind == "categorical" else 1
    phi, theta, weight = (torch.randn(n, dtype=torch.float64, generator=generator) for n in (size, size, size))
    phi = phi[None] if kind == "categorical" else phi
    return Problem(kind, phi, theta, lambda z, theta: 5 + 3 * (z * weight).sum(-1) + torch.sin(z * theta).sum(-1))


# --- the conditional noise of REBAR and RELAX ----------------------------------------------------------------------


def conditional(kind: str, logits: Tensor, hard: Tensor, noise: Tensor) -> Tensor:
    """The explicit sampler of perturbed logits given their vertex; noise is Exponential(1) or logistic."""
    if kind == "categorical":
        top = (noise * hard).sum(-1, keepdim=True)
        return torch.where(hard.bool(), -top.log(), -(top + noise / logits.softmax(-1)).log())
    sign = 2 * hard - 1
    return sign * F.softplus(noise + F.softplus(sign * logits))


def tied_noise(kind: str, logits: Tensor, z: Tensor) -> Tensor:
    """The noise for which `conditional` returns z."""
    if kind == "categorical":
        top = (-z.amax(-1, keepdim=True)).exp()
        return torch.where(z == z.amax(-1, keepdim=True), top, ((-z).exp() - top) * logits.softmax(-1))
    return z.abs().expm1().log() - F.softplus(torch.where(z > 0, logits, -logits))


def follows(draws: Tensor, cdf: Tensor) -> bool:
    """Dvoretzky-Kiefer-Wolfowitz: whether n draws (n, ...) lie near their distribution, cdf taken at the sorted
    draws."""
    n = len(draws)
    steps = torch.arange(n, dtype=draws.dtype).view(-1, *(1 for _ in draws.shape[1:]))
    distance = torch.maximum((cdf - steps / n).abs(), (cdf - (steps + 1) / n).abs()).max()
    return distance.item() < math.sqrt(math.log(2 * COORDINATES / FAMILY_ERROR) / (2 * n))


@discrete
def test_conditional_noise_keeps_the_vertex_and_the_marginal(kind: str) -> None:
    """Given the vertex of a draw, fresh noise through the sampler gives the same vertex and the same marginal law."""
    torch.manual_seed(0)
    toy = problem(kind, "nonlinear")
    q = posterior(kind, toy.phi[None])
    logits = q.base_dist.logits
    hard = distributions.sample(q, 50_000)
    noise_like = distributions.logistic_like if kind == "bernoulli" else distributions.gumbel_like
    noise = noise_like(logits, 50_000)
    z = conditional(kind, logits, hard, noise if kind == "bernoulli" else (-noise).exp())
    assert torch.equal(distributions.vertex(q, z), hard)
    draws = (z - logits).sort(0).values
    assert follows(draws, (-(-draws).exp()).exp() if kind == "categorical" else draws.sigmoid())


@discrete
def test_tied_conditional_is_the_conditional_sampler_at_the_noise_of_the_draw(kind: str) -> None:
    torch.manual_seed(0)
    phi = problem(kind, "nonlinear").phi[None].clone().requires_grad_()
    q = posterior(kind, phi)
    z = distributions.perturbed_logits(q, 50_000).detach()
    hard, logits = distributions.vertex(q, z), q.base_dist.logits
    noise = tied_noise(kind, logits, z).detach()
    explicit, tied = conditional(kind, logits, hard, noise), distributions.tied_conditional(q, z)
    torch.testing.assert_close(explicit, z)
    assert torch.equal(tied, z)
    weight = torch.randn_like(z)
    (expected,) = torch.autograd.grad((weight * explicit).sum(), phi, retain_graph=True)
    (actual,) = torch.autograd.grad((weight * tied).sum(), phi)
    torch.testing.assert_close(actual, expected)
    # the tied noise does not depend on the vertex: the score-function term stays unbiased
    for chosen in (hard > 0, hard == 0) if kind == "bernoulli" else ():
        draws = noise[chosen].sort().values
        assert follows(draws, draws.sigmoid())
    if kind == "categorical":
        for variable in range(2):
            for vertex in range(3):
                draws = noise[:, 0, variable][hard[:, 0, variable, vertex] > 0].sort(0).values  # (n, C)
                assert follows(draws, -torch.expm1(-draws))


# --- REBAR and RELAX -----------------------------------------------------------------------------------------------


def with_random_network(estimator: RELAX, toy: Problem) -> RELAX:
    q = posterior(toy.kind, toy.phi[None])
    estimator.materialize(q, toy.phi[None])
    for p in estimator.network.parameters():
        nn.init.normal_(p)
    return estimator


@discrete
@pytest.mark.parametrize(("eta", "temperature"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 3.0)])
def test_rebar_and_relax_are_unbiased_for_every_control(kind: str, eta: float, temperature: float) -> None:
    torch.manual_seed(0)
    toy = problem(kind, "nonlinear")
    rebar = REBAR(temperature=temperature, eta=eta).double()
    relax = with_random_network(RELAX(samples=2, temperature=temperature, eta=eta).double(), toy)
    for estimator in (rebar, relax):
        off = [worst(d, e) for d, e in zip(toy.draws(estimator), toy.exact(), strict=True)]
        assert max(off) < THRESHOLD


@discrete
def test_a_zero_control_is_reinforce(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same samples, which RELAX takes from perturbed logits."""
    monkeypatch.setattr(
        "vi_lab.estimators.reinforce.sample", lambda q, samples: vertex(q, perturbed_logits(q, samples))
    )
    toy = problem(kind, "nonlinear")
    draws = []
    for estimator in (RELAX(samples=3, eta=0.0).double(), Reinforce(3)):
        if isinstance(estimator, RELAX):  # its network starts at zero
            estimator.materialize(posterior(kind, toy.phi[None]), toy.phi[None])
        torch.manual_seed(0)
        draws.append(toy.draws(estimator, rows=50))
    for mine, reinforce in zip(*draws, strict=True):
        torch.testing.assert_close(mine, reinforce)


@discrete
def test_control_loss_is_the_mean_squared_gradient_and_so_is_its_derivative(kind: str) -> None:
    """Against central differences over every parameter of the estimator, with common random numbers."""
    torch.manual_seed(0)
    toy = problem(kind, "nonlinear")
    estimator = with_random_network(RELAX(samples=2, temperature=0.7, eta=0.4, hidden=2).double(), toy)
    phi = toy.phi.expand(200, *toy.phi.shape).clone().requires_grad_()
    theta = toy.theta.expand(200, -1)

    def estimate() -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        result = estimator(posterior(kind, phi), lambda z: toy.f(z.flatten(2), theta))
        (gradient,) = torch.autograd.grad(result.loss.sum(), phi)
        return gradient.square().flatten(1).sum(-1).mean(), result.control_loss

    squared, control_loss = estimate()
    torch.testing.assert_close(control_loss.detach(), squared)
    parameters = list(estimator.parameters())
    step = 1e-5
    for parameter, slope in zip(parameters, torch.autograd.grad(control_loss, parameters), strict=True):
        for i in range(parameter.numel()):
            entry = parameter.data.view(-1)
            entry[i] += step
            above = estimate()[0]
            entry[i] -= 2 * step
            below = estimate()[0]
            entry[i] += step
            torch.testing.assert_close(slope.view(-1)[i], (above - below) / (2 * step), rtol=1e-5, atol=1e-6)


@discrete
@pytest.mark.parametrize("cls", [REBAR, RELAX])
def test_learning_the_control_lowers_the_variance(kind: str, cls: type[REBAR]) -> None:
    torch.manual_seed(0)
    toy = problem(kind, "quadratic")
    estimator = cls(temperature=2.0, eta=0.1).double()
    q = posterior(kind, toy.phi.expand(200, *toy.phi.shape))
    estimator.materialize(q, toy.phi)
    before = variance(toy, estimator)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        estimator(q, lambda z: toy.f(z.flatten(2), toy.theta)).control_loss.backward()
        optimizer.step()
    assert variance(toy, estimator) < 0.7 * before
    assert worst(toy.draws(estimator)[1], toy.exact()[1]) < THRESHOLD


def test_rebar_with_frozen_control_has_no_control_loss() -> None:
    estimator = REBAR().double().requires_grad_(False)
    toy = problem("bernoulli", "linear")
    estimate = estimator(posterior("bernoulli", toy.phi[None]), lambda z: toy.f(z, toy.theta))
    assert estimate.control_loss.item() == 0


# --- sums and expansions -------------------------------------------------------------------------------------------


@discrete
def test_local_expectation_is_exact_for_one_variable(kind: str) -> None:
    toy = one_variable(kind)
    gradient = toy.draws(LocalExpectation(), rows=20)[1]
    torch.testing.assert_close(gradient, toy.exact()[1].expand_as(gradient))


@discrete
def test_chunks_change_nothing(kind: str) -> None:
    toy = problem(kind, "nonlinear")
    draws = []
    for chunk in (1, 2, 10):
        torch.manual_seed(0)
        draws.append(toy.draws(LocalExpectation(samples=2, chunk=chunk), rows=20)[1])
    torch.testing.assert_close(draws[0], draws[2])
    torch.testing.assert_close(draws[1], draws[2])


@discrete
def test_muprop_has_no_noise_for_linear_costs(kind: str) -> None:
    toy = problem(kind, "linear")
    gradient = toy.draws(MuProp(), rows=20)[1]
    torch.testing.assert_close(gradient, toy.exact()[1].expand_as(gradient))


def test_rao_blackwell_reaches_from_reinforce_to_the_exact_gradient() -> None:
    toy = one_variable("categorical", classes=5)
    exact = toy.exact()[1]
    spread = []
    for top_k in (1, 2, 3):
        estimator = RaoBlackwellReinforce(top_k=top_k)
        torch.manual_seed(0)
        assert worst(toy.draws(estimator)[1], exact) < THRESHOLD
        spread.append(variance(toy, estimator))
    assert variance(toy, Reinforce()) > spread[0] > spread[1] > spread[2] > 0
    for top_k in (4, 5, 9):  # with all but one summed, the draw of the rest is certain
        gradient = toy.draws(RaoBlackwellReinforce(top_k=top_k), rows=20)[1]
        torch.testing.assert_close(gradient, exact.expand_as(gradient))


def test_rao_blackwell_with_all_categories_is_local_expectation() -> None:
    """Both sum each variable given the others' samples, so their variances agree, and their draws in law."""
    toy = problem("categorical", "nonlinear")
    everything = variance(toy, RaoBlackwellReinforce(top_k=3), rows=40_000)
    assert everything == pytest.approx(variance(toy, LocalExpectation(), rows=40_000), rel=0.05)
    assert everything < 0.5 * variance(toy, RaoBlackwellReinforce(top_k=1))


# --- NVIL ----------------------------------------------------------------------------------------------------------


def costs_that_depend_on_the_input(rows: int = 400) -> tuple[Problem, Tensor]:
    """A cost of 20 nats more for one half of the inputs than for the other."""
    toy = problem("categorical", "nonlinear")
    x = (torch.arange(rows) % 2).to(torch.float64)[:, None]
    return toy._replace(f=lambda z, theta: toy.f(z, theta) + 20 * x[:, 0]), x


def nvil_gradient(estimator: Reinforce, toy: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient (B, L, C) and the control loss."""
    phi = toy.phi.expand(len(x), *toy.phi.shape).clone().requires_grad_()
    estimate = estimator(posterior(toy.kind, phi), lambda z: toy.f(z.flatten(2), toy.theta), x)
    return torch.autograd.grad(estimate.loss.sum(), phi)[0], estimate.control_loss


def test_nvil_learns_what_the_input_says_of_the_cost() -> None:
    torch.manual_seed(0)
    toy, x = costs_that_depend_on_the_input()
    nvil = Reinforce(1, InputDependent(hidden=20)).double()
    nvil_gradient(nvil, toy, x)
    optimizer = torch.optim.Adam(nvil.parameters(), lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        nvil_gradient(nvil, toy, x)[1].backward()
        optimizer.step()
    learned = nvil_gradient(nvil, toy, x)[0].var(0).sum()
    plain = nvil_gradient(Reinforce(1), toy, x)[0].var(0).sum()
    assert learned < plain / 20


def test_nvil_variance_normalization_divides_by_the_moving_deviation() -> None:
    """One number for the whole batch, 1 at the first step and never below."""
    gradients = {}
    toy, x = costs_that_depend_on_the_input()
    for normalize in (False, True):
        torch.manual_seed(0)
        nvil = Reinforce(1, InputDependent(normalize_variance=normalize)).double()
        gradients[normalize] = [nvil_gradient(nvil, toy, x)[0] for _ in range(2)]
    torch.testing.assert_close(gradients[True][0], gradients[False][0])
    ratio = gradients[False][1] / gradients[True][1]
    assert ratio.min() > 2
    torch.testing.assert_close(ratio, ratio[:1, :1, :1].expand_as(ratio))


def test_nvil_needs_the_input() -> None:
    toy = problem("bernoulli", "linear")
    with pytest.raises(ValueError, match="needs the input x as context"):
        Reinforce(1, InputDependent()).double()(posterior("bernoulli", toy.phi[None]), lambda z: z.sum(-1))


# --- in a model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nvil", "relax", "rebar"])
def test_own_parameters_are_sized_before_the_optimizer_sees_them(name: str) -> None:
    """A built model has no lazy layer left, leaves the networks' first weights alone, and learns its control."""
    overrides = ["latent=4x8", "network=mlp_small", "objective.kl=monte_carlo"]
    _, model = build(compose_job("train", [f"estimator={name}", *overrides]))
    _, plain = build(compose_job("train", ["estimator=reinforce", *overrides]))
    assert not any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())
    for mine, other in zip(model.encoder.parameters(), plain.encoder.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert all(not b.any() for b in model.estimator.buffers()), "sizing has updated the moving averages"
    optimizer = model.configure_optimizers()
    before = [p.clone() for p in model.parameters()]
    x = torch.rand(5, 1, 28, 28).round()
    terms = model.objective(model.posterior(x), model.latent.prior(), model.nats(x), model.estimator, x)
    (terms.loss.mean() + terms.control_loss).backward()
    optimizer.step()
    for (key, value), old in zip(model.named_parameters(), before, strict=True):
        # a network that starts at zero passes no gradient on to its first layer
        assert not torch.equal(value, old) or (name == "relax" and "estimator.network.0" in key), key


def test_errors_say_what_was_wanted() -> None:
    gaussian = posterior("gaussian", torch.zeros(2, 2, 3))
    for estimator in (MuProp(), LocalExpectation(), RaoBlackwellReinforce(), REBAR(), RELAX()):
        with pytest.raises(TypeError, match=r"needs a .* posterior"):
            estimator(gaussian, lambda z: z.sum(-1))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        REBAR(temperature=0)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        RaoBlackwellReinforce(top_k=0)
