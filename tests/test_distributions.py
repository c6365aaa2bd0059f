"""KL, densities, samples and enumeration against `torch.distributions`."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td

from tests.estimators.toy import LATENTS, PHI, ROWS, THRESHOLD, posterior, worst
from vi_lab import distributions


@pytest.mark.parametrize("kind", LATENTS)
def test_kl_and_log_prob_match_torch_distributions(kind: str) -> None:
    latent = LATENTS[kind].double()
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


@pytest.mark.parametrize("u", [0.0, 2**-53, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_keep_to_the_support(u: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the generator gives, no class of probability e^-45 or 0 is drawn, wherever it stands."""

    def rand(size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, generator: object) -> torch.Tensor:
        step = 2**-53 if dtype == torch.float64 else 2**-24
        return torch.full(size, round(u / step) * step if u < 0.6 else 1 - step, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "rand", rand)
    generator = torch.Generator()
    rows = [[-45.0, 0.0, 0.3, -torch.inf], [-torch.inf, 0.1, -45.0, 0.0], [0.7, -0.3, -torch.inf, -45.0]]
    logits = torch.tensor(rows, dtype=dtype)
    z = distributions.sample(posterior("categorical", logits[None]), 1, generator)[0, 0]
    assert torch.equal(z.sum(-1), torch.ones(3, dtype=dtype))
    assert logits[z.bool()].gt(-1).all()
    bits = torch.tensor([[-45.0, -torch.inf, torch.inf, 50.0]], dtype=dtype)
    assert distributions.sample(posterior("bernoulli", bits), 1, generator).tolist() == [[[0.0, 0.0, 1.0, 1.0]]]


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
