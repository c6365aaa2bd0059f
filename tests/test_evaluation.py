"""The evaluation: likelihood, bounds, mutual information against exact values; memory, repeatability.

False alarms: the statistical tests compare means over images, or estimates with a known error, with exact values and
alarm at 5.5 standard errors: with probability 4e-8 each, below 1e-4 for all of them together, by Bonferroni over at
most 2,000 comparisons. Seeds are fixed, so an alarm repeats.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from tests.support import TIME_LIMIT
from vi_lab import evaluation, latents, likelihoods
from vi_lab.distributions import (
    NearestCode,
    UniformCodes,
    enumerate_support,
    kl_divergence,
    log_prob,
    sample,
)
from vi_lab.evaluation import evaluate, exponential_family, importance_weighted, mutual_information, unit_means, units

THRESHOLD = 5.5
PIXELS = 6
LATENTS = {
    "categorical": lambda: latents.Categorical(2, 3),
    "bernoulli": lambda: latents.Bernoulli(3),
    "gaussian": lambda: latents.Gaussian(2),
}


class Toy(nn.Module):
    """A small VAE in float64 with random weights, of a linear decoder; exact values by enumeration or quadrature."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.latent = LATENTS[kind]()
        self.encoder = nn.Linear(PIXELS, self.latent.feature_size)
        self.decoder = nn.Linear(self.latent.size, PIXELS)
        gaussian = kind == "gaussian"
        self.likelihood = likelihoods.Gaussian(1.0) if gaussian else likelihoods.Bernoulli()
        self.double()
        with torch.no_grad():
            self.decoder.weight.mul_(0.7 if gaussian else 3)
            self.encoder.weight.mul_(0.3 if gaussian else 2)
        self.rows: list[int] = []

    def posterior(self, x: Tensor) -> Distribution:
        return self.latent(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        self.rows.append(z.shape[0] * z.shape[1])
        return self.decoder(z.flatten(2))

    def nats(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: self.likelihood(self.decode(z), x)

    def images(self, count: int) -> Tensor:
        torch.manual_seed(1)
        if isinstance(self.likelihood, likelihoods.Gaussian):
            return 0.7 * torch.randn(count, PIXELS, dtype=torch.float64)
        return torch.rand(count, PIXELS, dtype=torch.float64).round()

    def support(self, q: Distribution) -> tuple[Tensor, Tensor]:
        """z (M, N, *event) and weights (M, N) such that sum of weight * f(z) is E_q[f(z)] for each of the N images."""
        if not isinstance(self.latent, latents.Gaussian):
            z = enumerate_support(q).unsqueeze(1).expand(-1, len(q.mean), *q.event_shape)
            return z, log_prob(q, z).exp()
        nodes, weights = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(40))
        eps = torch.cartesian_prod(nodes, nodes)  # (1600, 2)
        weight = torch.cartesian_prod(weights, weights).prod(-1) / weights.sum() ** 2
        z = q.base_dist.loc + q.base_dist.scale * eps.unsqueeze(1)
        return z, weight.unsqueeze(1).expand(-1, len(q.mean))

    @torch.no_grad()
    def exact(self, x: Tensor) -> dict[str, Tensor]:
        """(N,) each"""
        q, p = self.posterior(x), self.latent.prior()
        z, weight = self.support(q)
        cost = self.nats(x)(z)  # (M, N)
        log_q = torch.stack([log_prob(q, z[:, i : i + 1]) for i in range(len(x))], 1)  # (M, i, j): z of i under x_j
        own = log_q.diagonal(dim1=1, dim2=2)
        aggregated = log_q.logsumexp(-1) - math.log(len(x))
        if isinstance(self.latent, latents.Gaussian):  # p(x) = N(b, W W^T + s^2)
            w, s = self.decoder.weight, self.likelihood.log_scale.exp()
            covariance = w @ w.T + s**2 * torch.eye(PIXELS, dtype=w.dtype)
            evidence = MultivariateNormal(self.decoder.bias, covariance).log_prob(x)
        else:
            evidence = (log_prob(p, z) - cost).logsumexp(0)
        return {
            "reconstruction": (weight * cost).sum(0),
            "log_evidence": evidence,
            "mutual_information": (weight * (own - aggregated)).sum(0),
            "marginal_kl": (weight * (aggregated - log_prob(p, z))).sum(0),
        }


def alarm(errors: Tensor) -> float:
    """How many standard errors the mean lies from zero."""
    return (errors.mean().abs() / (errors.std() / len(errors) ** 0.5 + 1e-12)).item()


# --- against exact values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LATENTS)
def test_likelihood_and_bound_are_exact_within_their_errors(kind: str) -> None:
    model = Toy(kind)
    x = model.images(100)
    exact = model.exact(x)
    result = evaluate(model, [(x,)], samples=4000, seed=3)
    assert alarm(result.per_image["reconstruction"] - exact["reconstruction"]) < THRESHOLD
    torch.testing.assert_close(result.per_image["kl"], kl_divergence(model.posterior(x), model.latent.prior()))
    assert result.metrics["negative_elbo"] == pytest.approx(result.metrics["reconstruction"] + result.metrics["kl"])
    # the estimate of p(x) is unbiased, and its relative error follows from the weights
    with torch.no_grad():
        _, _, log_evidence, effective, kl = importance_weighted(
            model.posterior(x), model.latent.prior(), model.nats(x), 40_000
        )
    known = kl_divergence(model.posterior(x), model.latent.prior()).detach()
    assert (kl - known).abs().max() < 0.1  # of 40,000 samples
    assert alarm(kl - known) < THRESHOLD
    error = ((40_000 / effective - 1) / 40_000).sqrt()
    assert error.max() < 0.1
    assert (((log_evidence - exact["log_evidence"]).exp() - 1).abs() / error).max() < THRESHOLD
    # at K = 4,000 a bias of the logarithm of some 1e-4 is left, well below the errors over images
    nll = -exact["log_evidence"].mean().item()
    assert result.metrics["nll"] == pytest.approx(nll, abs=0.01)
    assert result.metrics["nll_error"] == pytest.approx(exact["log_evidence"].std().item() / 10, rel=0.01)
    finer = 8 if isinstance(model.likelihood, likelihoods.Gaussian) else 0  # densities, as of 256 levels
    assert result.metrics["bits_per_dimension"] == pytest.approx(result.metrics["nll"] / PIXELS / math.log(2) + finer)


@pytest.mark.parametrize("kind", LATENTS)
def test_mutual_information_and_marginal_kl_are_exact_within_their_errors(kind: str) -> None:
    model = Toy(kind)
    x = model.images(60)
    exact = model.exact(x)
    draws = []
    for seed in range(40):  # the same images, other z
        torch.manual_seed(seed)
        q = model.posterior(x)
        draws.append(mutual_information(*exponential_family(q, sample(q, 1)[0])))
    information = torch.stack(draws)  # (40, N)
    assert alarm(information.mean(1) - exact["mutual_information"].mean()) < THRESHOLD
    assert information.max() <= math.log(60) + 1e-12
    result = evaluate(model, [(x,)], samples=2)
    for name in ("mutual_information", "marginal_kl"):
        error = result.metrics[f"{name}_error"]
        assert abs(result.metrics[name] - exact[name].mean().item()) < THRESHOLD * error
    total = result.metrics["mutual_information"] + result.metrics["marginal_kl"]
    assert total == pytest.approx(result.metrics["kl"])


def test_the_bound_tightens_with_more_samples() -> None:
    model = Toy("categorical")
    x = model.images(2000)
    exact = -model.exact(x)["log_evidence"]
    by_samples = [evaluate(model, [x], samples=k).per_image["nll"] - exact for k in (1, 5, 25, 100)]
    for looser, tighter in pairwise(by_samples):
        assert tighter.mean() < looser.mean()
        assert alarm(looser - tighter) > THRESHOLD  # on the same images: no accident
    assert 0 < by_samples[-1].mean() < 0.05 * by_samples[0].mean()
    single = evaluate(model, [x], samples=1)  # with one sample the bound is the ELBO
    assert alarm(single.per_image["nll"] - single.per_image["negative_elbo"]) < THRESHOLD


@pytest.mark.parametrize("kind", LATENTS)
def test_log_q_is_one_matrix_product(kind: str) -> None:
    model = Toy(kind)
    q = model.posterior(model.images(7))
    z = sample(q, 1)[0]
    statistic, natural, log_normalizer = exponential_family(q, z)
    expected = torch.stack([log_prob(q, z[i].expand(1, 7, *z[i].shape))[0] for i in range(7)])
    torch.testing.assert_close(statistic @ natural.T - log_normalizer, expected)


def test_the_aggregated_posterior_in_chunks_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy("gaussian")
    q = model.posterior(model.images(23))
    family = exponential_family(q, sample(q, 1)[0])
    whole = mutual_information(*family)
    monkeypatch.setattr(evaluation, "DENSITIES", 100)  # four images at a time
    torch.testing.assert_close(mutual_information(*family), whole)


def test_certain_posteriors_share_the_information_of_their_codes() -> None:
    """Six images on three codes: 1, 2 and 3 of them; I = H(1/6, 1/3, 1/2)."""
    codebook = torch.tensor([[0.0], [1.0], [2.0]])
    encoding = torch.tensor([0.1, 0.9, 1.1, 2.0, 2.1, 1.9]).reshape(6, 1, 1).expand(6, 2, 1)
    q = NearestCode(encoding, codebook)
    assert repr(q) == "NearestCode()"
    entropy = sum(p * -math.log(p) for p in (1 / 6, 1 / 3, 1 / 2))
    information = mutual_information(*exponential_family(q, q.codes)).mean().item()
    assert information == pytest.approx(entropy)
    assert units(unit_means(q))[1]["perplexity"] == pytest.approx(math.exp(entropy))
    kl = kl_divergence(q, UniformCodes(codebook, 2)).mean().item()
    assert kl - information == pytest.approx(2 * math.log(3) - entropy)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_draws_are_from_q(kind: str) -> None:
    model = Toy(kind)
    torch.manual_seed(0)
    q = model.posterior(model.images(3))
    states = enumerate_support(q)
    z = sample(q, 100_000, torch.Generator().manual_seed(0))
    if kind == "categorical":
        assert (z.sum(-1) == 1).all()
    probability = log_prob(q, states.unsqueeze(1)).exp()  # (states, 3)
    seen = (z.unsqueeze(0) == states[:, None, None]).flatten(3).all(-1).double().mean(1)
    error = (probability * (1 - probability) / 100_000).sqrt()
    assert ((seen - probability).abs() / error.clamp_min(1e-5)).max() < THRESHOLD


def test_an_impossible_class_is_never_drawn() -> None:
    logits = torch.tensor([[[-1e9, 0.0, -1e9, 1.0, -1e9]]])
    q = Independent(torch.distributions.OneHotCategorical(logits=logits), 1)
    z = sample(q, 10_000, torch.Generator().manual_seed(0))
    assert z.sum(0)[0, 0].count_nonzero() == 2
    assert (z.sum(-1) == 1).all()


# --- memory, chunks, repeatability -----------------------------------------------------------------------------------


def test_the_decoder_never_sees_more_rows_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluation.ROWS, "cpu", 64)
    model = Toy("categorical")
    for samples in (1, 10, 64, 65, 1000):
        model.rows.clear()
        evaluate(model, [model.images(100)], samples=samples)
        assert max(model.rows) <= 64
        assert sum(model.rows) == samples * 100  # each image K times, and no more
    model.rows.clear()
    x = model.images(10)
    importance_weighted(model.posterior(x), model.latent.prior(), model.nats(x), 1000)
    assert max(model.rows) <= 64


def test_chunks_do_not_change_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same z in chunks of another size give the same estimates."""
    model = Toy("categorical")
    x = model.images(5)
    q = model.posterior(x)
    bank, position = sample(q, 1000), 0

    def from_bank(q: Distribution, samples: int, generator: torch.Generator) -> Tensor:
        nonlocal position
        position += samples
        return bank[position - samples : position]

    monkeypatch.setattr(evaluation, "sample", from_bank)
    results = []
    for rows in (7, 100, 10_000):
        monkeypatch.setitem(evaluation.ROWS, "cpu", rows)
        position = 0
        results.append(torch.stack(importance_weighted(q, model.latent.prior(), model.nats(x), 1000)[1:]))
        assert position == 1000
    weight = (log_prob(model.latent.prior(), bank) - log_prob(q, bank) - model.nats(x)(bank)).exp()
    torch.testing.assert_close(results[0][1], weight.mean(0).log())
    torch.testing.assert_close(results[0][2], weight.sum(0) ** 2 / (weight**2).sum(0))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


def test_equal_calls_give_equal_bits_and_leave_no_trace() -> None:
    model = Toy("bernoulli").train()
    x = model.images(80)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = evaluate(model, [x], samples=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    torch.rand(3)
    again = evaluate(model, [(x[:40], None), (x[40:], None)], samples=100)  # other batches of whole blocks
    assert first.metrics == again.metrics
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    decode, seen = model.decode, set()
    model.decode = lambda z: seen.add(torch.get_num_threads()) or decode(z)
    try:
        assert evaluate(model, [x], samples=100).metrics == first.metrics
        assert torch.get_num_threads() == 3
        assert seen == {1}  # blocks side by side, each on one thread
    finally:
        torch.set_num_threads(threads)
    assert evaluate(model, [x], samples=100, seed=1).metrics["nll"] != first.metrics["nll"]
    some = evaluate(model, [x], samples=100, images=40)
    assert torch.equal(some.per_image["nll"], first.per_image["nll"][:40])
    assert some.images == 40


def test_interruption_keeps_whole_blocks() -> None:
    model = Toy("categorical")
    x = model.images(60)

    def stop(images: int) -> None:
        if images == 40:
            raise KeyboardInterrupt

    result = evaluate(model, [x], samples=100, progress=stop)  # blocks of 10
    assert (result.images, result.interrupted) == (40, True)
    complete = evaluate(model, [x], samples=100, images=40)
    assert result.metrics == complete.metrics
    assert torch.get_num_threads() == 1

    def never(z: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model.decode = never
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, [x], samples=10)


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(Toy("gaussian"), [])
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(Toy("gaussian"), [], samples=0)


def test_plain_pytorch_without_estimators_or_hydra() -> None:
    code = "import sys, vi_lab.evaluation; print([m for m in sys.modules if m.startswith(('hydra', 'lightning', "
    code += "'vi_lab.estimators'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=TIME_LIMIT)
    assert done.stdout.strip() == "[]"


# --- use of the latent variables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LATENTS)
def test_a_unit_that_ignores_x_is_not_active(kind: str) -> None:
    model = Toy(kind)
    with torch.no_grad():
        model.encoder.weight.mul_(5)
        # the first row, or the first three, make the first variable; biases stay: a dead unit may differ from the prior
        model.encoder.weight[3 if kind == "categorical" else 1 :].zero_()
    active = {"categorical": [True, False], "bernoulli": [True, False, False], "gaussian": [True, False]}[kind]
    result = evaluate(model, [model.images(200)], samples=1)
    assert [row["active"] for row in result.units] == active
    assert result.metrics["active_units"] == sum(active)


def test_activity_is_the_variance_of_the_posterior_mean() -> None:
    mean = torch.tensor([[0.0, 1.0], [0.1, 1.0], [0.5, 1.02]])
    gaussian = units(unit_means(Independent(Normal(mean, torch.ones(3, 2)), 1)))
    assert gaussian[0]["activity"] == pytest.approx(np.var([0.0, 0.1, 0.5]), rel=1e-6)
    assert [row["active"] for row in gaussian] == [True, False]
    p = torch.tensor([[0.2], [0.9]])
    binary = units(unit_means(Independent(torch.distributions.Bernoulli(p), 1)))
    assert binary[0]["activity"] == pytest.approx(np.var([0.2, 0.9]), rel=1e-6)
    pair = units(torch.stack([1 - p, p], -1))  # the same variable as one of two classes
    assert pair[0]["activity"] == pytest.approx(binary[0]["activity"])


def test_code_usage_of_a_known_posterior() -> None:
    certain = torch.eye(4)[torch.tensor([0, 0, 1, 1])]  # two of four codes, half each
    spread = torch.full((4, 4), 0.25)
    rare = torch.tensor([0.97, 0.01, 0.01, 0.01]).expand(4, 4)
    first, second, third = units(torch.stack([certain, spread, rare], 1))
    assert (first["perplexity"], first["codes_used"], first["p1"]) == (pytest.approx(2), 2, 0.5)
    assert (second["perplexity"], second["codes_used"], second["active"]) == (pytest.approx(4), 4, False)
    assert third["codes_used"] == 1  # a hundredth is less than a tenth of a quarter


def test_measurements_and_mathematics_are_plain_pytorch() -> None:
    plain = "vi_lab.audit, vi_lab.evaluation, vi_lab.networks, vi_lab.schedules"  # and all that these import
    code = f"import sys, {plain}; print(*{{'lightning', 'hydra', 'torchvision', 'pandas'}} & sys.modules.keys())"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=TIME_LIMIT, capture_output=True, text=True
    )
    assert result.stdout.split() == []
