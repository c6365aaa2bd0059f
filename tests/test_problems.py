"""Toy problems: their exact values, closed forms of estimators' variances and biases, and that every estimator trains.

At q(b = 1) = p the cost (b - t)^2 takes f(0) = t^2 and f(1) = (1 - t)^2; D = f(1) - f(0) = 1 - 2t. The exact gradient
for the logit is D p (1 - p).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.estimators.toy import PAIRS, THRESHOLD, worst
from tests.support import compose, composed, read_rows, refusal, run
from vi_lab.audit import Bench
from vi_lab.build import build
from vi_lab.comparison.compare import compare
from vi_lab.comparison.tables import explanation
from vi_lab.config import check_overrides
from vi_lab.distributions import enumerate_support
from vi_lab.latents import Bernoulli, Categorical, Gaussian
from vi_lab.models import ExpectedCost
from vi_lab.problems import MAX_STATES, Polynomial, Quadratic, QuadraticProgram, ToyCost, discrete_latent
from vi_lab.runs.files import Status
from vi_lab.runs.run import Run

TRAIN = ["accelerator=cpu", "threads=1", "figures=false", "logger=[]"]
DISCRETE = [(name, kind) for name, kind in PAIRS if kind in ("bernoulli", "categorical")]
LATENTS = {"bernoulli": ["problem=rebar"], "categorical": ["problem=rebar", "latent=categorical", "latent.variables=2",
                                                          "latent.classes=3"]}  # fmt: skip


def make(*overrides: str) -> ExpectedCost:
    """A fresh toy problem, in float64."""
    model = build(compose(*overrides))[1].double()
    assert isinstance(model, ExpectedCost)
    return model


def bench(model: ExpectedCost) -> Bench:
    return Bench(model, torch.zeros(1, 1, 1, 1, dtype=torch.float64), beta=0.0)


def enumerated(cost: ToyCost, features: Tensor, latent: Bernoulli | Categorical) -> Tensor:
    return ToyCost.expected(cost, latent(features))


# --- the problems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [Polynomial(0.3, 3.0), Polynomial(0.45, 1.5, instance=4)])
@pytest.mark.parametrize("latent", [Bernoulli(3), Categorical(3, 4)])
def test_the_short_way_to_an_expected_cost_is_the_sum_over_states(
    cost: Polynomial, latent: Bernoulli | Categorical
) -> None:
    cost.begin(latent)
    features = torch.randn(2, latent.feature_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cost.expected(latent(features)), enumerated(cost, features, latent))


@pytest.mark.parametrize("t", [0.45, 0.499])
@pytest.mark.parametrize("logit", [0.0, 1.0])
def test_the_gradient_of_rebars_toy(t: float, logit: float) -> None:
    lab = bench(make("problem=rebar", f"likelihood.target={t}", f"likelihood.start={logit}"))
    p = 1 / (1 + math.exp(-logit))
    assert lab.reference().gradient.item() == pytest.approx((1 - 2 * t) * p * (1 - p), rel=1e-12)
    assert lab.exact().item() == pytest.approx((1 - 2 * t) * p * (1 - p), rel=1e-9)


def test_the_values_of_classes_go_from_0_to_1_and_are_the_instances() -> None:
    values = {}
    for instance in (0, 0, 1):
        cost = Polynomial(instance=instance)
        cost.begin(Categorical(128, 4))
        assert cost.classes is not None
        assert (cost.classes.min(), cost.classes.max()) == (0, 1)
        values.setdefault(instance, []).append(cost.classes)
    assert torch.equal(*values[0])
    assert not torch.equal(values[0][0], values[1][0])


def test_the_random_quadratic_is_drawn_as_published() -> None:
    cost = Quadratic(instance=2)
    logits = cost.begin(Categorical(1, 5))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)  # Q, b and the logits, in this order
    root, vector, expected = torch.randn(5, 5), torch.randn(5), torch.randn(5)
    torch.random.set_rng_state(state)
    torch.testing.assert_close(cost.matrix, root.T @ root)
    assert torch.equal(cost.vector, vector)
    assert torch.equal(logits, expected)
    z = torch.eye(5)[:, None]
    direct = torch.stack([row @ (root.T @ root) @ row + vector @ row for row in torch.eye(5)])
    torch.testing.assert_close(cost(z, z)[:, 0], direct)


def test_the_quadratic_program() -> None:
    cost = QuadraticProgram([0.7, 0.2, 0.1])
    latent = Categorical(1, 3)
    logits = cost.begin(latent)
    torch.testing.assert_close(logits.softmax(0), torch.tensor([0.7, 0.2, 0.1]))
    q = latent(logits[None])
    states = enumerate_support(q)[:, 0]
    matrix = torch.tensor([[math.exp(-2 * abs(i - j)) for j in range(3)] for i in range(3)])
    values = torch.stack([(z - 1 / 3) @ matrix @ (z - 1 / 3) for z in states])
    torch.testing.assert_close(cost.expected(q)[0], torch.tensor([0.7, 0.2, 0.1]) @ values)
    with pytest.raises(ValueError, match="wanted 4, got 3"):
        cost.begin(Categorical(1, 4))


def test_too_many_states_are_refused() -> None:
    cost, latent = Quadratic(), Categorical(20, 4)
    with pytest.raises(ValueError, match=f"{MAX_STATES:,}"):
        cost.expected(latent(cost.begin(latent)[None]))


@pytest.mark.parametrize("latent", [Gaussian(2), Bernoulli(3, layers=2), Bernoulli(3, values="signs")])
def test_other_latents_are_refused(latent: Bernoulli | Gaussian) -> None:
    with pytest.raises(TypeError, match="a toy problem needs one layer"):
        discrete_latent(latent)


# --- closed forms, measured by the audit ------------------------------------------------------------------------------


def variances(t: float, logit: float) -> dict[str, float]:
    """Of one draw, by estimator; with m the larger of p and 1 - p, where u in [0, 1] is what is drawn:

    REINFORCE f(b) (b - p); leave-one-out of two samples D / 2 where they differ; ARM D (u - 1/2) for u > m and twice;
    DisARM D m / 2 with probability 2 (1 - m); straight-through 2 (b - t) p (1 - p).
    """
    p = 1 / (1 + math.exp(-logit))
    m, d, s = max(p, 1 - p), 1 - 2 * t, p * (1 - p)
    exact = d * s
    return {
        "reinforce": p * (1 - t) ** 4 * (1 - p) ** 2 + (1 - p) * t**4 * p**2 - exact**2,
        "rloo": d**2 * s / 2 - exact**2,
        "arm": 2 * d**2 / 3 * (1 / 8 - (m - 0.5) ** 3) - exact**2,
        "disarm": d**2 * m**2 * (1 - m) / 2 - exact**2,
        "straight_through": 4 * s**3,
        "exact": 0.0,
        "local_expectation": 0.0,
    }


@pytest.mark.parametrize("name", variances(0.45, 1.0))
@pytest.mark.parametrize(("t", "logit"), [(0.45, 1.0), (0.499, 0.0)])
def test_variance_and_bias_are_the_closed_forms(name: str, t: float, logit: float) -> None:
    samples = ["samples=2"] if name == "rloo" else []
    model = make("problem=rebar", f"likelihood.target={t}", f"likelihood.start={logit}", f"estimator={name}", *samples)
    lab = bench(model)
    torch.manual_seed(0)
    draws = 40_000
    measured = lab.measure(model.estimator.eval(), model.objective, lab.reference(), draws, encoder=False)["logits"]
    expected = variances(t, logit)[name]
    # of a two-point variable at worst: |g - E g|^2 has a standard deviation below 2 of its mean here
    assert measured.variance == pytest.approx(expected, rel=4 * 2 / draws**0.5, abs=1e-15)
    p = 1 / (1 + math.exp(-logit))
    bias = p * (1 - p) * (2 * p - 1) if name == "straight_through" else 0.0
    relative = bias / ((1 - 2 * t) * p * (1 - p))
    width = 4 * (expected / draws) ** 0.5 / ((1 - 2 * t) * p * (1 - p))
    assert measured.relative_bias == pytest.approx(relative, abs=width + 1e-9)
    assert measured.exact_squared_norm == pytest.approx(((1 - 2 * t) * p * (1 - p)) ** 2, rel=1e-9)


def test_the_rescaled_bias_is_of_the_direction_alone() -> None:
    """ReinMax is exact for quadratic costs; straight-through is not, by the sum over its states."""
    cost_of = ("problem=quadratic", "latent.classes=4")
    model = make(*cost_of, "estimator=straight_through")
    lab, logits = bench(model), model.encoder.logits.detach()
    p = logits.softmax(0)
    matrix, vector = model.cost.matrix.double(), model.cost.vector.double()
    slopes = torch.stack([(2 * matrix @ z + vector) for z in torch.eye(4, dtype=torch.float64)])
    each = slopes @ (p.diag() - torch.outer(p, p))  # the gradient that each state gives
    mean = p @ each
    exact = lab.reference().gradient[0]
    scale = exact.norm() / mean.norm()
    torch.manual_seed(0)
    measured = lab.measure(model.estimator, model.objective, lab.reference(), 40_000, encoder=False)["logits"]
    squared = (scale * mean - exact).square().sum().item()
    assert abs(measured.squared_bias_rescaled - squared) < 5 * measured.squared_bias_rescaled_error
    assert measured.squared_bias_rescaled_error < 0.05 * squared
    variance = (p @ (each - mean).square()).sum() * scale**2
    assert measured.variance_rescaled == pytest.approx(variance.item(), rel=0.05)
    assert measured.exact_squared_norm == pytest.approx(exact.square().sum().item())
    lab = bench(model := make(*cost_of, "estimator=reinmax"))
    unbiased = lab.measure(model.estimator, model.objective, lab.reference(), 40_000, encoder=False)["logits"]
    assert unbiased.squared_bias_rescaled < 5 * unbiased.squared_bias_rescaled_error


# --- every estimator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), DISCRETE)
def test_every_unbiased_estimator_has_the_exact_gradient_in_mean(name: str, kind: str) -> None:
    model = make(*LATENTS[kind], f"estimator={name}", "likelihood.target=0.3", "likelihood.start=0.4")
    lab = bench(model)
    torch.manual_seed(0)
    draws = torch.cat(list(lab.draws(model.estimator.eval(), model.objective, 4000)))
    assert draws.isfinite().all()
    if model.estimator.unbiased and not model.estimator.multi_sample:
        assert worst(draws.flatten(1), lab.reference().gradient.flatten()) < THRESHOLD


@pytest.mark.parametrize(("name", "kind"), DISCRETE)
def test_every_unbiased_estimator_finds_the_best_state(name: str, kind: str) -> None:
    """With p = 2 and t = 0.2 that is 0 for bits and the class nearest to 0.2 for classes."""
    model = make(*LATENTS[kind], f"estimator={name}", "likelihood.target=0.2")
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    x = torch.zeros(16, 1, 1, 1, dtype=torch.float64)
    torch.manual_seed(0)
    before = model.expected(model.posterior(x[:1])).item()
    for _ in range(120):
        optimizer.zero_grad()
        loss, values = model.losses(x)
        loss.backward()
        optimizer.step()
    assert values.keys() >= {"loss", "loss_unrelaxed", "expected_cost", "probability_0"}
    assert not values.keys() & {"reconstruction", "kl"}
    after = model.expected(model.posterior(x[:1])).item()
    classes = torch.tensor([0.0, 1.0]) if model.cost.classes is None else model.cost.classes
    best = (classes - 0.2).square().min().item()
    assert math.isfinite(after)
    if model.estimator.unbiased:
        assert after - best < 0.2 * (before - best)


# --- runs ------------------------------------------------------------------------------------------------------------


def toy_run(folder: Path, *overrides: str) -> dict[str, float]:
    run(compose(*TRAIN, *overrides), folder)
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_is_evaluated_by_the_exact_cost(tmp_path: Path) -> None:
    metrics = toy_run(tmp_path, "problem=rebar", "estimator=rloo", "data.steps=20", "trainer.max_epochs=2")
    p = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]["encoder.logits"].sigmoid()
    exact = (p * 0.501**2 + (1 - p) * 0.499**2).item()
    assert metrics["val/loss"] == metrics["test/loss"] == pytest.approx(exact, rel=1e-6)
    assert metrics["step"] == 40
    assert not any("nll" in name or "kl" in name for name in metrics)


def test_the_variance_of_the_gradient_is_in_the_history(tmp_path: Path) -> None:
    options = ["problem=rebar", "estimator=reinforce", "data.steps=20", "trainer.max_epochs=2", "optimizer.lr=1e-5",
               "audit.every_n_steps=10", "audit.samples=4000"]  # fmt: skip
    metrics = toy_run(tmp_path, *options)
    rows = read_rows(tmp_path)
    for row in rows:
        assert float(row["audit/variance"]) == pytest.approx(variances(0.499, 0.0)["reinforce"], rel=0.02)
        assert float(row["audit/reference_error"]) == 0
    assert not any(name.startswith("audit/") for name in metrics)


def test_a_run_draws_its_cost_and_its_variance(tmp_path: Path) -> None:
    toy_run(tmp_path, "experiment=toy_rebar", "data.steps=10", "trainer.max_epochs=2", "audit.every_n_steps=10",
            "audit.samples=100", "figures=true")  # fmt: skip
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"expected_cost.png", "gradient_variance.png"}
    Status(tmp_path).write("completed")
    first, *_ = explanation(compare([Run(tmp_path)]))
    assert first.startswith("Expected cost, lower is better")


def test_a_toy_has_no_likelihood_to_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    toy_run(tmp_path, "problem=quadratic", "estimator=exact", "data.steps=2", "trainer.max_epochs=1")
    capsys.readouterr()
    assert "exact already" in refusal(capsys, "evaluate", str(tmp_path))


def test_a_problem_brings_its_latent_to_the_audit_too() -> None:
    (values,) = check_overrides("audit", ["problem=rebar"], multirun=False)
    assert (values["latent"]["_target_"], values["audit"]["batch"]) == ("vi_lab.latents.Bernoulli", 1)
    (values,) = check_overrides("audit", [], multirun=False)
    assert (values["latent"]["variables"], values["latent"]["classes"], values["audit"]["batch"]) == (4, 8, 16)
    assert composed("problem=quadratic", "latent=bernoulli", "latent.variables=3")["latent"]["variables"] == 3
