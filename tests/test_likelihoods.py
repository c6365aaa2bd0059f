"""Likelihoods against `torch.distributions`."""

from __future__ import annotations

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
