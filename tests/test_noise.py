"""What estimators draw: the laws, and that a tape draws ahead what a step would have drawn itself."""

from __future__ import annotations

import math

import pytest
import torch

from tests.estimators.toy import PHI, make, make_config, posterior
from tests.support import ESTIMATORS
from vi_lab import noise
from vi_lab.distributions import sample
from vi_lab.estimators.base import Estimate

DRAWS = 1_000_000
THRESHOLD = 5.0  # standard errors: a false alarm in 1 of 1.7 million comparisons


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("draw", "mean", "variance"),
    [(noise.uniform, 0.5, 1 / 12), (noise.exponential, 1.0, 1.0), (noise.normal, 0.0, 1.0)],
)
def test_mean_and_variance(draw, mean: float, variance: float, dtype: torch.dtype) -> None:
    x = draw((DRAWS,), torch.zeros((), dtype=dtype), torch.Generator().manual_seed(0)).double()
    fourth = (x - mean).pow(4).mean()
    assert abs(x.mean() - mean) < THRESHOLD * math.sqrt(variance / DRAWS)
    assert abs((x - mean).square().mean() - variance) < THRESHOLD * math.sqrt((fourth - variance**2) / DRAWS)


def test_exponentials_are_right_in_both_tails() -> None:
    """The shares below 2^-14, where float32 uniforms have few values left, and above 10."""
    x = noise.exponential((10 * DRAWS,), torch.zeros(()), torch.Generator().manual_seed(0))
    for seen, p in [((x < 2**-14).sum(), -math.expm1(-(2**-14))), ((x > 10).sum(), math.exp(-10))]:
        wanted = 10 * DRAWS * p
        assert abs(seen - wanted) < THRESHOLD * math.sqrt(wanted)
    assert x.min() > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_tape_draws_ahead_what_the_estimator_draws(name: str) -> None:
    estimator, kind = make(name).eval(), make_config(name)["latent"]["_target_"].rpartition(".")[2].lower()
    phi = torch.randn(5, *PHI[kind].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, x = posterior(kind, phi.requires_grad_()), phi.detach().flatten(1)

    def estimate() -> Estimate:
        return estimator(q, lambda z: z.flatten(2).square().sum(-1), x)

    estimator.materialize(q, x)
    tape = noise.Tape()
    with tape.record():
        estimate()
    torch.manual_seed(3)
    expected = estimate()
    torch.manual_seed(3)
    tape.draw()
    torch.manual_seed(4)
    with tape.play(tape.tensors):
        played = estimate()
    assert torch.equal(played.cost, expected.cost)
    assert torch.equal(played.loss, expected.loss)


def test_a_tape_refuses_another_computation() -> None:
    q = posterior("categorical", torch.zeros(2, 3, 4))
    tape = noise.Tape()
    with tape.record():
        sample(q, 2)
    with tape.play(tape.tensors), pytest.raises(RuntimeError, match="draw 1 of the step, uniform of shape"):
        sample(q, 3)
    with tape.play(tape.tensors), pytest.raises(RuntimeError, match="draw 2 of the step"):
        (sample(q, 2), sample(q, 2))
    sample(q, 3)  # and nothing is left behind
