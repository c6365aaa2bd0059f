"""A training step by part.

On a CPU an operation ends before the next begins, so a clock between the parts adds up; on a GPU each part waits for
the device, which makes the sum larger than the step. The parts of `VAE.training_step` are timed by clocks around the
functions that it calls; metrics are what remains of it. Matrix products are recorded where they happen, then repeated
alone on the same tensors, which they find in the processor's cache: what they take at the least.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import now, timed
from benchmarks.loops import forever, made
from vi_lab import models

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
}


class Products(TorchDispatchMode):
    """Records the matrix products, convolutions among them, of what runs within it in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: tuple = (), options: Any = None) -> Any:
        if operation in PRODUCTS:
            self.calls.append((operation, arguments, options or {}))
        return operation(*arguments, **(options or {}))

    @torch.no_grad()
    def repeat(self) -> None:
        """Do them again, and nothing else."""
        for operation, arguments, options in self.calls:
            operation(*arguments, **options)


class Parts:
    """Takes training steps to pieces.

    Args:
        steps: in a block.
    """

    def __init__(self, config: DictConfig, steps: int) -> None:
        self.datamodule, self.model, self.device = made(config)
        self.batches = forever(self.datamodule.train_dataloader())
        self.optimizer = self.model.optimizer(self.model.parameters())
        self.steps = steps
        self.times: dict[str, list[float]] = defaultdict(list)
        self.at = now()
        self.products = self._record()

    def _record(self) -> dict[str, Products]:
        """The matrix products of a step."""
        products = {name: Products() for name in ("forward", "unrelaxed loss", "backward")}
        x, _ = next(self.batches)
        with products["forward"]:
            q, nats = self.model.posterior(x), self.model.nats(x)
            terms = self.model.objective(q, self.model.latent.prior(), nats, self.model.estimator, x)
        if self.model.estimator.relaxed:
            with products["unrelaxed loss"]:
                self.model.objective.unrelaxed_given_kl(q, nats, terms.kl)
        with products["backward"]:
            (terms.loss.mean() + terms.control_loss).backward()
        return products

    def _lap(self, name: str) -> None:
        self.times[name].append((end := now()) - self.at)
        self.at = end

    def block(self) -> float:
        """Do a block of steps in pieces; the seconds of one."""
        start = now()
        inside: dict[str, float] = {}
        with ExitStack() as stack:
            for owner, name in (
                (models, "seed_noise"),
                (self.model, "posterior"),
                (self.model.objective, "forward"),
                (self.model.objective, "unrelaxed_given_kl"),
            ):
                stack.enter_context(timed(owner, name, inside))
            for step in range(self.steps):
                inside.clear()
                self._step(step, inside)
        taken = (now() - start) / self.steps
        for _ in range(self.steps):
            self.at = now()
            for name, recorded in self.products.items():
                recorded.repeat()
                self._lap(f"{name} products")
        return taken

    def _step(self, step: int, inside: dict[str, float]) -> None:
        self.at = now()
        batch = next(self.batches)
        self._lap("loader")
        loss = self.model.training_step(batch, step)
        self._lap("training_step")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._lap("backward")
        self.optimizer.step()
        self._lap("optimizer")
        found = {
            "noise": inside["seed_noise"],
            "forward": inside["posterior"] + inside["forward"],
            "unrelaxed loss": inside.get("unrelaxed_given_kl", 0.0),
        }
        found["metrics"] = self.times["training_step"].pop() - sum(found.values())
        for name, seconds in found.items():
            self.times[name].append(seconds)

    def seconds(self) -> dict[str, float]:
        """Medians over all steps until now: loader, noise, forward, unrelaxed loss, metrics, backward, optimizer; and
        of the matrix products within three of them, as "forward products" and so on."""
        return {name: statistics.median(values) for name, values in self.times.items() if values}
