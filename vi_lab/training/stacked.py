"""Runs that differ in numbers only, trained as one: weights of shape (N, ...), every product batched over the N runs.

Each run keeps its own seed, learning rate and temperature, and draws what it would draw alone. `torch.func.vmap`
batches `VAE.losses` as it stands, so that nothing of a model or an estimator is written twice. Made for GPUs, where one
small model leaves most of the device idle; a CPU gains next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from vi_lab.errors import UserError, one_line
from vi_lab.models import VAE
from vi_lab.noise import Tape
from vi_lab.seeding import seed_noise

T = TypeVar("T")


class _Losses(nn.Module):
    """`VAE.losses` as the call of a module, which `functional_call` asks for."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.losses(x)


class _Differentiated(torch.autograd.Function):
    """Losses (N,) whose gradients are known. They are taken within vmap: hooks of an estimator on samples, as DREG has
    them, are not called from without."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = outer  # (N,)
        return None, None, *(one * weights.view(-1, *[1] * (one.ndim - 1)) for one in ctx.gradients)


def _settings(model: VAE) -> set[tuple[str, object]]:
    """What a model's modules hold besides tensors, but for the seed: ("estimator.samples", 4), ..."""
    return {
        (f"{path}.{key}".lstrip("."), value)
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "seed" and isinstance(value, (bool, int, float, str))
    }


class Stack:
    """N models as one. From then on their own weights and buffers are views of the stack's, so that each can be
    evaluated, saved and drawn as it stands after the last step.

    Args:
        models: alike but for their seeds and the values of parameters and buffers; on the device where they train.
        rows: N, where it is to be more than there are models: the rest repeats the last one, and stands still. So the
            last digits of a run, which depend on N by how a library sums, do not depend on how many runs are left.

    Raises:
        UserError: they differ in a setting, which all would take from the first; or their estimator takes a derivative
            within its step.
    """

    def __init__(self, models: Sequence[VAE], rows: int = 0) -> None:
        for model in models[1:]:
            if differing := {name for name, _ in _settings(model) ^ _settings(models[0])}:
                raise UserError(f"models that differ in {', '.join(sorted(differing))} cannot be stacked")
        if models[0].estimator.differentiates:
            name = type(models[0].estimator).__name__
            raise UserError(f"{name} takes a derivative within its step, so its runs cannot be stacked")
        self.rows = max(rows, len(models))
        self.seeds = [model.seed for model in models]
        self.device = models[0].device
        self._losses = _Losses(models[0])
        learned = {name for name, parameter in models[0].named_parameters() if parameter.requires_grad}
        tensors = [{**dict(model.named_parameters()), **dict(model.named_buffers())} for model in models]
        self.parameters: dict[str, nn.Parameter] = {}
        """(N, ...) each; what is learned."""
        self.buffers: dict[str, Tensor] = {}
        """(N, ...) each; the rest."""
        for name in tensors[0]:
            stacked = torch.stack(padded([own[name].detach() for own in tensors], self.rows))
            for own, row in zip(tensors, stacked):  # noqa: B905 (the rest has no model)
                own[name].data = row
            if name in learned:
                self.parameters[name] = nn.Parameter(stacked)
            else:
                self.buffers[name] = stacked
        self._drawn: dict[torch.Size, tuple[Tape, list[Tensor]]] = {}

    def draw(self, x: Tensor, *values: int) -> None:
        """Draw the noise of each run's step: what `seed_noise(device, seed, *values)` gives it alone.

        Args:
            x: (M, B, *shape) the batches of the M runs.
            values: of the step.
        """
        if x.shape not in self._drawn:
            self._drawn[x.shape] = self._record(x[0])
        tape, noise = self._drawn[x.shape]
        for run, seed in enumerate(self.seeds):
            seed_noise(self.device, seed, *values)
            tape.draw([tensor[run] for tensor in noise])
        for tensor in noise:
            tensor[len(x) :] = tensor[len(x) - 1]

    def losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of all runs with the noise that was drawn; moving averages move.

        Args:
            x: (M, B, *shape) the batches of the M runs.

        Returns:
            (M,) to differentiate, where no run's weights reach another's loss; and what each run logs, (M,) each.

        Raises:
            UserError: the step cannot be batched.
        """
        tape, noise = self._drawn[x.shape]
        runs, idle = len(x), self.rows - len(x)
        if idle:
            x = torch.cat([x, x[-1:].expand(idle, *x.shape[1:])])

        def losses(
            parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor, noise: list[Tensor]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            with tape.play(noise):
                return self._call({**parameters, **buffers}, x)

        batched = vmap(grad_and_value(losses, has_aux=True), randomness="error")
        try:
            gradients, (found, logged) = batched(self.parameters, self.buffers, x, noise)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise UserError(
                f"the step cannot be batched over runs ({one_line(error)[:200]}); leave stack= out"
            ) from error
        given = [gradients[name] for name in self.parameters]
        differentiated = cast(Tensor, _Differentiated.apply(found, given, *self.parameters.values()))
        return differentiated[:runs], {name: value[:runs] for name, value in logged.items()}

    def _call(self, tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return functional_call(self._losses, {f"model.{name}": tensor for name, tensor in tensors.items()}, (x,))

    def _record(self, x: Tensor) -> tuple[Tape, list[Tensor]]:
        """What a step on one run's batch (B, *shape) draws, and room for the numbers of all runs; moves nothing."""
        tape = Tape()
        own = {name: tensor.detach()[0].clone() for name, tensor in {**self.parameters, **self.buffers}.items()}
        with tape.record():
            self._call(own, x)
        return tape, [tensor.new_empty(self.rows, *tensor.shape) for tensor in tape.tensors]


class StackedAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), or AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), with a
    learning rate per run.

    Args:
        parameters: (N, ...) each.
        optimizers: `torch.optim.Adam` or `AdamW` of each run, alike but for the learning rate, over the slices of these
            parameters in their order; those of a run that goes on, with their state. At most N, see `Stack`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], optimizers: Sequence[torch.optim.Adam]) -> None:
        super().__init__(parameters, {})
        self.optimizers = optimizers
        settings = optimizers[0].param_groups[0]
        self.betas, self.eps, self.weight_decay = (settings[name] for name in ("betas", "eps", "weight_decay"))
        self.decoupled: bool = settings.get("decoupled_weight_decay", False)
        rows, device = len(parameters[0]), parameters[0].device
        # in double, as numbers that are no tensors have it
        rates = padded([one.param_groups[0]["lr"] for one in optimizers], rows)
        self.lr = torch.tensor(rates, dtype=torch.float64, device=device)
        self.owned = [_learned(one) for one in optimizers]
        for parameter, *owned in zip(parameters, *self.owned, strict=True):
            states = [one.state[own] for one, own in zip(optimizers, owned, strict=True)]
            if all(states):  # they go on
                states = padded(states, rows)
                moments = {name: torch.stack([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": states[0]["step"].to(device, torch.float64), **moments}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along the gradients, (N, ...) each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                self._move(parameter, parameter.grad)
        return loss

    def _move(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            # a tensor, so that a captured graph counts too; in double, as 1 - beta^t takes its digits
            state["step"] = torch.zeros((), dtype=torch.float64, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        decay, decay_of_squares = self.betas

        def each(values: Tensor) -> Tensor:  # (N,) -> (N, 1, ..., 1)
            return values.to(parameter.dtype).view(-1, *[1] * (parameter.ndim - 1))

        if self.weight_decay and self.decoupled:
            parameter.mul_(each(1 - self.lr * self.weight_decay))
        elif self.weight_decay:
            gradient = gradient.add(parameter, alpha=self.weight_decay)
        mean = state["exp_avg"].lerp_(gradient, 1 - decay)
        square = state["exp_avg_sq"].mul_(decay_of_squares).addcmul_(gradient, gradient, value=1 - decay_of_squares)
        scale = (1 - decay_of_squares ** state["step"]).sqrt()
        change = mean / (square.sqrt().div_(scale).add_(self.eps))
        parameter.sub_(change.mul_(each(self.lr / (1 - decay ** state["step"]))))

    def share(self, run: int) -> torch.optim.Adam:
        """A run's own optimizer with its slice of the state as it is now, copied."""
        optimizer = self.optimizers[run]
        for parameter, own in zip(self.param_groups[0]["params"], self.owned[run], strict=True):
            if state := self.state[parameter]:
                moments = {name: state[name][run].clone() for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[own] = {"step": state["step"].float(), **moments}
        return optimizer


def _learned(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def padded(values: Iterable[T], rows: int) -> list[T]:
    """So many values: the last one again where there are fewer."""
    found = [*values]
    return [*found, *found[-1:] * (rows - len(found))]
