"""Identities of the importance-weighted family. The contract tests hold each estimator to the exact gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.estimators.toy import ROWS, THRESHOLD, make, posterior, problem, worst
from vi_lab import latents
from vi_lab.estimators import VIMCO, DoublyReparameterized, ImportanceWeighted, Pathwise, StickingTheLanding
from vi_lab.estimators.surrogates import importance_weighted_bound
from vi_lab.estimators.vimco import leave_one_out_bound
from vi_lab.models import VAE
from vi_lab.objectives import ELBO


def test_dreg_equals_iwae_in_mean_and_has_less_variance() -> None:
    torch.manual_seed(0)
    toy = problem("gaussian", "nonlinear")
    iwae, dreg = (toy.draws(e(samples=8))[1] for e in (ImportanceWeighted, DoublyReparameterized))
    difference = iwae.mean(0) - dreg.mean(0)
    standard = ((iwae.var(0) + dreg.var(0)) / ROWS).sqrt()
    assert (difference / standard).abs().max() < THRESHOLD
    assert dreg.var(0).sum() < iwae.var(0).sum()


@pytest.mark.parametrize("beta", [0.0, 0.7, 2.0])
def test_dreg_is_unbiased_whatever_the_weight_of_the_kl(beta: float) -> None:
    """Against the bound of two samples by quadrature: with the factor of beta = 1 it is 16 % off at beta = 0.7."""
    toy, estimator = problem("gaussian", "nonlinear"), DoublyReparameterized(2, beta)
    prior = latents.Gaussian(2).double().prior()

    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(30))
    weight = torch.cartesian_prod(weights / weights.sum(), weights / weights.sum()).prod(-1)
    phi = toy.phi.clone().requires_grad_()
    q = posterior("gaussian", phi[None])
    z = (q.base_dist.loc + q.base_dist.scale * torch.cartesian_prod(nodes, nodes)).unsqueeze(1)  # (N, 1, 2)
    f = toy.f(z, toy.theta[None]) + beta * (q.log_prob(z) - prior.log_prob(z))
    pairs = torch.cartesian_prod(torch.arange(len(z)), torch.arange(len(z)))
    bound = importance_weighted_bound(f[:, 0][pairs].T)
    (exact,) = torch.autograd.grad((weight[pairs].prod(-1) * bound).sum(), phi)

    torch.manual_seed(0)
    rows, theta = toy.phi.expand(ROWS, 2, 2).clone().requires_grad_(), toy.theta.expand(ROWS, -1)
    terms = ELBO("path", beta)(posterior("gaussian", rows), prior, lambda z: toy.f(z, theta), estimator)
    (draws,) = torch.autograd.grad(terms.loss.sum(), rows)
    assert worst(draws, exact) < THRESHOLD
    with pytest.raises(ValueError, match=rf"\(beta={beta}\) needs objective\.beta={beta}, got 1\.0"):
        ELBO("path")(q, prior, lambda z: toy.f(z, toy.theta[None]), estimator)


def test_the_config_gives_dreg_the_weight_of_the_objective() -> None:
    assert make("gaussian_dreg", "objective.beta=0.7").beta == 0.7


def test_one_sample_bounds_are_the_elbo() -> None:
    toy = problem("gaussian", "nonlinear")
    for multi, single in ((ImportanceWeighted(1), Pathwise(1)), (DoublyReparameterized(1), StickingTheLanding(1))):
        results = []
        for estimator in (multi, single):
            single.kl = multi.kl  # the same cost for both
            torch.manual_seed(0)
            results.append(toy.draws(estimator, rows=50))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_sticking_the_landing_has_no_noise_at_the_true_posterior() -> None:
    """f = -log p(x, z) with p(z|x) = q: the path derivative is zero at every sample."""
    phi = torch.tensor([[[0.3, -0.6], [-0.5, 0.4]]], dtype=torch.float64).expand(100, 2, 2).clone().requires_grad_()
    target = posterior("gaussian", phi.detach())
    prior = latents.Gaussian(2).double().prior()
    for kl, quiet in (("path", True), ("monte_carlo", False)):
        estimator = StickingTheLanding(1) if quiet else Pathwise(1)
        terms = ELBO(kl)(
            posterior("gaussian", phi), prior, lambda z: prior.log_prob(z) - target.log_prob(z) + 2.0, estimator
        )
        (gradient,) = torch.autograd.grad(terms.loss.sum(), phi)
        assert (gradient.abs().max() < 1e-12) == quiet
        torch.testing.assert_close(terms.loss.detach(), torch.full((100,), 2.0, dtype=torch.float64))


def test_the_bound_tightens_with_samples() -> None:
    torch.manual_seed(0)
    toy = problem("categorical", "nonlinear")
    bounds = [toy.exact(VIMCO(samples))[0] for samples in (2, 3, 4)]
    assert bounds[0] > bounds[1] > bounds[2]


def test_vimco_with_three_samples_matches_enumeration() -> None:
    torch.manual_seed(0)
    toy, estimator = problem("categorical", "nonlinear"), VIMCO(3)
    for draws, exact in zip(toy.draws(estimator), toy.exact(estimator), strict=True):
        assert worst(draws, exact) < THRESHOLD


def test_leave_one_out_bound_by_hand() -> None:
    log_w = torch.tensor([[0.2], [-1.0], [0.7]], dtype=torch.float64)
    expected = math.log((math.exp(-0.15) + math.exp(-1.0) + math.exp(0.7)) / 3)  # the first: (-1.0 + 0.7) / 2 = -0.15
    assert leave_one_out_bound(log_w)[0].item() == pytest.approx(expected)
    changed = log_w.clone()
    changed[0] = 9.0
    assert leave_one_out_bound(changed)[0].item() == pytest.approx(expected)  # does not see its own sample


def test_bound_is_stable() -> None:
    cost = torch.tensor([[1e4], [1e4 + 1]], dtype=torch.float64)
    assert importance_weighted_bound(cost).item() == pytest.approx(1e4 - math.log((1 + math.exp(-1)) / 2))


def test_estimators_made_for_one_kl_refuse_another() -> None:
    latent = latents.Gaussian(2)
    with pytest.raises(ValueError, match=r"ImportanceWeighted needs objective\.kl=monte_carlo, got analytic"):
        VAE(latent, None, None, None, ELBO("analytic"), ImportanceWeighted(2))
