"""The gradient lab: its statistics against known bias and noise, its gradients against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from tests.support import compose
from vi_lab import audit
from vi_lab.audit import Bench, Moments
from vi_lab.build import build
from vi_lab.distributions import number_of_states
from vi_lab.estimators import RLOO, Cost, Estimate, Exact, MovingAverage, Pathwise, Reinforce, StraightThrough
from vi_lab.objectives import ELBO

SMALL = ["data=digits", "network.encoder.hidden=[16]", "network.decoder.hidden=[16]", "threads=1", "accelerator=cpu"]


def bench(*overrides: str, images: int = 4) -> Bench:
    """A fresh small model in float64, its posterior sharpened so that estimators differ."""
    config = compose(*SMALL, *overrides)
    datamodule, model = build(config)
    datamodule.setup()
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return Bench(model, next(iter(datamodule.train_dataloader()))[0][:images].double())


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_moments_find_a_known_bias_in_noise(bias: float) -> None:
    torch.manual_seed(0)
    exact = torch.full((50,), 2.0, dtype=torch.float64)
    moments = Moments(exact, 2000)
    for _ in range(20):
        moments.add(exact + bias + 3 * torch.randn(100, 50, dtype=torch.float64))
    measured = moments.measure()
    relative = bias / 2.0
    assert measured.relative_bias_low <= relative <= measured.relative_bias_high
    assert measured.relative_bias_high - measured.relative_bias_low < 0.1 + 0.2 * (bias == 0)
    assert measured.variance == pytest.approx(9 * 50, rel=0.02)
    assert measured.mean_squared_error == pytest.approx((9 + bias**2) * 50, rel=0.02)
    assert measured.signal_to_noise == pytest.approx((2 + bias) / 3, rel=0.05)


def test_the_signal_to_noise_has_no_floor() -> None:
    """A fifth of 1 / sqrt(draws), which the norm of the mean draw would give; in many dimensions, so that chance has
    little part in it."""
    torch.manual_seed(0)
    exact = torch.full((20_000,), 0.006, dtype=torch.float64)
    moments = Moments(exact, 1000)
    for _ in range(20):
        moments.add(exact + torch.randn(50, 20_000, dtype=torch.float64))
    assert moments.measure().signal_to_noise == pytest.approx(0.006, abs=0.002)  # 1 / sqrt(1000) = 0.032


def test_much_noise_is_not_taken_for_no_bias() -> None:
    """However low the estimate falls: with a mean error of some 9 in 1000 draws, a bias below 1 cannot be excluded."""
    exact = torch.ones(10, dtype=torch.float64)
    for seed in range(100):
        moments = Moments(exact, 1000)
        noise = torch.randn(1000, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        moments.add(exact + 100 * noise)
        assert moments.measure().relative_bias_high > 1


def test_the_interval_covers_as_often_as_it_says() -> None:
    torch.manual_seed(0)
    exact = torch.ones(10, dtype=torch.float64)
    hits = 0
    for _ in range(200):
        moments = Moments(exact, 200)
        moments.add(exact + 0.5 + torch.randn(200, 10, dtype=torch.float64))
        measured = moments.measure()
        hits += measured.relative_bias_low <= 0.5 <= measured.relative_bias_high
    assert hits >= 176  # 190 expected; fewer than 176 has probability 1e-4 at 95 % coverage


def test_logits_and_encoder_gradients_are_autograds() -> None:
    lab = bench("estimator=exact", "latent=2x10")
    exact = lab.exact()
    terms = ELBO()(lab.model.posterior(lab.x), lab.model.latent.prior(), lab.model.nats(lab.x), Exact(), lab.x)
    weights = list(lab.model.encoder.parameters())
    expected = torch.autograd.grad(terms.loss.mean(), weights)
    carried = lab.to_encoder(exact[None])[0]
    torch.testing.assert_close(carried, torch.cat([g.flatten() for g in expected]))


def test_enumeration_in_chunks_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = bench("latent=2x10")
    whole = lab.exact()
    monkeypatch.setattr(audit, "ROWS", 100)
    torch.testing.assert_close(lab.exact(), whole)


def test_biased_and_unbiased_are_told_apart() -> None:
    torch.manual_seed(0)
    lab = bench("latent=2x10")
    reference = lab.reference()
    assert reference.how == "exact, by enumeration"
    unbiased = lab.measure(RLOO(4), ELBO(), reference, 1000)
    biased = lab.measure(StraightThrough(), ELBO(), reference, 1000)
    for group in ("logits", "encoder"):
        assert unbiased[group].relative_bias_low == 0
        assert biased[group].relative_bias_low > 0.02
    exact = lab.measure(Exact(), ELBO(), reference, 1000)["logits"]
    assert exact.relative_bias == exact.variance == 0
    assert exact.cosine == pytest.approx(1)


def test_a_large_space_gets_an_averaged_reference_with_its_error() -> None:
    torch.manual_seed(0)
    lab = bench("latent=2x10")
    average = lab.reference(max_states=10, error=0.05, most=4000)
    assert "LocalExpectation" in average.how
    assert average.error <= 0.05
    exact = lab.exact()
    assert (average.gradient - exact).norm() / exact.norm() < 4 * average.error
    assert number_of_states(lab.model.latent(lab.features)) == 100


def test_the_gaussian_reference_is_pathwise() -> None:
    torch.manual_seed(0)
    lab = bench("estimator=gaussian", "latent.dim=3")
    reference = lab.reference(error=0.1, most=500)
    assert "Pathwise" in reference.how
    measured = lab.measure(Pathwise(), ELBO(), reference, 400)["logits"]
    assert measured.relative_bias_low < 4 * reference.error


def test_warm_up_teaches_the_estimator_and_not_the_model() -> None:
    lab = bench("latent=2x10")
    before = [p.clone() for p in lab.model.parameters()]
    estimator = Reinforce(1, MovingAverage()).double()
    lab.warm_up(estimator, ELBO(), 30)
    assert estimator.baseline.total > 100
    assert not estimator.training
    assert all(torch.equal(a, b) for a, b in zip(before, lab.model.parameters(), strict=True))


def test_warm_up_keeps_off_the_images_that_are_measured() -> None:
    lab = bench("latent=2x10", images=8)
    measured, first, second = lab.x[:2], lab.x[2:5], lab.x[5:]
    seen = []

    class Watching(Reinforce):
        def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
            seen.append(context)
            return super().forward(q, cost, context)

    estimator = Watching(1, MovingAverage()).double()
    Bench(lab.model, measured, others=[first, second]).warm_up(estimator, ELBO(), 3)
    assert all(torch.equal(a, b) for a, b in zip(seen, (first, second, first), strict=True))


def test_evaluations_are_counted() -> None:
    lab = bench("latent=2x10")
    assert lab.cost(RLOO(4), ELBO(), repeats=2)[0] == 4
    assert lab.cost(Exact(), ELBO(), repeats=2)[0] == 100
