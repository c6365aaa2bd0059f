"""Stacked training: each run of a stack takes the steps that it takes alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support import ESTIMATORS, config
from vi_lab.build import build
from vi_lab.models import VAE
from vi_lab.seeding import seed_noise
from vi_lab.training.stacked import Stack, StackedAdam

KINDS = ("gaussian_dreg", "gumbel_softmax", "nvil", "rao_blackwell_reinforce", "vq")
NOT_STACKED = ("muprop", "rebar", "relax")
RATES = (1e-3, 3e-3, 1e-2)
STEPS = 3


def models(name: str) -> list[VAE]:
    made = [build(config(f"estimator={name}", f"seed={seed}"))[1].train() for seed in range(len(RATES))]
    for model, temperature in zip(made, (0.5, 1.0, 2.0), strict=True):
        if isinstance(getattr(model.estimator, "temperature", None), Tensor):
            model.estimator.temperature.fill_(temperature)
    return made


def batches() -> Tensor:
    return torch.rand(STEPS, len(RATES), 6, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round()


def stacked(made: list[VAE], rates: tuple[float, ...], x: Tensor) -> tuple[Stack, list[dict[str, Tensor]]]:
    """The stack after its steps on x (STEPS, N, B, *shape), and what each step logs."""
    stack = Stack(made)
    adam, logged = StackedAdam(stack.parameters, torch.tensor(rates)), []
    for step in range(STEPS):
        if step == 0:
            stack.record(x[0, 0])
        stack.draw(7, step)
        gradients, values = stack.gradients(x[step])
        adam.step(gradients)
        logged.append(values)
    return stack, logged


@pytest.mark.parametrize("name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in ESTIMATORS])
def test_each_run_of_a_stack_takes_its_own_steps(name: str) -> None:
    """Own seed, learning rate and temperature: losses, weights and moving averages after three steps of Adam."""
    made = models(name)
    if name in NOT_STACKED:
        with pytest.raises(TypeError, match="takes a derivative within its step, so its runs cannot be stacked"):
            Stack(made)
        return
    x = batches()
    stack, logged = stacked(made, RATES, x)
    for run, (model, rate) in enumerate(zip(made, RATES, strict=True)):
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for step in range(STEPS):
            seed_noise(model.device, model.seed, 7, step)
            loss, values = model.losses(x[step, run])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert list(values) == list(logged[step])
            for key, value in values.items():
                torch.testing.assert_close(logged[step][key][run], value, rtol=1e-4, atol=1e-3)
        alone = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for key, tensor in {**stack.parameters, **stack.buffers}.items():
            # a gradient near 0 may round to either sign, by which Adam's first steps go
            assert (tensor[run] - alone[key.removeprefix("model.")]).abs().mean() < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_a_stack_of_one_is_that_run_of_any_stack(name: str) -> None:
    """To the last bit."""
    x = batches()
    whole, _ = stacked(models(name), RATES, x)
    for run, rate in enumerate(RATES):
        one, _ = stacked(models(name)[run : run + 1], (rate,), x[:, run : run + 1])
        for key, tensor in {**one.parameters, **one.buffers}.items():
            assert torch.equal(tensor[0], {**whole.parameters, **whole.buffers}[key][run]), key


def test_models_that_differ_in_a_setting_are_refused() -> None:
    made = [build(config("estimator=rloo", f"estimator.samples={samples}"))[1] for samples in (2, 4)]
    with pytest.raises(ValueError, match=r"models that differ in estimator\.samples cannot be stacked"):
        Stack(made)


def test_what_is_not_learned_does_not_move() -> None:
    made = models("gumbel_softmax")
    for model in made:
        model.encoder.requires_grad_(False)
    stack, _ = stacked(made, RATES, batches())
    assert not any("encoder" in name for name in stack.parameters)
    for name, weight in made[1].encoder.named_parameters():
        assert torch.equal(stack.buffers[f"model.encoder.{name}"][1], weight)


def test_adam_is_torchs() -> None:
    """In float64, over as many steps as the bias of its averages matters."""
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 5, dtype=torch.float64), torch.randn(300, 3, 5, dtype=torch.float64)
    rates = torch.tensor(RATES, dtype=torch.float64)
    adam = StackedAdam({"w": start.clone()}, rates)
    for gradient in gradients:
        adam.step({"w": gradient})
    for run, rate in enumerate(RATES):
        weight = start[run].clone().requires_grad_()
        alone = torch.optim.Adam([weight], lr=rate)
        for gradient in gradients:
            weight.grad = gradient[run]
            alone.step()
        torch.testing.assert_close(adam.parameters["w"][run], weight.detach(), rtol=1e-12, atol=1e-12)
