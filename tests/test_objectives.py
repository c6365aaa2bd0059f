"""The parts between estimator and model: KL, objectives, likelihoods, latents, networks, schedules."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import lightning
import pytest
import torch
from torch import distributions as td

from tests.estimators.toy import PHI, ROWS, THRESHOLD, posterior, problem, worst
from vi_lab import distributions, evaluation, latents, likelihoods, networks, schedules
from vi_lab.data import MNISTDataModule
from vi_lab.estimators import RLOO, Exact, GradientEstimator, Pathwise, Reinforce
from vi_lab.models import VAE, StraightThroughVAE
from vi_lab.objectives import ELBO

KINDS = {
    "categorical": latents.Categorical(2, 3),
    "bernoulli": latents.Bernoulli(3),
    "gaussian": latents.Gaussian(2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kl_and_log_prob_match_torch_distributions(kind: str) -> None:
    latent = KINDS[kind].double()
    q, p = latent(torch.randn(5, latent.feature_size, dtype=torch.float64)), latent.prior()
    torch.testing.assert_close(distributions.kl_divergence(q, p), td.kl_divergence(q, p.expand(q.batch_shape)))
    z = distributions.sample(q, 7)
    assert z.shape == (7, 5, *latent.event_shape)
    torch.testing.assert_close(distributions.log_prob(q, z), q.log_prob(z))
    torch.testing.assert_close(distributions.log_prob(p, z), p.log_prob(z))


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_samples_have_the_right_frequencies(kind: str) -> None:
    torch.manual_seed(0)
    q = posterior(kind, PHI[kind][None])
    z = distributions.sample(q, ROWS)
    assert worst(z[:, 0], q.mean[0]) < THRESHOLD
    torch.manual_seed(0)
    hard = distributions.vertex(q, distributions.perturbed_logits(q, ROWS))
    assert worst(hard[:, 0], q.mean[0]) < THRESHOLD


def test_unchecked_categorical_is_torchs() -> None:
    logits = torch.randn(4, 2, 3)
    ours, theirs = distributions.one_hot_categorical(logits), td.OneHotCategorical(logits=logits)
    z = theirs.sample()
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.expand((5, 4, 2)).entropy(), theirs.entropy().expand(5, 4, 2))


def test_enumeration_covers_the_support_once() -> None:
    q = posterior("categorical", torch.randn(1, 3, 4, dtype=torch.float64))
    states = distributions.enumerate_support(q)
    assert states.shape == (64, 3, 4)
    assert len(states.flatten(1).unique(dim=0)) == 64
    torch.testing.assert_close(distributions.log_prob(q, states.unsqueeze(1)).exp().sum(), torch.ones(()).double())


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
    toy, prior = problem(kind, "nonlinear"), KINDS[kind].double().prior()
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
    toy, prior = problem("categorical", "nonlinear"), KINDS["categorical"].double().prior()
    q = posterior("categorical", toy.phi[None])
    terms = ELBO(beta=0.5)(q, prior, lambda z: toy.f(z.flatten(2), toy.theta[None]), Exact())
    torch.testing.assert_close(terms.loss.sum(), toy.exact()[0] + 0.5 * td.kl_divergence(q, prior.expand((1,))).sum())
    torch.manual_seed(0)
    unrelaxed = ELBO(beta=0.5).unrelaxed(q, prior, lambda z: toy.f(z.flatten(2), toy.theta[None]), samples=ROWS)
    assert worst(unrelaxed.cost[:, 0], toy.exact()[0]) < THRESHOLD


def test_bernoulli_likelihood_matches_torch_distributions() -> None:
    output, x = torch.randn(3, 2, 1, 4, 4), torch.rand(2, 1, 4, 4).round()
    expected = -td.Bernoulli(logits=output).log_prob(x.expand_as(output)).flatten(2).sum(-1)
    torch.testing.assert_close(likelihoods.Bernoulli()(output, x), expected)


@pytest.mark.parametrize("learn", [False, True])
def test_gaussian_likelihood_matches_torch_distributions(learn: bool) -> None:
    output, x = torch.randn(3, 2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    likelihood = likelihoods.Gaussian(scale=0.3, learn_scale=learn)
    expected = -td.Normal(output, 0.3).log_prob(x.expand_as(output)).flatten(2).sum(-1)
    torch.testing.assert_close(likelihood(output, x), expected)
    assert len(list(likelihood.parameters())) == learn


def test_logits_stay_in_float32_under_reduced_precision() -> None:
    for latent in KINDS.values():
        q = latent.float()(torch.randn(2, latent.feature_size, dtype=torch.bfloat16))
        assert distributions.sample(q, 1).dtype == torch.float32


@pytest.mark.parametrize("name", ["MLP", "Conv"])
def test_networks_have_the_shapes_that_the_latent_asks_for(name: str) -> None:
    shape = (1, 28, 28)
    encoder = getattr(networks, f"{name}Encoder")(shape, 12)
    decoder = getattr(networks, f"{name}Decoder")(7, shape)
    assert encoder(torch.randn(5, *shape)).shape == (5, 12)
    assert decoder(torch.randn(5, 7)).shape == (5, *shape)


def test_mlp_sizes_are_the_seeds() -> None:
    sizes = [m.out_features for m in networks.MLPEncoder((1, 28, 28), 300) if isinstance(m, torch.nn.Linear)]
    assert sizes == [512, 256, 300]
    linear = networks.MLPDecoder(300, (1, 28, 28), hidden=[])
    assert [m.out_features for m in linear if isinstance(m, torch.nn.Linear)] == [784]


def test_network_errors() -> None:
    with pytest.raises(ValueError, match="activation must be one of relu"):
        networks.MLPEncoder((1, 28, 28), 3, activation="swosh")
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        networks.ConvEncoder((1, 28, 28), 3, channels=[4, 8, 16])


def test_measurements_and_mathematics_are_plain_pytorch() -> None:
    plain = "vi_lab.audit, vi_lab.evaluation, vi_lab.networks, vi_lab.schedules"  # and all that these import
    code = f"import sys, {plain}; print(*{{'lightning', 'hydra', 'torchvision', 'pandas'}} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert result.stdout.split() == []


def small_vae(latent: latents.Latent, estimator: GradientEstimator, **arguments: object) -> VAE:
    torch.manual_seed(0)
    shape = (1, 28, 28)
    encoder = networks.MLPEncoder(shape, latent.feature_size, [])
    decoder = networks.MLPDecoder(latent.size, shape, [])
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    return VAE(latent, encoder, decoder, likelihoods.Bernoulli(), ELBO(), estimator, optimizer, **arguments)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (None, [0.1] * 6),
        ({}, [0.1] * 3 + [0.05] * 3),
        ({"interval": "step", "frequency": 2}, [0.1, 0.1, 0.05, 0.05, 0.05, 0.025]),  # batches are counted by epoch
    ],
)
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`")  # Lightning's own use of torch
def test_learning_rate_schedules(schedule: dict | None, rates: list[float]) -> None:
    used = []

    class Watched(torch.optim.SGD):
        def step(self, closure: object = None) -> object:
            used.append(self.param_groups[0]["lr"])
            return super().step(closure)

    halve = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    lr_scheduler = None if schedule is None else {"scheduler": halve, **schedule}
    model = small_vae(latents.Bernoulli(3), RLOO(2), lr_scheduler=lr_scheduler)
    model.optimizer = functools.partial(Watched, lr=0.1)
    datamodule = MNISTDataModule("digits", batch_size=400, validation=200)  # three batches an epoch
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(model, datamodule=datamodule)
    assert used == pytest.approx(rates)


def test_a_learning_rate_schedule_may_watch_a_metric() -> None:
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9, factor=0.5)
    model = small_vae(latents.Gaussian(2), Pathwise(), lr_scheduler={"scheduler": plateau, "monitor": "val/loss"})
    configured = model.configure_optimizers()
    assert configured["lr_scheduler"]["monitor"] == "val/loss"
    assert configured["lr_scheduler"]["scheduler"].optimizer is configured["optimizer"]


def test_model_errors() -> None:
    for wrong, message in (({}, "got nothing"), ({"scheduler": None, "every": 2}, "got every, scheduler")):
        with pytest.raises(ValueError, match=f"lr_scheduler needs scheduler .*{message}"):
            small_vae(latents.Bernoulli(3), RLOO(2), lr_scheduler=wrong)
    model = small_vae(latents.Bernoulli(3), RLOO(2))
    model.optimizer = None
    with pytest.raises(ValueError, match="VAE was made without an optimizer"):
        model.configure_optimizers()


# --- latents of your own ---------------------------------------------------------------------------------------------


class FullGaussian(latents.Latent):
    """A Gaussian posterior with a full covariance matrix and a prior of its own scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.event_shape, self.feature_size = (dim,), dim + dim**2
        self.register_buffer("prior_mean", torch.zeros(dim), persistent=False)

    def posterior(self, features: torch.Tensor) -> td.Distribution:
        mean, root = features[:, : self.size], features[:, self.size :].unflatten(-1, (self.size, self.size))
        scale_tril = root.tril(-1) + torch.diag_embed(root.diagonal(dim1=1, dim2=2).exp())
        return td.MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)

    def prior(self) -> td.Distribution:
        return td.MultivariateNormal(self.prior_mean, 4 * torch.eye(self.size).to(self.prior_mean))


class Chain(td.Distribution):
    """A prior of L one-hot variables, each of which depends on the one before: p(z_1) uniform, log p(k|j) = weight."""

    def __init__(self, variables: int, weight: torch.Tensor) -> None:
        self.weight = weight.log_softmax(-1)
        super().__init__(torch.Size(), torch.Size((variables, len(weight))), validate_args=False)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        steps = torch.einsum("...lj,jk,...lk->...", value[..., :-1, :], self.weight, value[..., 1:, :])
        return steps - math.log(len(self.weight))

    def sample(self, sample_shape: tuple[int, ...] = ()) -> torch.Tensor:
        raise NotImplementedError


class Chained(latents.Categorical):
    def prior(self) -> td.Distribution:
        weight = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 3.0]])
        return Chain(self.event_shape[0], weight.to(self.prior_logits))


def test_an_own_latent_needs_no_more_than_torch_knows() -> None:
    torch.manual_seed(0)
    model = small_vae(FullGaussian(3), Pathwise(2)).double()
    x = torch.rand(20, 1, 28, 28).double().round()
    q, p = model.posterior(x), model.latent.prior()
    torch.testing.assert_close(distributions.kl_divergence(q, p), td.kl_divergence(q, p))
    z = distributions.sample(q, 5)
    assert z.shape == (5, 20, 3)
    assert not z.requires_grad
    torch.testing.assert_close(distributions.log_prob(q, z), q.log_prob(z))
    assert distributions.base(q) is q
    model.objective(q, p, model.nats(x), model.estimator, x).loss.mean().backward()
    assert all(parameter.grad.any() for parameter in model.encoder.parameters())
    results = []
    for threads in (1, 2):  # its draws come from the default generator, one block of images at a time
        torch.set_num_threads(threads)
        before = torch.get_rng_state()
        results.append(evaluation.evaluate(model, [x], samples=100))
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_num_threads(1)
    first, again = results
    assert first.metrics == again.metrics
    assert first.metrics["nll"] < first.metrics["negative_elbo"]
    assert len(first.units) == 3
    assert "mutual_information" not in first.metrics
    assert "mutual information is left out" in first.notes[-1]


def test_own_draws_are_of_the_distribution() -> None:
    q = FullGaussian(2).double().posterior(torch.randn(3, 6, dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    z = distributions.draw(q, ROWS, generator)
    assert not torch.equal(z, distributions.draw(q, ROWS, generator))
    for image in range(3):
        assert worst(z[:, image], q.mean[image]) < THRESHOLD
        deviation = z[:, image] - q.mean[image]
        products = deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
        assert worst(products, q.covariance_matrix[image]) < THRESHOLD


def test_an_own_prior_of_discrete_variables() -> None:
    """What to register is said; the linear formula for the KL of two independent categoricals is not taken for it."""
    torch.manual_seed(0)
    latent = Chained(4, 3).double()
    q, p = latent(torch.randn(5, 12, dtype=torch.float64)), latent.prior()
    with pytest.raises(
        NotImplementedError, match=r"register it, @torch.distributions.register_kl\(Independent, Chain\)"
    ):
        distributions.kl_divergence(q, p)

    @td.register_kl(td.Independent, Chain)
    def _(q: td.Independent, p: Chain) -> torch.Tensor:
        return -q.entropy() - p.log_prob(q.mean)  # the variables are independent under q

    z = distributions.enumerate_support(q).unsqueeze(1)
    log_q = distributions.log_prob(q, z)
    kl = (log_q.exp() * (log_q - distributions.log_prob(p, z))).sum(0)
    torch.testing.assert_close(distributions.kl_divergence(q, p), kl)
    terms = ELBO()(q, p, lambda z: z.flatten(2).sum(-1), RLOO(2))
    family = StraightThroughVAE(
        latent, torch.nn.Identity(), torch.nn.Identity(), likelihoods.Bernoulli(), ELBO(), RLOO(2)
    )
    logged = family.extra_metrics(q, terms)["posterior_perplexity"]
    torch.testing.assert_close(logged, (q.entropy().mean() / 4).exp())  # although the KL holds another prior


def test_a_registered_kl_must_be_per_image() -> None:
    class Odd(td.Laplace):
        pass

    td.register_kl(td.Normal, Odd)(lambda q, p: torch.zeros(7))
    with pytest.raises(ValueError, match=r"registered for \(Normal, Odd\) must give one number per image.*\(5,\); got"):
        distributions.kl_divergence(td.Normal(torch.zeros(5), 1.0), Odd(0.0, 1.0))


def test_other_event_shapes_are_left_to_torch() -> None:
    """A single one-hot variable without `Independent`, and a grid of them."""
    logits = torch.randn(5, 2, 4, 3)
    for q in (td.OneHotCategorical(logits=logits[:, 0, 0]), td.Independent(td.OneHotCategorical(logits=logits), 2)):
        p = type(q)(td.OneHotCategorical(logits=torch.zeros(2, 4, 3)), 2) if isinstance(q, td.Independent) else None
        p = p or td.OneHotCategorical(logits=torch.zeros(3))
        z = distributions.sample(q, 6)
        assert z.shape == (6, 5, *q.event_shape)
        torch.testing.assert_close(distributions.log_prob(q, z), q.log_prob(z))
        torch.testing.assert_close(distributions.kl_divergence(q, p), td.kl_divergence(q, p))
        with pytest.raises(TypeError, match=r"got OneHotCategorical with event shape \(.*3"):
            distributions.discrete(q, "a test")


def test_schedules() -> None:
    assert schedules.Constant(0.7)(10**6) == 0.7
    linear = schedules.Linear(1.0, 0.5, 100)
    assert [linear(0), linear(50), linear(100), linear(200)] == [1.0, 0.75, 0.5, 0.5]
    cosine = schedules.Cosine(1.0, 0.5, 100)
    assert [cosine(0), cosine(100), cosine(101)] == pytest.approx([1.0, 0.5, 0.5])
    assert cosine(50) == pytest.approx(0.75)
    exponential = schedules.Exponential(1.0, rate=1e-3, floor=0.5, interval=500)
    assert exponential(0) == exponential(499) == 1.0  # updated every 500 steps
    assert exponential(500) == exponential(999) == pytest.approx(math.exp(-0.5))
    assert exponential(10**5) == 0.5  # the floor
    for bad in (
        lambda: schedules.Constant(0),
        lambda: schedules.Exponential(rate=-1),
        lambda: schedules.Linear(steps=0),
    ):
        with pytest.raises(ValueError, match="schedule"):
            bad()
