"""Runs that differ in numbers only, trained as one: weights of shape (N, ...), every product batched over the N runs.

Each run keeps its own seed, learning rate and temperature, and draws what it would draw alone. `torch.func.vmap`
batches `VAE.losses` as it stands, so that nothing of a model or an estimator is written twice. Made for GPUs, where one
small model leaves most of the device idle; a CPU gains next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from vi_lab.models import VAE
from vi_lab.noise import Tape
from vi_lab.seeding import seed_noise


class _Losses(nn.Module):
    """`VAE.losses` as the call of a module, which `functional_call` asks for."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.losses(x)


def _settings(model: VAE) -> set[tuple[str, object]]:
    """What a model's modules hold besides tensors, but for the seed: ("estimator.samples", 4), ..."""
    return {
        (f"{path}.{key}".lstrip("."), value)
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "seed" and isinstance(value, (bool, int, float, str))
    }


class Stack:
    """N models as one.

    Args:
        models: alike but for their seeds and the values of parameters and buffers; on the device where they train.

    Raises:
        TypeError: their estimator takes a derivative within its step.
        ValueError: they differ in a setting, which all would take from the first.
    """

    def __init__(self, models: Sequence[VAE]) -> None:
        for model in models[1:]:
            if differing := {name for name, _ in _settings(model) ^ _settings(models[0])}:
                raise ValueError(f"models that differ in {', '.join(sorted(differing))} cannot be stacked")
        if models[0].estimator.differentiates:
            name = type(models[0].estimator).__name__
            raise TypeError(f"{name} takes a derivative within its step, so its runs cannot be stacked")
        self.seeds = [model.seed for model in models]
        self.device = models[0].device
        self._losses = _Losses(models[0])

        def stack(named: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {f"model.{name}": torch.stack([tensors[name].detach() for tensors in named]) for name in named[0]}

        fixed = [name for name, parameter in models[0].named_parameters() if not parameter.requires_grad]
        self.parameters = stack([{n: p for n, p in m.named_parameters() if n not in fixed} for m in models])
        self.buffers = stack([{**{n: m.get_parameter(n) for n in fixed}, **dict(m.named_buffers())} for m in models])
        self.tape = Tape()
        self.noise: list[Tensor] = []

    def record(self, x: Tensor) -> None:
        """Find out what a step draws, from one run's batch (B, *shape); moves nothing."""
        parameters = {name: tensor[0] for name, tensor in self.parameters.items()}
        buffers = {name: tensor[0].clone() for name, tensor in self.buffers.items()}
        with self.tape.record():
            functional_call(self._losses, {**parameters, **buffers}, (x,))
        self.noise = [tensor.new_empty(len(self.seeds), *tensor.shape) for tensor in self.tape.tensors]

    def draw(self, *values: int) -> None:
        """Draw the noise of each run's next step: what `seed_noise(device, seed, *values)` gives it alone."""
        for run, seed in enumerate(self.seeds):
            seed_noise(self.device, seed, *values)
            self.tape.draw([tensor[run] for tensor in self.noise])

    def gradients(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of all runs at once, with the noise that was drawn; moving averages move.

        Args:
            x: (N, B, *shape) each run's batch.

        Returns:
            the gradients, under the names of `parameters`; and what each run logs, (N,) each.
        """

        def losses(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, noise: list[Tensor]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            with self.tape.play(noise):
                return functional_call(self._losses, {**parameters, **buffers}, (x,))

        batched = vmap(grad(losses, has_aux=True), randomness="error")
        return batched(self.parameters, self.buffers, x, self.noise)


class StackedAdam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with a learning rate per run.

    Args:
        parameters: (N, ...) each; moved in place.
        lr: (N,).
        betas, eps: as in `torch.optim.Adam`.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        lr: Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters, self.lr, self.betas, self.eps = parameters, lr, betas, eps
        self.steps = torch.zeros((), dtype=torch.float64, device=lr.device)  # 1 - beta^t takes its digits
        self.means = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        """One step along the gradients, (N, ...) each."""
        self.steps += 1  # a tensor, so that a captured graph counts too
        decay, decay_of_squares = self.betas
        size = (self.lr / (1 - decay**self.steps)).to(self.lr)  # (N,)
        scale = (1 - decay_of_squares**self.steps).sqrt()
        for name, gradient in gradients.items():
            mean = self.means[name].lerp_(gradient, 1 - decay)
            square = self.squares[name].mul_(decay_of_squares).addcmul_(gradient, gradient, value=1 - decay_of_squares)
            change = mean / (square.sqrt().div_(scale).add_(self.eps))
            self.parameters[name].sub_(change.mul_(size.view(-1, *[1] * (gradient.ndim - 1))))
