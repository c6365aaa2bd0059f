"""Identities of the antithetic estimators (ARM, DisARM, trees), of the relaxed bound (Concrete) and
of vector quantization.

Thresholds and false alarms are those of `toy.py`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from tests.estimators.toy import PHI, ROWS, THRESHOLD, posterior, problem, worst
from vi_lab import distributions
from vi_lab.config import check_overrides
from vi_lab.distributions import categorical, log_relaxed_sample, logistic_like, relaxed_log_prob
from vi_lab.errors import UserError
from vi_lab.estimators import (
    ARM,
    Concrete,
    Cost,
    DisARM,
    DisARMTree,
    Estimate,
    Exact,
    GradientEstimator,
    GumbelSoftmax,
    StraightThrough,
    VectorQuantization,
)
from vi_lab.estimators.disarm_tree import node_logits, walk
from vi_lab.estimators.surrogates import antithetic
from vi_lab.latents import VQ, Bernoulli, Categorical
from vi_lab.models import StraightThroughVAE
from vi_lab.objectives import ELBO, RelaxedELBO
from vi_lab.schedules import Linear
from vi_lab.training.callbacks import Temperature


def samples_of(estimator: GradientEstimator, kind: str, phi: Tensor) -> Tensor:
    """The samples on which an estimator evaluates its cost, (S, B, *event)."""
    seen = []

    def cost(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return z.flatten(2).sum(-1)

    estimator(posterior(kind, phi), cost)
    return seen[0]


# --- antithetic pairs ----------------------------------------------------------------------------------------------


def test_arm_is_the_papers_formula() -> None:
    """(f(1[u > sigmoid(-phi)]) - f(1[u < sigmoid(phi)])) (u - 1/2), u taken from the same noise."""
    toy = problem("bernoulli", "nonlinear")
    torch.manual_seed(0)
    _, gradient, _ = toy.draws(ARM(), rows=50)
    torch.manual_seed(0)
    phi, theta = toy.phi.expand(50, -1), toy.theta.expand(50, -1)
    u = logistic_like(phi, 1).sigmoid()
    f = [toy.f(z.double(), theta).T for z in (u > (-phi).sigmoid(), u < phi.sigmoid())]
    torch.testing.assert_close(gradient, (f[0] - f[1]) * (u[0] - 0.5))


def test_disarm_is_the_conditional_expectation_of_arm() -> None:
    """Given the pair, the mean of ARM's weight u - 1/2 is DisARM's weight, for each of the four pairs."""
    torch.manual_seed(0)
    for logit in PHI["bernoulli"]:
        noise = logistic_like(logit, 10 * ROWS)
        arm, disarm = ARM().weight(logit, noise), DisARM().weight(logit, noise)
        pair = 2 * (logit + noise > 0) + (logit - noise > 0)
        for value in pair.unique():
            weight = disarm[pair == value]
            assert weight.unique().numel() == 1  # a function of the pair alone
            assert worst(arm[pair == value], weight[0]) < THRESHOLD


def test_disarm_has_the_mean_of_arm_and_less_variance() -> None:
    toy = problem("bernoulli", "nonlinear")
    torch.manual_seed(0)
    arm = toy.draws(ARM())[1]
    torch.manual_seed(0)
    disarm = toy.draws(DisARM())[1]  # the same noise, so the same pairs
    assert worst(arm - disarm, torch.zeros(3)) < THRESHOLD
    assert (disarm.var(0) < arm.var(0)).all()


@pytest.mark.parametrize(
    ("kind", "estimator"), [("bernoulli", ARM(4)), ("bernoulli", DisARM(2)), ("categorical", DisARMTree(4))]
)
def test_each_member_of_a_pair_is_a_sample_of_q(kind: str, estimator: GradientEstimator) -> None:
    torch.manual_seed(0)
    phi = PHI[kind].expand(ROWS, *PHI[kind].shape)
    z = samples_of(estimator, kind, phi)
    mean = posterior(kind, PHI[kind][None]).mean[0]
    for members in z:
        assert worst(members, mean) < THRESHOLD
    first, second = z.chunk(2)
    assert ((first - first.mean((0, 1))) * (second - second.mean((0, 1)))).mean((0, 1)).lt(0).all()  # antithetic


def binary_tree(classes: int) -> Tensor:
    """(C - 1, C): +1 where a class lies on the first side of a node, -1 on its second, 0 where not below it."""
    sides = torch.zeros(classes - 1, classes, dtype=torch.float64)
    for leaf in range(classes):
        node = classes + leaf
        while node > 1:
            sides[node // 2 - 1, leaf] = -1.0 if node % 2 else 1.0
            node //= 2
    return sides


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64])
def test_levels_of_the_tree_are_its_matrix(classes: int) -> None:
    """Node by node and leaf by leaf, against the tree written out as a matrix."""
    torch.manual_seed(0)
    tree = binary_tree(classes)
    logits = torch.randn(5, 3, classes, dtype=torch.float64).log_softmax(-1)
    first, second = logits.exp() @ (tree > 0).double().T, logits.exp() @ (tree < 0).double().T
    torch.testing.assert_close(node_logits(logits), first.log() - second.log())
    bits = torch.rand(5, 3, classes - 1) < 0.5
    passed, z = walk(bits)
    leaf = ((2.0 * bits - 1).double() @ tree == tree.abs().sum(0)).double()
    torch.testing.assert_close(z.double(), leaf)
    torch.testing.assert_close(passed.double(), leaf @ tree.abs().T)


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 8])
def test_the_tree_gives_the_classes_their_probabilities(classes: int) -> None:
    """Each leaf's probability is the product of those of the turns above it."""
    torch.manual_seed(0)
    tree = binary_tree(classes)
    p = torch.randn(classes, dtype=torch.float64).softmax(-1)
    first, below = p @ (tree.T > 0).double(), p @ tree.T.abs()
    turns = torch.where(tree > 0, (first / below)[:, None], torch.where(tree < 0, (1 - first / below)[:, None], 1.0))
    torch.testing.assert_close(turns.prod(0), p)
    z = samples_of(DisARMTree(2), "categorical", p.log().expand(ROWS, 1, classes))
    assert worst(z[0, :, 0], p) < THRESHOLD


def test_a_tree_of_two_classes_is_disarm() -> None:
    """Sample for sample with the same noise: logits (a, b) are one bit of logit a - b."""
    toy = problem("bernoulli", "nonlinear")
    theta = toy.theta.expand(50, -1)
    logits = torch.randn(50, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bits = logits.detach().diff(dim=-1).neg().squeeze(-1).requires_grad_()
    torch.manual_seed(1)
    tree = DisARMTree(4)(posterior("categorical", logits), lambda z: toy.f(z[..., 0], theta))
    torch.manual_seed(1)
    disarm = DisARM(4)(posterior("bernoulli", bits), lambda z: toy.f(z, theta))
    torch.testing.assert_close(tree.cost, disarm.cost)
    (by_class,) = torch.autograd.grad(tree.loss.sum(), logits)
    (by_bit,) = torch.autograd.grad(disarm.loss.sum(), bits)
    torch.testing.assert_close(by_class, torch.stack([by_bit, -by_bit], -1))


@pytest.mark.parametrize(("variables", "classes"), [(3, 4), (2, 8)])
def test_a_node_that_one_sample_passes_takes_its_score(variables: int, classes: int) -> None:
    """Unbiased by enumeration, with less variance than DisARM's weight at each node that either sample passes."""

    class Either(DisARMTree):
        def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
            logits = categorical(q, "a test").logits
            tree, alpha = binary_tree(classes).to(logits), node_logits(logits)
            noise = logistic_like(alpha, 1)
            turns = torch.where(torch.cat([alpha + noise, alpha - noise]) > 0, 1.0, -1.0).to(logits)
            z = (turns @ tree == tree.abs().sum(0)).to(logits)
            passed = (z @ tree.abs().T).amax(0, keepdim=True)
            return antithetic(cost(z), ((self.weight(alpha, noise) * passed).detach() * alpha).sum((-1, -2)))

    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(variables, classes, dtype=torch.float64, generator=generator)
    weight = torch.randn(variables * classes, 4, dtype=torch.float64, generator=generator)

    def gradient(estimator: GradientEstimator, rows: int) -> Tensor:
        torch.manual_seed(0)
        logits = phi.expand(rows, variables, classes).clone().requires_grad_()
        loss = estimator(posterior("categorical", logits), lambda z: (z.flatten(2) @ weight).square().sum(-1)).loss
        return torch.autograd.grad(loss.sum(), logits)[0]

    draws, before = gradient(DisARMTree(2), ROWS), gradient(Either(2), ROWS)
    assert worst(draws, gradient(Exact(), 1)[0]) < THRESHOLD
    assert draws.var(0).sum() < 0.9 * before.var(0).sum()


def test_antithetic_errors() -> None:
    for estimator in (ARM, DisARM, DisARMTree):
        with pytest.raises(ValueError, match=f"{estimator.__name__} draws antithetic pairs: samples must be even"):
            estimator(samples=3)
    with pytest.raises(TypeError, match="ARM needs a Bernoulli posterior"):
        ARM()(posterior("categorical", torch.zeros(1, 2, 3)), lambda z: z.sum((-1, -2)))
    with pytest.raises(TypeError, match="DisARMTree needs a OneHotCategorical posterior"):
        DisARMTree()(posterior("bernoulli", torch.zeros(1, 2)), lambda z: z.sum(-1))


# --- the relaxed bound ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
def test_relaxed_densities_match_torch_distributions(tau: float) -> None:
    torch.manual_seed(0)
    temperature = torch.tensor(tau, dtype=torch.float64)
    q = posterior("categorical", torch.randn(5, 2, 3, dtype=torch.float64))
    y = log_relaxed_sample(q, temperature, 7)
    expected = ExpRelaxedCategorical(temperature, logits=q.base_dist.logits).log_prob(y).sum(-1)
    torch.testing.assert_close(relaxed_log_prob(q, temperature, y), expected)
    q = posterior("bernoulli", torch.randn(5, 3, dtype=torch.float64))
    y = log_relaxed_sample(q, temperature, 7)
    relaxed = td.RelaxedBernoulli(temperature, logits=q.base_dist.logits)
    torch.testing.assert_close(relaxed_log_prob(q, temperature, y), relaxed.base_dist.log_prob(y).sum(-1))


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_log_relaxed_samples_are_the_relaxed_samples(kind: str) -> None:
    q = posterior(kind, PHI[kind][None])
    torch.manual_seed(0)
    z = distributions.relaxed_sample(q, 0.7, 50)
    torch.manual_seed(0)
    y = log_relaxed_sample(q, 0.7, 50)
    torch.testing.assert_close(y.exp() if kind == "categorical" else y.sigmoid(), z)


def test_two_classes_have_the_density_of_a_bit() -> None:
    """log z of two classes against logit z: a change of variables whose Jacobian cancels in log q - log p."""
    torch.manual_seed(0)
    temperature, prior_temperature = torch.tensor(0.7).double(), torch.tensor(0.4).double()
    two, bit = (posterior(k, torch.zeros(1, *s).double()) for k, s in (("categorical", (3, 2)), ("bernoulli", (3,))))
    logits = torch.randn(5, 3, 2, dtype=torch.float64)
    q = posterior("categorical", logits)
    y = log_relaxed_sample(q, temperature, 4)
    ratio = relaxed_log_prob(q, temperature, y) - relaxed_log_prob(two, prior_temperature, y)
    q, y = posterior("bernoulli", logits[..., 0] - logits[..., 1]), y[..., 0] - y[..., 1]
    torch.testing.assert_close(ratio, relaxed_log_prob(q, temperature, y) - relaxed_log_prob(bit, prior_temperature, y))


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_the_relaxed_bound_by_quadrature(temperature: float, beta: float) -> None:
    """One binary variable: the value and its gradients are one-dimensional integrals. With beta = 1 the value bounds
    -log p(x) of the relaxed model, an integral over the prior's variable."""
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000  # midpoints
    logit, tau = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, temperature))
    prior = LogitRelaxedBernoulli(torch.tensor(0.5).double(), logits=torch.zeros(()).double())

    def nats(z: Tensor) -> Tensor:
        return torch.sin(3 * z) + z

    y = (logit + torch.logit(u)) / tau
    ratio = LogitRelaxedBernoulli(tau, logits=logit).log_prob(y) - prior.log_prob(y)
    value = (nats(y.sigmoid()) + beta * ratio).mean()
    exact = torch.stack(torch.autograd.grad(value, (logit, tau)))
    evidence = (-nats((torch.logit(u) / 0.5).sigmoid())).exp().mean().log()
    assert beta != 1 or value > -evidence

    estimator = Concrete(4, temperature, prior_temperature=0.5, learn_temperature=True).double()
    (log_tau,) = estimator.parameters()
    losses, gradients = [], []
    torch.manual_seed(0)
    for _ in range(400):  # draws of 100 rows each: the rows share the one temperature
        phi = torch.full((100, 1), 0.4, dtype=torch.float64, requires_grad=True)
        q, p = posterior("bernoulli", phi), Bernoulli(1).double().prior()
        terms = RelaxedELBO(beta)(q, p, lambda z: nats(z).sum(-1), estimator)
        d_logit, d_log_tau = torch.autograd.grad(terms.loss.mean(), (phi, log_tau))
        losses.append(terms.loss.mean().detach())
        gradients.append(torch.stack([d_logit.sum(), d_log_tau / temperature]))
    assert worst(torch.stack(losses), value.detach()) < THRESHOLD
    assert worst(torch.stack(gradients), exact) < THRESHOLD
    kl = distributions.kl_divergence(q, p)
    torch.testing.assert_close(terms.kl, kl.detach())  # the discrete one, which compares between estimators


def test_concrete_without_the_relaxed_bound_is_gumbel_softmax() -> None:
    toy = problem("categorical", "nonlinear")
    draws = []
    for estimator in (Concrete(2, 0.7), GumbelSoftmax(2, 0.7)):
        torch.manual_seed(0)
        draws.append(toy.draws(estimator.double(), rows=20))
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_the_relaxed_bound_is_evaluated_as_the_discrete_one() -> None:
    q, p = posterior("bernoulli", torch.randn(5, 3)), Bernoulli(3).prior()
    results = []
    for objective in (ELBO(), RelaxedELBO()):
        torch.manual_seed(0)
        results.append(objective.unrelaxed(q, p, lambda z: z.sum(-1)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (3,)])
def test_the_relaxed_bound_is_finite_at_extreme_logits(shape: tuple[int, ...]) -> None:
    latent = Categorical(*shape) if len(shape) == 2 else Bernoulli(*shape)
    phi = torch.tensor([1e4, -1e4, 0.0])[: shape[-1]].expand(8, *shape).clone().requires_grad_()
    estimator = Concrete(4, 0.3, learn_temperature=True)
    q = latent(phi.flatten(1))
    loss = RelaxedELBO()(q, latent.prior(), lambda z: z.flatten(2).square().sum(-1), estimator).loss.sum()
    for value in (loss, *torch.autograd.grad(loss, [phi, *estimator.parameters()])):
        assert value.isfinite().all()


# --- learned temperatures ------------------------------------------------------------------------------------------


def test_a_learned_temperature_has_the_gradient_of_the_relaxed_cost() -> None:
    """d/d tau of the cost at softmax((logits + g) / tau), against finite differences under the same noise."""
    toy = problem("categorical", "nonlinear")

    def loss(estimator: GumbelSoftmax) -> Tensor:
        torch.manual_seed(0)
        q, theta = posterior("categorical", toy.phi.expand(50, 2, 3)), toy.theta.expand(50, -1)
        return estimator(q, lambda z: toy.f(z.flatten(2), theta)).loss.sum()

    learned = GumbelSoftmax(temperature=0.7, learn_temperature=True).double()
    (log_temperature,) = learned.parameters()
    assert log_temperature.item() == pytest.approx(math.log(0.7))
    (gradient,) = torch.autograd.grad(loss(learned), log_temperature)
    up, down = (GumbelSoftmax(temperature=0.7).double() for _ in range(2))
    up.temperature.mul_(math.exp(1e-5))
    down.temperature.mul_(math.exp(-1e-5))
    assert gradient.item() == pytest.approx(((loss(up) - loss(down)) / 2e-5).item(), rel=1e-4)
    assert not list(GumbelSoftmax().parameters())


@pytest.mark.parametrize("estimator", [GumbelSoftmax, Concrete, StraightThrough])
@pytest.mark.parametrize("learn", [False, True])
def test_the_schedule_leaves_a_learned_temperature_alone(estimator: type[GradientEstimator], learn: bool) -> None:
    if estimator is StraightThrough:
        module = SimpleNamespace(estimator=StraightThrough())
        expected = None
    else:
        module = SimpleNamespace(estimator=estimator(temperature=0.7, learn_temperature=learn))
        expected = 0.7 if learn else 1.5
    callback = Temperature(Linear(2.0, 1.0, 10))
    callback.on_train_batch_start(SimpleNamespace(global_step=5), module)
    assert callback.value == pytest.approx(expected)
    if learn and expected:
        with torch.no_grad():
            next(module.estimator.parameters()).add_(1)
        assert callback.value == pytest.approx(0.7 * math.e)


def test_relaxed_errors() -> None:
    with pytest.raises(ValueError, match="prior_temperature must be positive, got 0"):
        Concrete(prior_temperature=0)
    q, p = posterior("bernoulli", torch.zeros(1, 3)), Bernoulli(3).prior()
    with pytest.raises(TypeError, match=r"needs an estimator with relaxed densities.*, got GumbelSoftmax"):
        RelaxedELBO()(q, p, lambda z: z.sum(-1), GumbelSoftmax())
    for overrides, message in (
        (["estimator=rloo", "objective=relaxed"], "objective=relaxed needs estimator=concrete, not rloo"),
        (["estimator.learn_temperature=true", "schedule=linear"], "leaves nothing to a schedule"),
    ):
        with pytest.raises(UserError, match=message):
            check_overrides("train", overrides, multirun=False)
    config = check_overrides("train", ["estimator=concrete", "objective=elbo"], multirun=False)[0]
    assert config["objective"]["_target_"].endswith(".ELBO")  # the user's word wins


# --- vector quantization -------------------------------------------------------------------------------------------


def test_vq_gradients_are_the_papers() -> None:
    """With f linear, df/dz = w at the code: w + 2 beta (e - c) for the encoding, 2 sum (c - e) for each code."""
    torch.manual_seed(0)
    latent = VQ(variables=4, classes=3, dim=2).double()
    torch.nn.init.normal_(latent.codebook)
    features = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 2, dtype=torch.float64)
    q = latent(features)
    distance = (features.unflatten(-1, (4, 1, 2)) - latent.codebook).square().sum(-1)  # (B, L, K)
    assert torch.equal(q.index, distance.argmin(-1))
    assert len(q.index.unique()) == 3

    estimate = VectorQuantization(commitment=0.7)(q, lambda z: (z * w).sum((-1, -2)))
    codes = latent.codebook.detach()[q.index]
    torch.testing.assert_close(estimate.loss, (codes * w).sum((-1, -2)))  # the value holds neither auxiliary loss
    by_encoding, by_codebook = torch.autograd.grad(estimate.loss.sum(), (features, latent.codebook))
    error = features.detach().unflatten(-1, (4, 2)) - codes
    torch.testing.assert_close(by_encoding.unflatten(-1, (4, 2)), w + 2 * 0.7 * error)
    one_hot = torch.nn.functional.one_hot(q.index, 3).double()
    torch.testing.assert_close(by_codebook, -2 * torch.einsum("blk,bld->kd", one_hot, error))


def test_vq_bound_and_distributions() -> None:
    """A certain posterior: KL = L log K, by the analytic and by the Monte Carlo form."""
    torch.manual_seed(0)
    latent = VQ(variables=4, classes=3, dim=2).double()
    q, p = latent(torch.randn(5, 8, dtype=torch.float64)), latent.prior()
    kl = distributions.kl_divergence(q, p)
    torch.testing.assert_close(kl, torch.full((5,), 4 * math.log(3), dtype=torch.float64))
    z = distributions.sample(q, 7)
    assert z.shape == (7, 5, *latent.event_shape)
    assert torch.equal(distributions.log_prob(q, z), torch.zeros(7, 5))
    assert distributions.log_prob(q, z + 1).isneginf().all()
    torch.testing.assert_close(distributions.log_prob(p, z), -kl.expand(7, 5))
    draws = p.sample((ROWS, 1))
    assert draws.shape == (ROWS, 1, 4, 2)
    frequencies = torch.stack([(draws == code).all(-1).double()[:, 0] for code in latent.codebook], -1)
    assert worst(frequencies, torch.full((4, 3), 1 / 3)) < THRESHOLD
    values = [
        ELBO(kl)(q, p, lambda z: z.square().sum((-1, -2)), VectorQuantization()) for kl in ("analytic", "monte_carlo")
    ]
    torch.testing.assert_close(values[0].loss, values[1].loss)
    torch.testing.assert_close(values[0].loss.detach(), values[0].reconstruction + 4 * math.log(3))


def test_vq_logs_how_many_codes_are_in_use() -> None:
    """Perplexity of the codes over batch and variables: 2 where two codes share them."""
    latent = VQ(variables=2, classes=4, dim=1)
    latent.codebook.data = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    model = StraightThroughVAE(latent, *[torch.nn.Identity()] * 3, objective=ELBO(), estimator=VectorQuantization())
    metrics = model.extra_metrics(latent(torch.tensor([[0.1, 3.2], [0.0, 3.0]])), None)
    assert metrics["code_perplexity"].item() == pytest.approx(2)
    assert metrics["quantization_error"].item() == pytest.approx((0.1**2 + 0.2**2) / 2, rel=1e-5)


def test_vq_errors() -> None:
    with pytest.raises(ValueError, match="commitment must not be negative, got -1"):
        VectorQuantization(commitment=-1)
    with pytest.raises(TypeError, match=r"needs a NearestCode posterior \(latent=vq\), got Bernoulli"):
        VectorQuantization()(posterior("bernoulli", torch.zeros(1, 3)), lambda z: z.sum(-1))
    with pytest.raises(UserError, match="estimator rloo does not work with a vq latent"):
        check_overrides("train", ["estimator=rloo", "latent=vq"], multirun=False)
    with pytest.raises(UserError, match="leave latent= out or use latent=vq"):
        check_overrides("train", ["estimator=vq", "latent=30x10"], multirun=False)


@pytest.mark.parametrize("learn", [False, True])
def test_a_number_may_be_written_over_a_temperature(learn: bool) -> None:
    estimator = GumbelSoftmax(learn_temperature=learn).double()
    estimator.temperature = 0.3
    assert estimator.temperature.dtype == torch.float64
    assert estimator.temperature.item() == pytest.approx(0.3, abs=1e-12)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        estimator.temperature = 0
