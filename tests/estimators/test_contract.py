"""One contract, held over every file in configs/estimator/ and every latent that the file's family names.

The family-wise false-alarm rate of the unbiasedness tests is 1e-3; see `toy.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class
from torch.distributions import Distribution, Independent, OneHotCategorical

from tests.estimators.toy import PAIRS, PHI, ROWS, THRESHOLD, latents_of, make, make_config, posterior, problem, worst
from tests.support import ESTIMATORS
from vi_lab import distributions, estimators, noise
from vi_lab.estimators import (
    RLOO,
    Cost,
    Estimate,
    Exact,
    GradientEstimator,
    GumbelSoftmax,
    Reinforce,
    StraightThrough,
    StraightThroughGumbelSoftmax,
)
from vi_lab.estimators.baselines import LeaveOneOut, MovingAverage
from vi_lab.estimators.surrogates import importance_weighted_bound
from vi_lab.latents import VQ, Bernoulli, Categorical, Gaussian
from vi_lab.schema import CONFIG_DIR


def exact_for(name: str) -> str | None:
    return get_class(yaml.safe_load((CONFIG_DIR / "estimator" / f"{name}.yaml").read_text())["_target_"]).exact_for


pairs = pytest.mark.parametrize(("name", "kind"), PAIRS)


def test_the_folder_holds_the_estimators_that_are_promised() -> None:
    promised = {
        "gaussian",
        "gumbel_softmax",
        "st_gumbel_softmax",
        "straight_through",
        "reinforce",
        "rloo",
        "exact",
    }
    assert promised <= set(ESTIMATORS)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_composed_config_names_the_latents_that_the_contract_goes_through(name: str) -> None:
    assert make_config(name)["compatible_latents"] == latents_of(name)


def test_every_public_class_is_exported() -> None:
    public = {"Cost"}
    for module in pkgutil.iter_modules(estimators.__path__):
        for name, value in vars(importlib.import_module(f"vi_lab.estimators.{module.name}")).items():
            if isinstance(value, type) and value.__module__.endswith(f".{module.name}") and not name.startswith("_"):
                public.add(name)
                assert getattr(estimators, name, None) is value, f"export {name} in vi_lab/estimators/__init__.py"
    # as ruff sorts: names in capitals first
    assert list(estimators.__all__) == sorted(public, key=lambda name: (not name.isupper(), name))


@pairs
def test_shapes_and_value(name: str, kind: str) -> None:
    torch.manual_seed(0)
    toy, estimator = problem(kind, "nonlinear"), make(name)
    phi = toy.phi.expand(5, *toy.phi.shape)
    q = posterior(kind, phi)
    estimate = estimator(q, toy.cost(estimator, q, toy.theta.expand(5, -1)), phi.flatten(1))
    assert estimate.loss.shape == (5,)
    assert estimate.control_loss.shape == ()
    assert estimate.cost.shape[1:] == (5,)
    assert not estimate.cost.requires_grad
    value = importance_weighted_bound if estimator.multi_sample else lambda cost: cost.mean(0)
    torch.testing.assert_close(estimate.loss, value(estimate.cost))
    assert estimate.loss.dtype == torch.float64


@pairs
def test_gradient_reaches_posterior_and_decoder(name: str, kind: str) -> None:
    torch.manual_seed(0)
    _, phi, theta = problem(kind, "nonlinear").draws(make(name), rows=50)
    for gradient in (phi, theta):
        assert gradient.isfinite().all()
        assert gradient.flatten(1).abs().sum(0).gt(0).all()


@pairs
def test_control_loss_touches_only_the_estimator(name: str, kind: str) -> None:
    torch.manual_seed(0)
    toy, estimator = problem(kind, "nonlinear"), make(name)
    phi = toy.phi.expand(5, *toy.phi.shape).clone().requires_grad_()
    theta = toy.theta.expand(5, -1).clone().requires_grad_()
    q = posterior(kind, phi)
    estimate = estimator(q, toy.cost(estimator, q, theta), phi.flatten(1).detach())
    own = [p for p in estimator.parameters() if p.requires_grad]
    if own:
        gradients = torch.autograd.grad(estimate.control_loss, [*own, phi, theta], allow_unused=True, retain_graph=True)
        assert all(g is not None for g in gradients[: len(own)])
        assert all(g is None or not g.any() for g in gradients[len(own) :])
        leaked = torch.autograd.grad(estimate.loss.sum(), own, allow_unused=True)
        assert all(g is None or not g.any() for g in leaked)
    else:
        assert estimate.control_loss.item() == 0


@pairs
def test_a_repeated_seed_repeats_the_result(name: str, kind: str) -> None:
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(problem(kind, "nonlinear").draws(make(name), rows=20))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    if not make(name).deterministic:
        assert not torch.equal(results[0][0], results[2][0])


@pairs
def test_bias(name: str, kind: str) -> None:
    """Unbiased estimators match the exact value and gradients; biased ones fail the very same test, so it has power."""
    torch.manual_seed(1)
    toy, estimator = problem(kind, "nonlinear"), make(name)
    toy.draws(estimator, rows=100)  # warms up baselines
    off = [worst(d, e) for d, e in zip(toy.draws(estimator), toy.exact(estimator), strict=True)]
    if estimator.unbiased:
        assert max(off) < THRESHOLD, f"value, posterior and decoder gradients are {off} standard errors off"
    else:
        assert off[1] > 2 * THRESHOLD, f"{name} says that it is biased, but is only {off[1]:.1f} standard errors off"
    if not estimator.relaxed:
        assert off[0] < THRESHOLD, "the value is not that of true samples"
        assert off[2] < THRESHOLD, "the decoder's gradient is not that of true samples"


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in PAIRS if exact_for(n)])
def test_biased_estimators_are_exact_where_theory_says(name: str, kind: str) -> None:
    torch.manual_seed(2)
    estimator = make(name)
    toy = problem(kind, estimator.exact_for)
    off = [worst(d, e) for d, e in zip(toy.draws(estimator), toy.exact(estimator), strict=True)]
    assert max(off) < THRESHOLD


EXTREMES = {
    "categorical": [torch.tensor([[[1e4, -1e4, 0.0]]]), torch.zeros(1, 2, 1)],  # certain; one class only
    "bernoulli": [torch.tensor([[1e4, -1e4, 0.0]])],
    "vq": [torch.tensor([[[1e4, -1e4], [0.0, 0.0]]])],
    "gaussian": [torch.tensor([[[1e4, -1e4], [-50.0, 10.0]]])],
}


@pytest.mark.parametrize("temperature", [None, 1e-3])
@pairs
def test_extreme_logits_and_temperatures(name: str, kind: str, temperature: float | None) -> None:
    """Finite values and gradients in float32."""
    for phi in EXTREMES[kind]:
        torch.manual_seed(0)
        estimator = make(name).float()
        if temperature is not None:
            if not hasattr(estimator, "temperature"):
                return
            estimator.temperature.fill_(temperature)
        phi = phi.expand(8, *phi.shape[1:]).clone().requires_grad_()
        cost = (lambda z: z.flatten(2).sum(-1).sin()) if kind == "gaussian" else quadratic
        estimate = estimator(posterior(kind, phi), cost, phi.flatten(1).detach())
        (gradient,) = torch.autograd.grad(estimate.loss.sum(), phi)
        assert estimate.loss.isfinite().all()
        assert gradient.isfinite().all()


def quadratic(z: torch.Tensor) -> torch.Tensor:
    return z.flatten(2).square().sum(-1) + z.flatten(2)[..., 0]


LATENTS = {"categorical": Categorical(4, 3), "bernoulli": Bernoulli(5), "gaussian": Gaussian(3), "vq": VQ(4, 3, 2)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pairs
def test_reduced_precision(name: str, kind: str, dtype: torch.dtype) -> None:
    """Under autocast the logits stay float32, and values and gradients are finite."""
    torch.manual_seed(0)
    latent = LATENTS[kind]
    encoder, decoder = torch.nn.Linear(6, latent.feature_size), torch.nn.Linear(latent.size, 7)
    x = torch.randn(5, 6)
    with torch.autocast("cpu", dtype):
        q = latent(encoder(x))
        estimator = make(name).float()
        estimate = estimator(q, lambda z: decoder(z.flatten(2)).float().square().sum(-1), x)
        loss = estimate.loss.mean() + estimate.control_loss
    loss.backward()
    assert distributions.sample(q, 1).dtype == torch.float32
    assert estimate.loss.isfinite().all()
    for weights in (encoder.weight, decoder.weight):
        assert weights.grad.isfinite().all()
        assert weights.grad.any()


# --- single methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_gumbel_softmax_is_unbiased_for_its_relaxed_objective(temperature: float) -> None:
    """One Bernoulli variable: the relaxed objective is a one-dimensional integral, taken by quadrature."""
    logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    z = ((logit + torch.logit(u)) / temperature).sigmoid()
    value = torch.sin(3 * z).mean()
    (exact,) = torch.autograd.grad(value, logit)
    torch.manual_seed(0)
    phi = torch.full((ROWS, 1), 0.4, dtype=torch.float64, requires_grad=True)
    estimator = GumbelSoftmax(temperature=temperature).double()
    estimate = estimator(posterior("bernoulli", phi), lambda z: torch.sin(3 * z).sum(-1))
    (gradient,) = torch.autograd.grad(estimate.loss.sum(), phi)
    assert worst(estimate.loss.detach(), value.detach()) < THRESHOLD
    assert worst(gradient[:, 0], exact) < THRESHOLD


def test_gumbel_softmax_bias_vanishes_with_the_temperature() -> None:
    toy = problem("categorical", "nonlinear")
    exact = toy.exact()[1]
    bias = []
    for temperature in (2.0, 0.5, 0.1):
        torch.manual_seed(0)
        gradient = toy.draws(GumbelSoftmax(temperature=temperature).double(), rows=4 * ROWS)[1]
        bias.append((gradient.mean(0) - exact).norm().item())
    assert bias[0] > 2 * bias[1] > 4 * bias[2]


def test_gumbel_softmax_matches_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise through `torch.nn.functional.gumbel_softmax` gives the same samples, relaxed and hard."""
    monkeypatch.setattr(noise, "exponential", lambda shape, like: torch.empty(shape, dtype=like.dtype).exponential_())
    logits = torch.randn(6, 4, 3)
    q = Independent(OneHotCategorical(logits=logits), 1)
    torch.manual_seed(0)
    expected = torch.nn.functional.gumbel_softmax(q.base_dist.logits[None], tau=0.7, dim=-1)
    torch.manual_seed(0)
    relaxed = distributions.relaxed_sample(q, 0.7, 1)
    torch.testing.assert_close(relaxed, expected)
    assert torch.equal(distributions.vertex(q, relaxed), distributions.one_hot_argmax(expected))


def test_straight_through_is_the_notes_formula() -> None:
    """Backward as if z were q's probabilities: df/dz at the sample times dp/dlogits, for f(z) = z W z."""
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4, dtype=torch.float64)
    seen = []

    def cost(z: torch.Tensor) -> torch.Tensor:
        seen.append(z.detach())
        return ((z @ weight) * z).sum((-1, -2))

    loss = StraightThrough()(Independent(OneHotCategorical(logits=logits), 1), cost).loss
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    z = seen[0][0, 0, 0]
    jacobian = torch.autograd.functional.jacobian(lambda v: v.softmax(-1), logits.detach()[0, 0])
    torch.testing.assert_close(gradient[0, 0], ((weight + weight.T) @ z) @ jacobian)
    assert set(z.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_straight_through_takes_a_backward_temperature(kind: str) -> None:
    """At 1 it is the method without, exact for linear costs; at 2 the backward pass alone is another, and biased."""
    toy = problem(kind, "linear")

    def draws(*overrides: str) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        return toy.draws(make("straight_through", *overrides))

    plain, one, two = (draws(*o) for o in ([], *([f"estimator.backward_temperature={t}"] for t in (1.0, 2.0))))
    for a, b in zip(plain, one, strict=True):
        torch.testing.assert_close(a, b)
    assert worst(one[1], toy.exact()[1]) < THRESHOLD
    assert torch.equal(plain[0], two[0])
    assert worst(two[1], toy.exact()[1]) > 2 * THRESHOLD
    z = toy.phi.clone().requires_grad_()
    soft = (z / 2).softmax(-1) if kind == "categorical" else (z / 2).sigmoid()
    slope = torch.autograd.functional.jacobian(lambda z: toy.f(z.flatten()[None, None], toy.theta[None])[0, 0], soft)
    (expected,) = torch.autograd.grad(soft, z, slope)  # a linear cost has one slope, so every draw is the same
    torch.testing.assert_close(two[1][0], expected)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_relax_is_unbiased_whatever_its_network_sees(kind: str) -> None:
    torch.manual_seed(1)
    toy, estimator = problem(kind, "nonlinear"), make("relax", "estimator.conditional=true")
    toy.draws(estimator, rows=100)  # gives the network its size
    assert estimator.network[0].in_features == 3 * toy.phi.numel()  # softmax(z / tau), z and x
    with torch.no_grad():
        for parameter in estimator.network.parameters():  # a control variate that matters
            parameter.normal_()
    assert max(worst(d, e) for d, e in zip(toy.draws(estimator), toy.exact(estimator), strict=True)) < THRESHOLD


def test_leave_one_out_never_sees_its_own_sample() -> None:
    cost = torch.randn(4, 3, dtype=torch.float64)
    changed = cost.clone()
    changed[1] += 5
    before, after = LeaveOneOut()(cost, None), LeaveOneOut()(changed, None)
    torch.testing.assert_close(before[1], after[1])
    torch.testing.assert_close(before[0], torch.stack([cost[1], cost[2], cost[3]]).mean(0))


def test_moving_average_is_used_before_it_is_updated() -> None:
    baseline = MovingAverage(decay=0.5)
    first = baseline(torch.full((1, 4), 10.0), None)
    second = baseline(torch.full((1, 4), 20.0), None)
    third = baseline(torch.full((1, 4), 0.0), None)
    assert first.item() == 0
    assert second.item() == pytest.approx(10)  # corrected for the start at zero
    assert third.item() == pytest.approx((0.25 * 10 + 0.5 * 20) / 0.75)
    baseline.eval()
    baseline(torch.full((1, 4), 1e6), None)
    assert baseline(torch.zeros(1, 4), None).item() < 1e6


def test_a_batch_mean_that_includes_the_sample_would_fail_the_contract() -> None:
    """The pitfall that the contract test must catch: its gradient shrinks by (N - 1) / N."""

    class Including(LeaveOneOut):
        def forward(self, cost: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
            return cost.mean(0, keepdim=True)

    torch.manual_seed(0)
    toy = problem("categorical", "nonlinear")
    gradient = toy.draws(Reinforce(4, Including()))[1]
    exact = toy.exact()[1]
    assert worst(gradient, exact) > THRESHOLD
    assert worst(gradient / (3 / 4), exact) < THRESHOLD


@pytest.mark.parametrize("baseline", ["none", "moving_average", "leave_one_out", "nvil"])
def test_reinforce_baselines_from_the_config(baseline: str) -> None:
    torch.manual_seed(0)
    estimator = make("reinforce", f"estimator/baseline={baseline}", "samples=3")
    toy = problem("categorical", "nonlinear")
    toy.draws(estimator, rows=100)
    assert worst(toy.draws(estimator)[1], toy.exact()[1]) < THRESHOLD


def test_leave_one_out_lowers_the_variance() -> None:
    """On costs far from zero, as -log p(x|z) is."""
    torch.manual_seed(0)
    toy = problem("categorical", "nonlinear")
    shifted = toy._replace(f=lambda z, theta: toy.f(z, theta) + 10)
    plain = shifted.draws(Reinforce(4), rows=4000)[1].var(0).sum()
    assert shifted.draws(RLOO(4), rows=4000)[1].var(0).sum() < plain / 10


def test_errors_say_what_was_wanted() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        StraightThrough(samples=0)
    with pytest.raises(ValueError, match="LeaveOneOut needs samples=2 or more, got samples=1"):
        RLOO(samples=1)
    with pytest.raises(ValueError, match="backward_temperature must be positive, got 0"):
        StraightThrough(backward_temperature=0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        GumbelSoftmax(temperature=0)
    gaussian = posterior("gaussian", torch.zeros(2, 2, 3))
    for estimator in (StraightThrough(), GumbelSoftmax(), StraightThroughGumbelSoftmax(), Exact()):
        with pytest.raises(TypeError, match="discrete posterior"):
            estimator(gaussian, lambda z: z.sum(-1))
    with pytest.raises(ValueError, match="at most max_states=8 states, q has 9"):
        Exact(max_states=8)(posterior("categorical", torch.zeros(1, 2, 3)), lambda z: z.sum((-1, -2)))


@pairs
def test_a_cost_of_another_shape_is_refused(name: str, kind: str) -> None:
    """(B,) and () would broadcast against (S, B)."""
    phi = PHI[kind].expand(8, *PHI[kind].shape).clone().requires_grad_()
    for cost, got in (
        (lambda z: z.flatten(2).sum((0, 2)), r"\(8,\)"),
        (lambda z: z.sum(), r"\(\)"),
        (lambda z: z.flatten(2).sum(-1, keepdim=True), r"\(\d+, 8, 1\)"),
    ):
        wanted = r"the cost must give \(S, B\) = \(\d+, 8\) nats, one per sample and image; got "
        with pytest.raises(ValueError, match=wanted + got):
            make(name)(posterior(kind, phi), cost, phi.flatten(1).detach())
    for cost, got in ((lambda z: 1.0, "float"), (lambda z: z.flatten(2).sum(-1).long(), "torch.int64")):
        with pytest.raises(TypeError, match=f"one per sample and image; got {got}"):
            make(name)(posterior(kind, phi), cost, phi.flatten(1).detach())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_posterior_that_does_not_fit_is_refused(name: str) -> None:
    estimator = make(name)

    def cost(z: torch.Tensor) -> torch.Tensor:
        return z.flatten(2).sum(-1)

    for q, got in (
        (OneHotCategorical(logits=torch.zeros(5, 2, 3)), r"\(5, 2\) and event shape \(3,\); wrap it in .*Independent"),
        (torch.distributions.Bernoulli(logits=torch.zeros(5, 3)), r"\(5, 3\) and event shape \(\); wrap"),
        (posterior("bernoulli", torch.zeros(3)), r"\(\) and event shape \(3,\)$"),
    ):
        with pytest.raises(ValueError, match=rf"must have batch shape \(B,\), .* got batch shape {got}"):
            estimator(q, cost)
    with pytest.raises(TypeError, match=r"must be floating-point numbers, got torch\.int64"):
        estimator(posterior("bernoulli", torch.zeros(5, 3, dtype=torch.int64)), cost)
    for kind in set(PHI).difference(latents_of(name)):
        if not estimator.unbiased or name not in ("reinforce", "reinforce_moving_average", "rloo", "nvil", "vimco"):
            with pytest.raises(TypeError, match=f"needs .* posterior .*got {FAMILIES[kind]}"):
                estimator(posterior(kind, PHI[kind][None]), cost, torch.zeros(1, 2))


FAMILIES = {"categorical": "OneHotCategorical", "bernoulli": "Bernoulli", "gaussian": "Normal", "vq": "NearestCode"}


def test_your_own_estimator_overrides_forward_and_is_checked() -> None:
    class Own(GradientEstimator):
        unbiased = False

        def forward(self, q: Distribution, cost: Cost, context: torch.Tensor | None = None) -> Estimate:
            f = cost(q.sample(torch.Size((self.samples,))))
            return Estimate(f.mean(0), f.new_zeros(()), f.detach())

    q = posterior("bernoulli", torch.zeros(8, 3))
    assert Own(4)(q, lambda z: z.sum(-1)).loss.shape == (8,)
    with pytest.raises(ValueError, match=r"\(S, B\) = \(4, 8\) nats, one per sample and image; got \(8,\)"):
        Own(4)(q, lambda z: z.sum((0, -1)))


def test_every_estimator_file_has_equation_and_paper() -> None:
    folder = Path(distributions.__file__).parent / "estimators"
    support = {"__init__.py", "base.py", "surrogates.py", "baselines.py"}
    for path in folder.glob("*.py"):
        if path.name not in support:
            head = path.read_text().split('"""')[1]
            assert any(mark in head for mark in ("=", "E_q")), path
            assert "exact" in path.name or any(c.isdigit() for c in head), f"{path} names no paper"
