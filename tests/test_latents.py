"""Latents and priors of one's own, and that those here stay in float32."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as td

from tests.estimators.toy import LATENTS, ROWS, THRESHOLD, worst
from tests.support import small_vae
from vi_lab import distributions, evaluation, latents, likelihoods
from vi_lab.estimators import RLOO, Pathwise, StraightThrough
from vi_lab.models import GaussianVAE, ReinforceVAE, StraightThroughVAE
from vi_lab.objectives import ELBO


def test_logits_stay_in_float32_under_reduced_precision() -> None:
    for latent in LATENTS.values():
        q = latent.float()(torch.randn(2, latent.feature_size, dtype=torch.bfloat16))
        assert distributions.sample(q, 1).dtype == torch.float32


def test_an_integer_embedding_shows_the_networks_one_number_for_each_variable() -> None:
    torch.manual_seed(0)
    latent = latents.Categorical(3, 5, embedding="integer")
    assert (latent.size, latent.feature_size, latent.event_shape) == (3, 15, (3, 5))
    classes = torch.tensor([[0, 2, 4], [1, 3, 4]])
    seen = latent.inputs(torch.nn.functional.one_hot(classes, 5).float()[None])
    torch.testing.assert_close(seen, classes[None] / 4)
    model = small_vae(latent, StraightThrough())
    loss, _ = model.losses(torch.rand(7, 1, 28, 28))
    loss.backward()
    assert next(model.decoder.parameters()).shape[1] == 3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="embedding must be one of one_hot, integer; got 'scalar'"):
        latents.Categorical(3, 5, embedding="scalar")


def test_an_integer_embedding_holds_between_stochastic_layers() -> None:
    latent = latents.Categorical(3, 5, layers=2, embedding="integer")
    q, p = latent(torch.randn(4, latent.feature_size)), latent.prior()
    z = distributions.sample(q, 6)
    assert z.shape == (6, 4, 2, 3, 5)
    assert latent.inputs(z).shape == (6, 4, 3)
    assert distributions.log_prob(p, z).shape == (6, 4)


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
    z = distributions.sample(q, ROWS, generator)
    assert not torch.equal(z, distributions.sample(q, ROWS, generator))
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
        NotImplementedError,
        match=r"register it, @torch.distributions.register_kl\(Independent, Chain\)",
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


class HeavyTails(latents.Latent):
    """A Laplace posterior and a Student prior, between which torch knows no KL; no subclass of a shipped latent."""

    event_shape, feature_size = (3,), 6

    def posterior(self, features: torch.Tensor) -> td.Distribution:
        location, log_scale = features.chunk(2, -1)
        return td.Independent(td.Laplace(location, log_scale.exp(), validate_args=False), 1)

    def prior(self) -> td.Distribution:
        return td.Independent(td.StudentT(torch.full((3,), 3.0, dtype=torch.float64)), 1)


def test_without_a_known_kl_the_bound_is_estimated() -> None:
    """The families take a latent that is no shipped one's; for it, analytic is Monte Carlo, which is unbiased."""
    torch.manual_seed(0)
    parts = (torch.nn.Flatten(), torch.nn.Identity(), likelihoods.Bernoulli())
    with pytest.raises(TypeError, match="GaussianVAE needs a Gaussian latent, got Bernoulli"):
        GaussianVAE(latents.Bernoulli(3), *parts, ELBO(), Pathwise())
    latent = HeavyTails()
    for family in (GaussianVAE, ReinforceVAE):
        q, p = latent(torch.randn(6, 6, dtype=torch.float64, requires_grad=True)), latent.prior()
        with pytest.raises(NotImplementedError, match=r"for \(Laplace, StudentT\)"):
            distributions.kl_divergence(q, p)
        torch.manual_seed(1)
        sampled = ELBO(kl="monte_carlo")(q, p, lambda z: z.sum(-1), Pathwise(2)).loss
        torch.manual_seed(1)
        assert torch.equal(ELBO()(q, p, lambda z: z.sum(-1), Pathwise(2)).loss, sampled)
        model = family(latent, *parts, ELBO(kl="monte_carlo"), Pathwise(2))
        terms = model.objective(q, p, lambda z: z.square().sum(-1), model.estimator)
        terms.loss.mean().backward()
        assert "posterior_scale" not in model.extra_metrics(q, terms)
    z = distributions.sample(q, ROWS)
    log_ratio = distributions.log_prob(q, z) - distributions.log_prob(p, z)
    torch.testing.assert_close(distributions.kl_or_estimate(q, p, z), log_ratio.mean(0))
    estimates = torch.stack([distributions.kl_or_estimate(q, p) for _ in range(2000)])
    for image in range(6):  # two independent estimates of one number
        assert worst(estimates[:, image], log_ratio.mean(0)[image].detach()) < THRESHOLD + 1


def test_evaluation_without_a_known_kl_repeats() -> None:
    torch.manual_seed(0)
    model = small_vae(HeavyTails(), Pathwise(2), objective=ELBO(kl="monte_carlo")).double()
    x = torch.rand(20, 1, 28, 28).double().round()
    first, again = (evaluation.evaluate(model, [x], samples=50).metrics for _ in range(2))
    assert first == again
    assert first["nll"] < first["negative_elbo"]
