"""Likelihoods against `torch.distributions`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as td

from vi_lab import likelihoods


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


LEVELS = torch.arange(256, dtype=torch.float64) / 255


def levels_under(mean: float, log_scale: float) -> torch.Tensor:
    """-log probability of each of the 256 levels of one pixel, (256,), in the dtype of float64."""
    output = torch.tensor([mean, log_scale], dtype=torch.float64).view(1, 1, 2, 1, 1).expand(1, 256, 2, 1, 1)
    return likelihoods.DiscretizedLogistic()(output, LEVELS.view(256, 1, 1, 1))[0]


@pytest.mark.parametrize("mean", [-30.0, -1.0, -0.3, 0.0, 1 / 255, 0.99, 2.5])
@pytest.mark.parametrize("log_scale", [-50.0, -7.0, -3.0, 0.0, 3.0, 15.0])
def test_discretized_logistic_probabilities_sum_to_one_over_the_levels(mean: float, log_scale: float) -> None:
    nats = levels_under(mean, log_scale)
    assert nats.isfinite().all()
    assert (nats > -1e-12).all()
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-10)


def test_discretized_logistic_is_the_logistics_share_of_each_level() -> None:
    mean, scale = 0.2, 0.1
    edges = (2 * torch.arange(1, 256, dtype=torch.float64) - 256) / 255  # between levels, in [-1, 1]
    cumulative = ((edges - mean) / scale).sigmoid()
    expected = torch.cat([cumulative[:1], cumulative.diff(), 1 - cumulative[-1:]])
    torch.testing.assert_close((-levels_under(mean, math.log(scale))).exp(), expected)


def test_discretized_logistic_has_finite_gradients_in_float32_far_from_the_pixel() -> None:
    output = torch.tensor([[-80.0, -9.0], [80.0, -7.0], [0.0, 60.0], [0.5, 3.0]]).view(4, 1, 2, 1, 1).requires_grad_()
    x = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    nats = likelihoods.DiscretizedLogistic()(output.expand(4, 3, 2, 1, 1), x)
    nats.sum().backward()
    assert nats.isfinite().all()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_discretized_logistic_takes_means_first_then_log_scales() -> None:
    likelihood, x = likelihoods.DiscretizedLogistic(), torch.rand(2, 3, 4, 5)
    output = torch.cat([2 * x - 1, torch.full_like(x, -6.0)], 1)[None]
    assert likelihood.planes * 3 == output.shape[2]
    torch.testing.assert_close(likelihood.mean(output)[0], x)
    assert (likelihood(output, x) < likelihood(output, 1 - x)).all()


def test_a_density_of_dequantized_pixels_bounds_the_bits_of_the_levels() -> None:
    """Uniform densities on [0, 1] are 0 nats and 8 bits per dimension, what 256 equal levels take."""
    assert likelihoods.Gaussian.levels == 256
    assert likelihoods.Bernoulli.levels == likelihoods.DiscretizedLogistic.levels == 1
