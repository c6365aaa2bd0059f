"""Stacked training: each run of a stack takes the steps that it takes alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support import ESTIMATORS, config
from vi_lab.build import build
from vi_lab.errors import UserError
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
    """The stack after its steps on x (STEPS, N, B, *shape), and what each step logs; it has two rows too many."""
    stack, logged = Stack(made, len(made) + 2), []
    optimizers = [torch.optim.Adam(model.parameters(), lr=rate) for model, rate in zip(made, rates, strict=True)]
    adam = StackedAdam([*stack.parameters.values()], optimizers)
    for step in range(STEPS):
        stack.draw(x[step], 7, step)
        losses, values = stack.losses(x[step])
        adam.zero_grad()
        losses.sum().backward()
        adam.step()
        logged.append(values)
    return stack, logged


@pytest.mark.parametrize("name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in ESTIMATORS])
def test_each_run_of_a_stack_takes_its_own_steps(name: str) -> None:
    """Own seed, learning rate and temperature: losses, weights and moving averages after three steps of Adam."""
    if name in NOT_STACKED:
        with pytest.raises(UserError, match="takes a derivative within its step, so its runs cannot be stacked"):
            Stack(models(name))
        return
    x = batches()
    stack, logged = stacked(models(name), RATES, x)
    for run, (model, rate) in enumerate(zip(models(name), RATES, strict=True)):
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
            assert (tensor[run] - alone[key]).abs().mean() < 1e-4


def test_models_that_differ_in_a_setting_are_refused() -> None:
    made = [build(config("estimator=rloo", f"estimator.samples={samples}"))[1] for samples in (2, 4)]
    with pytest.raises(UserError, match=r"models that differ in estimator\.samples cannot be stacked"):
        Stack(made)


def test_what_is_not_learned_does_not_move() -> None:
    made = models("gumbel_softmax")
    for model in made:
        model.encoder.requires_grad_(False)
    stack, _ = stacked(made, RATES, batches())
    assert not any("encoder" in name for name in stack.parameters)
    for name, weight in made[1].encoder.named_parameters():
        assert torch.equal(stack.buffers[f"encoder.{name}"][1], weight)


def test_each_model_stands_where_its_run_is() -> None:
    made = models("nvil")
    stack, _ = stacked(made, RATES, batches())
    for run, model in enumerate(made):
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            assert torch.equal({**stack.parameters, **stack.buffers}[name][run], tensor)


def test_a_step_that_cannot_be_batched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = VAE.losses

    def reading(model: VAE, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x.sum().item()
        return losses(model, x)

    monkeypatch.setattr(VAE, "losses", reading)
    stack = Stack(models("gumbel_softmax"))
    stack.draw(batches()[0], 7)
    with pytest.raises(UserError, match=r"the step cannot be batched over runs \(vmap: .*; leave stack= out"):
        stack.losses(batches()[0])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs(kind: type[torch.optim.Adam], decay: float) -> None:
    """In float64, over as many steps as the bias of its averages matters; also where it goes on from a state."""
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 5, dtype=torch.float64), torch.randn(300, 3, 5, dtype=torch.float64)

    def own() -> list[torch.optim.Adam]:
        weights = [row.clone().requires_grad_() for row in start]
        return [
            kind([w], lr=rate, betas=(0.8, 0.99), weight_decay=decay) for w, rate in zip(weights, RATES, strict=True)
        ]

    alone, optimizers = own(), own()
    stack = nn.Parameter(start.clone())
    for step, gradient in enumerate(gradients):
        if step in (0, 100):  # the second time with the state of the first
            adam = StackedAdam([stack], optimizers)
        stack.grad = gradient
        adam.step()
        optimizers = [adam.share(run) for run in range(len(optimizers))]
        for optimizer, row in zip(alone, gradient, strict=True):
            optimizer.param_groups[0]["params"][0].grad = row
            optimizer.step()
    for run, optimizer in enumerate(alone):
        (weight,) = optimizer.param_groups[0]["params"]
        torch.testing.assert_close(stack[run], weight, rtol=1e-12, atol=1e-12)
        state, shared = optimizer.state[weight], next(iter(optimizers[run].state.values()))
        assert state.keys() == shared.keys()
        for name, value in state.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-12, atol=1e-12)
