"""Identities of the straight-through family, in float64; thresholds and false alarms as in `toy.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from tests.estimators.toy import COORDINATES, FAMILY_ERROR, PHI, ROWS, THRESHOLD, make, posterior, problem, worst
from vi_lab import distributions
from vi_lab.estimators import (
    MVE,
    Cost,
    Estimate,
    GappedStraightThrough,
    GradientEstimator,
    GumbelRao,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    ReinMaxRelaxed,
    StraightThrough,
    StraightThroughGumbelSoftmax,
)
from vi_lab.estimators.mve import minimum_variance
from vi_lab.estimators.reinmax import heun
from vi_lab.estimators.surrogates import differentiable, straight_through, with_gradient_of

KS_THRESHOLD = math.sqrt(-math.log(FAMILY_ERROR / COORDINATES / 2) / 2)  # of sqrt(n) times the largest distance, 3.1
DISCRETE = ["categorical", "bernoulli"]
kinds = pytest.mark.parametrize("kind", DISCRETE)


def observe(estimator: GradientEstimator, kind: str, rows: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """z, g = df/dz at z and the gradient, each (rows, *event), of one backward pass on the nonlinear problem."""
    toy, seen = problem(kind, "nonlinear"), []
    theta = toy.theta.expand(rows, -1)

    def cost(z: Tensor) -> Tensor:
        seen.append(z.detach().requires_grad_())
        return toy.f(z.flatten(2), theta)

    phi = toy.phi.expand(rows, *toy.phi.shape).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(estimator.double()(posterior(kind, phi), cost).loss.sum(), phi)
    (slope,) = torch.autograd.grad(toy.f(seen[0].flatten(2), theta).sum(), seen[0])
    return seen[0].detach()[0], slope[0], gradient


def jacobian(p: Tensor) -> Tensor:
    """diag(p) - p p^T."""
    return p.diag_embed() - p.unsqueeze(-1) * p.unsqueeze(-2)


def ks(x: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """sqrt(n) times the Kolmogorov-Smirnov distance of x (n,) from `cdf`."""
    n, f = len(x), cdf(x.sort().values)
    grid = torch.arange(n + 1, dtype=x.dtype) / n
    return n**0.5 * max((f - grid[:-1]).max().item(), (grid[1:] - f).max().item())


def gumbel_cdf(x: Tensor) -> Tensor:
    return (-(-x).exp()).exp()


# --- noise given the sample ----------------------------------------------------------------------------------------


def test_conditional_gumbels() -> None:
    """They select the sample, always; over samples of q they are independent Gumbels."""
    torch.manual_seed(0)
    q = posterior("categorical", PHI["categorical"][None])
    z = distributions.sample(q, ROWS)
    perturbed = distributions.conditional_perturbed_logits(q, q.base_dist.logits, z, 1)[0]
    assert torch.equal(distributions.vertex(q, perturbed), z)
    gumbels = (perturbed - q.base_dist.logits).flatten(1)  # (ROWS, L * C)
    assert all(ks(column, gumbel_cdf) < KS_THRESHOLD for column in gumbels.T)
    uniforms = gumbel_cdf(gumbels) - 0.5
    first, second = torch.triu_indices(uniforms.shape[1], uniforms.shape[1], 1)
    products = uniforms[:, first] * uniforms[:, second]
    assert worst(products, torch.zeros_like(products[0])) < THRESHOLD


def test_conditional_logistics() -> None:
    torch.manual_seed(0)
    q = posterior("bernoulli", PHI["bernoulli"][None])
    z = distributions.sample(q, ROWS)
    perturbed = distributions.conditional_perturbed_logits(q, q.base_dist.logits, z, 1)[0]
    assert torch.equal(distributions.vertex(q, perturbed), z)
    noise = (perturbed - q.base_dist.logits).flatten(1)
    assert all(ks(column, torch.sigmoid) < KS_THRESHOLD for column in noise.T)


@kinds
def test_noise_that_ignores_the_sample_would_be_noticed(kind: str) -> None:
    torch.manual_seed(0)
    q = posterior(kind, PHI[kind][None])
    logits = q.base_dist.logits
    z = distributions.sample(posterior(kind, -PHI[kind][None]), ROWS)  # of another q
    noise = (distributions.conditional_perturbed_logits(q, logits, z, 1)[0] - logits).flatten(1)
    cdf = gumbel_cdf if kind == "categorical" else torch.sigmoid
    assert max(ks(column, cdf) for column in noise.T) > KS_THRESHOLD


# --- Gumbel-Rao ----------------------------------------------------------------------------------------------------


@kinds
def test_gumbel_rao_has_the_mean_of_straight_through_gumbel_softmax_and_less_variance(kind: str) -> None:
    torch.manual_seed(0)
    toy = problem(kind, "nonlinear")
    plain = toy.draws(StraightThroughGumbelSoftmax(temperature=0.5).double())[1]
    one, ten = (toy.draws(GumbelRao(temperature=0.5, inner_samples=k).double())[1] for k in (1, 10))
    assert worst(one - plain, torch.zeros_like(plain[0])) < THRESHOLD
    assert worst(ten - plain, torch.zeros_like(plain[0])) < THRESHOLD
    assert one.var(0).sum().item() == pytest.approx(plain.var(0).sum().item(), rel=0.05)
    assert ten.var(0).sum() < 0.8 * one.var(0).sum()


def test_a_gradient_through_the_conditional_noise_would_have_another_mean() -> None:
    """The reading of the Gumbel-Rao paper that `gumbel_rao.py` does not follow."""

    class Through(GumbelRao):
        def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
            z = distributions.sample(q, self.samples)
            sign = 2 * z - 1
            noise = distributions.logistic_like(z, self.inner_samples)
            perturbed = sign * F.softplus(noise - F.logsigmoid(-sign * q.base_dist.logits))
            return differentiable(cost(straight_through(z, (perturbed / self.temperature).sigmoid().mean(0))))

    torch.manual_seed(0)
    toy = problem("bernoulli", "nonlinear")
    plain = toy.draws(StraightThroughGumbelSoftmax().double())[1]
    assert worst(toy.draws(Through().double())[1] - plain, torch.zeros_like(plain[0])) > 2 * THRESHOLD


@kinds
def test_gumbel_rao_tends_to_reinmax_as_the_temperature_falls(kind: str) -> None:
    """Sample for sample, with the noise averaged out."""

    def gradient(estimator: GradientEstimator) -> Tensor:
        torch.manual_seed(0)  # all draw z first
        return observe(estimator, kind, rows=3)[2]

    reinmax = gradient(ReinMax())
    distance = (gradient(GumbelRao(temperature=0.01, inner_samples=400_000)) - reinmax).norm() / reinmax.norm()
    assert distance < 0.05
    assert (gradient(StraightThrough()) - reinmax).norm() / reinmax.norm() > 0.1


# --- gapped straight-through ---------------------------------------------------------------------------------------


@kinds
def test_gapped_straight_through_samples_q(kind: str) -> None:
    torch.manual_seed(0)
    z, _, _ = observe(GappedStraightThrough(), kind, ROWS)
    mean = posterior(kind, PHI[kind][None]).mean[0]
    assert worst(z, mean) < THRESHOLD
    assert worst(z, mean.roll(1, -1)) > THRESHOLD


@kinds
@pytest.mark.parametrize(("temperature", "gap"), [(1.0, 1.0), (0.5, 0.1), (2.0, 3.0)])
def test_gapped_straight_through_is_the_papers_formula(kind: str, temperature: float, gap: float) -> None:
    """softmax((logits + m1 - m2) / tau); a Bernoulli is its case of two classes with logits l and 0."""
    torch.manual_seed(0)
    z, slope, gradient = observe(GappedStraightThrough(1, temperature, gap), kind)
    logits = PHI[kind].expand_as(z)
    if kind == "bernoulli":
        z, logits = torch.stack([z, 1 - z], -1), torch.stack([logits, torch.zeros_like(logits)], -1)
        slope = torch.stack([slope, torch.zeros_like(slope)], -1)
    top = logits.amax(-1, keepdim=True)
    m1 = (top - logits) * z
    m2 = (logits - top + gap).relu() * (1 - z)
    y = ((logits + m1 - m2) / temperature).softmax(-1)
    expected = (jacobian(y) @ slope.unsqueeze(-1)).squeeze(-1) / temperature
    torch.testing.assert_close(gradient, expected[..., 0] if kind == "bernoulli" else expected)


# --- ReinMax and its descendants -----------------------------------------------------------------------------------


@kinds
def test_reinmax_is_the_mean_of_straight_through_and_a_linearised_score_function(kind: str) -> None:
    """Sample for sample at temperature 1: (J(p) g + (z - p) (z - p)^T g) / 2."""
    torch.manual_seed(0)
    z, g, gradient = observe(ReinMax(), kind)
    p = posterior(kind, PHI[kind][None]).mean.expand_as(z)
    if kind == "bernoulli":
        expected = (p * (1 - p) + (z - p).square()) * g / 2
    else:
        expected = (jacobian(p) @ g.unsqueeze(-1)).squeeze(-1) / 2 + (z - p) * ((z - p) * g).sum(-1, True) / 2
    torch.testing.assert_close(gradient, expected)


@kinds
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_reinmax_at_another_temperature_is_not_exact_for_quadratic_costs(kind: str, temperature: float) -> None:
    torch.manual_seed(0)
    toy = problem(kind, "quadratic")
    assert worst(toy.draws(ReinMax(temperature=temperature).double())[1], toy.exact()[1]) > 2 * THRESHOLD


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_reinmax_matches_its_package(temperature: float) -> None:
    """Sample for sample: the package draws z, and both push the same slopes through it."""
    package = pytest.importorskip("reinmax", reason="compares with the PyPI package reinmax, which is not installed")
    torch.manual_seed(0)
    logits = torch.randn(50, 4, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(50, 4, 5, dtype=torch.float64)
    z, _ = package.reinmax(logits, temperature)
    (theirs,) = torch.autograd.grad((z * g).sum(), logits)
    ours = heun(posterior("categorical", logits), z.detach(), temperature)
    torch.testing.assert_close(torch.autograd.grad((ours * g).sum(), logits)[0], theirs)


@kinds
def test_reinmax_rao_has_less_variance_and_another_mean_than_reinmax(kind: str) -> None:
    torch.manual_seed(0)
    toy = problem(kind, "quadratic")
    plain, rao = (toy.draws(e.double())[1] for e in (ReinMax(), ReinMaxRao()))
    assert rao.var(0).sum() < 0.6 * plain.var(0).sum()
    assert worst(rao - plain, torch.zeros_like(plain[0])) > 2 * THRESHOLD


@kinds
def test_reinmax_rao_is_biased_even_for_linear_costs(kind: str) -> None:
    """At temperature 1; near 0 half of the gradient is left."""
    torch.manual_seed(0)
    toy = problem(kind, "linear")
    exact = toy.exact()[1]
    assert worst(toy.draws(ReinMaxRao().double())[1], exact) > 2 * THRESHOLD
    cold = toy.draws(ReinMaxRao(temperature=0.01, inner_samples=20).double())[1]
    assert ((cold.mean(0) * exact).sum() / exact.square().sum()).item() == pytest.approx(0.5, abs=0.05)


@kinds
def test_reinmax_cv_is_exact_for_quadratic_costs_at_every_temperature_and_has_more_variance(kind: str) -> None:
    torch.manual_seed(0)
    toy = problem(kind, "quadratic")
    plain = toy.draws(ReinMax().double())[1]
    cv = toy.draws(ReinMaxCV(temperature=0.5, eta=1.0).double())[1]
    assert worst(cv, toy.exact()[1]) < THRESHOLD
    assert cv.var(0).sum() > 1.1 * plain.var(0).sum()


@kinds
def test_reinmax_cv_with_eta_0_is_reinmax(kind: str) -> None:
    results = []
    for estimator in (ReinMaxCV(eta=0.0), ReinMax()):
        torch.manual_seed(0)  # both draw z first
        results.append(observe(estimator, kind))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@kinds
def test_reinmax_cv_would_be_biased_with_the_noise_that_gave_the_sample(kind: str) -> None:
    """Its conditional law given z is that of q, not of the midpoint."""

    class Forward(ReinMaxCV):
        def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
            noise = distributions.standard_noise(q, self.samples)
            z = distributions.vertex(q, q.base_dist.logits + noise)
            middle = distributions.midpoint_logits(q, z)
            pair = torch.stack([distributions.conditional_perturbed_logits(q, middle, z, 1)[0], middle + noise])
            rao, single = distributions.probabilities(q, with_gradient_of(pair, q.base_dist.logits) / self.temperature)
            return differentiable(cost(straight_through(z, heun(q, z) + self.eta * (rao - single))))

    torch.manual_seed(0)
    toy = problem(kind, "quadratic")
    assert worst(toy.draws(Forward(eta=1.0).double())[1], toy.exact()[1]) > 2 * THRESHOLD


@kinds
def test_reinmax_with_cold_relaxations_is_reinmax(kind: str) -> None:
    results = []
    for estimator in (ReinMaxRelaxed(temperature=1e-6), ReinMax()):
        torch.manual_seed(0)  # both draw z first
        results.append(observe(estimator, kind))
    cold, plain = results
    assert torch.equal(cold[0], plain[0])
    torch.testing.assert_close(cold[2].mean(0), plain[2].mean(0), atol=1e-3, rtol=0)


@kinds
def test_reinmax_with_relaxations_is_biased_even_for_linear_costs(kind: str) -> None:
    torch.manual_seed(0)
    toy = problem(kind, "linear")
    assert worst(toy.draws(ReinMaxRelaxed().double())[1], toy.exact()[1]) > 2 * THRESHOLD


def test_zgr_is_reinmax_at_temperature_1() -> None:
    """The mean of straight-through and of (z - p) log p_z (Shekhovtsov 2021, arXiv 2110.05456), sample for sample."""
    torch.manual_seed(0)
    logits = torch.randn(50, 4, 5, dtype=torch.float64, requires_grad=True)
    q, g = posterior("categorical", logits), torch.randn(50, 4, 5, dtype=torch.float64)
    z = distributions.sample(q, 1)[0]
    p, log_p_z = logits.softmax(-1), (z * logits.log_softmax(-1)).sum(-1, keepdim=True)
    zgr = (p + (z - p.detach()) * log_p_z) / 2
    expected, ours = (torch.autograd.grad((x * g).sum(), logits)[0] for x in (zgr, heun(q, z)))
    torch.testing.assert_close(ours, expected)


# --- MVE -----------------------------------------------------------------------------------------------------------


def jacobians_of_mve(p: Tensor, temperature: float, embedding: str = "one_hot") -> Tensor:
    """S_z for each state z of one variable: (K states, K rows, K logits)."""
    states = torch.eye(len(p), dtype=p.dtype)[:, None, None]  # (S, 1, 1, K)

    def soft(logits: Tensor) -> Tensor:
        return minimum_variance(posterior("categorical", logits[None, None]), states, temperature, embedding)[:, 0, 0]

    return torch.autograd.functional.jacobian(soft, p.log())


@pytest.mark.parametrize("temperature", [1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_mve_minimizes_what_it_says(classes: int, temperature: float) -> None:
    """Held against the quadratic program, solved as one dense system for each column, with its constraint."""
    torch.manual_seed(0)
    p = torch.randn(classes, dtype=torch.float64).softmax(-1)
    j, n = jacobian(p), classes**2
    quadratic, constraint = torch.zeros(n, n, dtype=p.dtype), torch.zeros(classes, n, dtype=p.dtype)
    linear = torch.zeros(n, classes, dtype=p.dtype)  # of each column
    for z in range(classes):
        for i in range(classes):
            here, there = z * classes + i, i * classes + z  # where S_zi and S_iz stand
            quadratic[here, here] += 2 * temperature * p[z]
            constraint[i, here] = p[z]
            row = torch.zeros(n, dtype=p.dtype)
            row[here] += p[z]
            row[there] += p[i]
            quadratic += torch.outer(row, row)
            if z == i:
                linear += torch.outer(row, j[i])
    kkt = torch.cat(
        [torch.cat([quadratic, constraint.T], 1), torch.cat([constraint, torch.zeros(classes, classes)], 1)]
    )
    expected = torch.linalg.lstsq(kkt, torch.cat([linear, j]), driver="gelsd").solution[:n]
    ours = jacobians_of_mve(p, temperature).reshape(n, classes)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_mve_is_straight_through_where_hot_and_exact_for_quadratic_costs_where_cold() -> None:
    torch.manual_seed(0)
    p = torch.randn(6, dtype=torch.float64).softmax(-1)
    hot, cold = jacobians_of_mve(p, 1e6), jacobians_of_mve(p, 1e-6)
    torch.testing.assert_close(hot, jacobian(p).expand_as(hot), atol=1e-5, rtol=0)
    root = torch.randn(6, 6, dtype=torch.float64)
    square, slope = root + root.T, torch.randn(6, dtype=torch.float64)
    exact = jacobian(p) @ (square.diagonal() / 2 + slope)  # of z' Q z / 2 + b' z
    ours, st = (torch.einsum("z,zik,iz->k", p, s, square + slope[:, None]) for s in (cold, hot))
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=0)
    assert (st - exact).norm() > 0.1 * exact.norm()
    z = torch.eye(6, dtype=torch.float64)
    reinmax = (jacobian(p) + torch.einsum("zi,zk->zik", z - p, z - p)) / 2
    assert (p @ cold.square().sum((-1, -2))) < 0.999 * (p @ reinmax.square().sum((-1, -2)))


@pytest.mark.parametrize("classes", [2, 5])
def test_mve_of_numbers_minimizes_what_it_says(classes: int) -> None:
    torch.manual_seed(0)
    p = torch.randn(classes, dtype=torch.float64).softmax(-1)
    phi = torch.arange(classes, dtype=torch.float64)
    mean = p @ phi
    for temperature in (1e-6, 0.5, 1e6):
        s = torch.einsum("zik,i->zk", jacobians_of_mve(p, temperature, "integer"), phi)  # by state, of x's gradient
        torch.testing.assert_close(p @ s, jacobian(p) @ phi)  # costs linear in x are exact
        variance, target = p @ (phi - mean).square(), phi * (phi - 2 * mean) / 2

        def objective(slope: Tensor, v: Tensor = variance, t: Tensor = target, tau: float = temperature) -> Tensor:
            return v * slope.square().sum() + 2 / tau * (v * slope - t).square().sum()

        slope = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        # quadratic: one step of Newton from anywhere is the minimum
        gradient = torch.autograd.grad(objective(slope), slope)[0]
        best = -torch.linalg.solve(torch.autograd.functional.hessian(objective, slope.detach()), gradient)
        expected = (phi + (phi - mean)[:, None] * best) @ jacobian(p)
        torch.testing.assert_close(s, expected)
    cold = torch.einsum("zik,i->zk", jacobians_of_mve(p, 1e-6, "integer"), phi)
    torch.testing.assert_close((p * phi) @ cold, jacobian(p) @ phi.square() / 2, atol=1e-4, rtol=0)


def test_mve_of_a_bernoulli_is_that_of_a_number_of_two_classes() -> None:
    logits = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[[0.0]], [[1.0]]], dtype=torch.float64)
    p = logits.detach().sigmoid()
    for temperature in (0.1, 1.0):
        soft = minimum_variance(posterior("bernoulli", logits[None]), z, temperature)
        ours = torch.stack([torch.autograd.grad(s, logits, retain_graph=True)[0] for s in soft.flatten()])
        both = jacobians_of_mve(torch.cat([1 - p, p]), temperature, "integer")
        torch.testing.assert_close(ours[:, 0], both[:, 1, 1])


def test_mve_in_float32_is_that_in_float64() -> None:
    """Where the system is nearly singular: 64 classes, some of them next to impossible, at the lowest temperature."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(64, dtype=torch.float64)
    low, high = (jacobians_of_mve(logits.softmax(-1).to(dtype), 1e-6) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(low.double(), high, atol=1e-3, rtol=1e-3)


# --- decoupled temperatures ----------------------------------------------------------------------------------------


@kinds
def test_the_backward_temperature_leaves_the_samples_alone(kind: str) -> None:
    def run(**options: float) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        return observe(StraightThroughGumbelSoftmax(**options), kind)

    coupled, same, decoupled = run(), run(backward_temperature=1.0), run(backward_temperature=2.0)
    assert all(torch.equal(a, b) for a, b in zip(coupled, same, strict=True))
    assert torch.equal(decoupled[0], coupled[0])
    torch.manual_seed(0)
    q = posterior(kind, PHI[kind].expand_as(decoupled[0]))
    y = distributions.probabilities(q, q.base_dist.logits / 2 + distributions.standard_noise(q, 1))[0]
    g = decoupled[1]
    expected = y * (1 - y) * g if kind == "bernoulli" else (jacobian(y) @ g.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(decoupled[2], expected / 2)


def test_the_backward_temperature_from_the_config() -> None:
    assert make("st_gumbel_softmax").backward_temperature is None
    assert make("st_gumbel_softmax", "estimator.backward_temperature=2").backward_temperature.item() == 2


# --- limits and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        StraightThroughGumbelSoftmax,
        GappedStraightThrough,
        GumbelRao,
        ReinMax,
        ReinMaxRao,
        ReinMaxCV,
        ReinMaxRelaxed,
        MVE,
    ],
)
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    ("kind", "phi"),
    [
        ("categorical", torch.tensor([[1e4, -1e4, 0.0], [0.3, 0.1, 0.2]])),
        ("categorical", torch.zeros(2, 1)),
        ("bernoulli", torch.tensor([1e4, -1e4, 0.0])),
    ],
)
def test_gradients_are_finite(estimator: type, temperature: float, kind: str, phi: Tensor) -> None:
    torch.manual_seed(0)
    phi = phi.expand(500, *phi.shape).clone().requires_grad_()
    loss = estimator(temperature=temperature)(posterior(kind, phi), lambda z: z.flatten(2).square().sum(-1)).loss
    assert torch.autograd.grad(loss.sum(), phi)[0].isfinite().all()


@kinds
def test_the_midpoint_is_half_way(kind: str) -> None:
    q = posterior(kind, PHI[kind][None])
    z = distributions.sample(q, 20)
    middle = distributions.midpoint_logits(q, z)
    torch.testing.assert_close(distributions.probabilities(q, middle), (q.mean + z) / 2)
    if kind == "categorical":
        torch.testing.assert_close(middle.logsumexp(-1), torch.zeros_like(middle[..., 0]))


def test_errors_say_what_was_wanted() -> None:
    with pytest.raises(ValueError, match="gap must be at least 0, got -1"):
        GappedStraightThrough(gap=-1)
    with pytest.raises(ValueError, match="inner_samples must be at least 1, got 0"):
        GumbelRao(inner_samples=0)
    with pytest.raises(ValueError, match="backward_temperature must be positive, got 0"):
        StraightThroughGumbelSoftmax(backward_temperature=0)
    gaussian = posterior("gaussian", torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="embedding must be one of one_hot, integer; got 'scalar'"):
        MVE(embedding="scalar")
    for estimator in (GappedStraightThrough, GumbelRao, ReinMax, ReinMaxRao, ReinMaxCV, ReinMaxRelaxed, MVE):
        with pytest.raises(TypeError, match="discrete posterior"):
            estimator()(gaussian, lambda z: z.sum(-1))


def test_straight_through_gumbel_softmax_has_the_mean_of_pyros() -> None:
    """Pyro draws its noise otherwise, so the two gradients are held against each other in mean."""
    pyro = pytest.importorskip("pyro.distributions", reason="pyro-ppl is not installed")
    torch.manual_seed(0)
    toy = problem("categorical", "nonlinear")
    ours = toy.draws(StraightThroughGumbelSoftmax(temperature=0.7).double())[1]
    phi = toy.phi.expand(ROWS, *toy.phi.shape).clone().requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64)
    z = pyro.RelaxedOneHotCategoricalStraightThrough(temperature, logits=phi).rsample()
    (theirs,) = torch.autograd.grad(toy.f(z.flatten(1)[None], toy.theta.expand(ROWS, -1)).sum(), phi)
    standard = ((ours.var(0) + theirs.var(0)) / ROWS).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() / standard).max() < THRESHOLD
