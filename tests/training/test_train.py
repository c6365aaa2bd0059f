"""Training on the embedded digits: every estimator, TensorBoard, repeatability, the families."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import ESTIMATORS, SMALL, compose, config, read_rows, run, train
from vi_lab.build import build
from vi_lab.errors import UserError, ViLabError
from vi_lab.training.trainer import hyperparameters


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "local_expectation" else n for n in ESTIMATORS]
)
def test_every_estimator_trains(tmp_path: Path, name: str) -> None:
    metrics = train(tmp_path, f"estimator={name}")
    assert metrics["step"] == 24
    assert all(math.isfinite(value) for value in metrics.values())
    first, last = read_rows(tmp_path)
    assert float(last["train/loss_unrelaxed"]) < float(first["train/loss_unrelaxed"])
    assert float(last["train/reconstruction"]) < 784 * math.log(2)  # what knowing nothing costs
    assert metrics["train/relaxation_gap"] == pytest.approx(metrics["train/loss_unrelaxed"] - metrics["train/loss"])
    assert metrics["test/loss"] == pytest.approx(metrics["test/reconstruction"] + metrics["test/kl"], rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [["latent=bernoulli", "latent.variables=20"], ["estimator=rloo", "latent=gaussian"], ["objective.kl=monte_carlo"],
     ["estimator=reinforce", "objective.kl=monte_carlo"], ["network=conv", "trainer.limit_train_batches=3"],
     ["likelihood=gaussian", "likelihood.learn_scale=true", "data.binarization=none"],
     ["optimizer=sgd", "optimizer.lr=1e-3"],
     ["data.validation=0", "data.test_every_epoch=true"], ["samples=3"],
     ["trainer.precision=bf16-mixed"], ["trainer.precision=bf16-true"], ["trainer.precision=64-true"],
     ["schedule=cosine", "schedule.steps=20"]],
)  # fmt: skip
def test_combinations_train(tmp_path: Path, overrides: list[str]) -> None:
    small = [o for o in SMALL if "network" not in o or "network=conv" not in overrides]
    run(compose(*small, *overrides), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert all(math.isfinite(value) for value in metrics.values())


def test_tensorboard_holds_both_losses_in_one_chart(tmp_path: Path) -> None:
    metrics = train(tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    for tag in ("train/loss", "train/loss_unrelaxed", "train/relaxation_gap", "temperature"):
        assert [e.step for e in events.Scalars(tag)] == [5, 10, 15, 20]
    assert [e.step for e in events.Scalars("val/loss")] == [12, 24]
    assert events.Scalars("test/loss")[-1].value == pytest.approx(metrics["test/loss"])
    assert "custom_scalars__config__" in tags["tensors"]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"unrelaxed (line) to relaxed (band)" in layout
    assert b"train/loss_unrelaxed" in layout


@pytest.mark.parametrize("name", ["gumbel_softmax", "rloo"])
def test_the_same_command_gives_the_same_bits(tmp_path: Path, name: str) -> None:
    torch.manual_seed(123)
    first = train(tmp_path / "a", f"estimator={name}")
    torch.rand(17)  # history must not matter
    second = train(tmp_path / "b", f"estimator={name}")
    assert first == second
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    a, b = (torch.load(tmp_path / f / "checkpoints" / "last.ckpt", weights_only=True) for f in "ab")
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    assert train(tmp_path / "c", f"estimator={name}", "seed=1") != first


def test_the_temperature_follows_the_schedule(tmp_path: Path) -> None:
    train(tmp_path, "schedule=exponential", "schedule.rate=0.1", "schedule.interval=6", "schedule.floor=0.2")
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["estimator.temperature"].item() == pytest.approx(max(0.2, math.exp(-0.1 * 18)))


def test_a_relaxed_estimator_has_a_gap_and_the_others_none(tmp_path: Path) -> None:
    assert train(tmp_path / "a", "estimator=gumbel_softmax")["train/relaxation_gap"] != 0
    for name in ("straight_through", "st_gumbel_softmax", "rloo", "gaussian"):
        assert train(tmp_path / name, f"estimator={name}")["train/relaxation_gap"] == 0


def test_a_diverging_loss_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(ViLabError, match=r"the loss became (?:nan|inf) at step \d+ \(epoch 1, .*lower optimizer\.lr"):
        train(tmp_path, "optimizer=sgd", "optimizer.lr=1e6", "optimizer.weight_decay=1e6")


@pytest.mark.parametrize(("estimator", "temperature"), [("gaussian", False), ("gumbel_softmax", True)])
def test_a_diverging_loss_is_met_with_advice_that_fits(tmp_path: Path, estimator: str, temperature: bool) -> None:
    from vi_lab.training.callbacks import remedy

    _, model = build(config(f"estimator={estimator}"))
    said = remedy(tmp_path, model)
    assert "lower optimizer.lr" in said
    assert ("temperature" in said) is temperature
    assert said.endswith("there is no checkpoint yet")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert remedy(tmp_path, model).endswith(f"{tmp_path}/checkpoints/last.ckpt, from before, is kept")


def test_bad_trainer_arguments_and_constructor_values(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trainer takes no nope"):
        train(tmp_path, "+trainer.nope=1")
    with pytest.raises(UserError, match="LeaveOneOut needs samples=2 or more"):
        build(config("estimator=rloo", "samples=1"))


def test_models_refuse_a_latent_of_another_family() -> None:
    node = config("estimator=gaussian")
    node.latent = config()["latent"]
    with pytest.raises(UserError, match="GaussianVAE needs a Gaussian latent, got Categorical"):
        build(node)


@pytest.mark.parametrize("estimator", ["reinforce_moving_average", "gumbel_softmax"])
def test_watching_the_gradient_does_not_change_the_training(tmp_path: Path, estimator: str) -> None:
    results = []
    for name, extra in (("plain", []), ("watched", ["audit.every_n_steps=5", "audit.samples=40", "audit.batch=2"])):
        (tmp_path / name).mkdir()
        overrides = [*SMALL, f"estimator={estimator}", "latent=2x10", "trainer.max_epochs=1", "figures=false", *extra]
        run(compose(*overrides), tmp_path / name)
        results.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    assert results[0] == results[1]
    events = EventAccumulator(str(tmp_path / "watched"), size_guidance={"scalars": 0}).Reload()
    assert [e.step for e in events.Scalars("audit/variance")] == [5, 10]
    assert all(math.isfinite(e.value) for e in events.Scalars("audit/relative_bias"))


def test_what_was_swept_stands_first_in_the_table() -> None:
    values = compose("data.validation=200", "network=conv")
    table = hyperparameters(values, {"network": "conv", "data.validation": 200, "seed": 0})
    first = ["network", "data.validation", "seed", "estimator", "latent", "temperature", "optimizer.lr"]
    assert [*table][:7] == first
    assert (table["latent"], table["data.validation"]) == ("Categorical", 200)
