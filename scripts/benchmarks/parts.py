"""A training step by part.

On a CPU an operation ends before the next begins, so a clock between the parts adds up; on a GPU each part waits for
the device, which makes the sum larger than the step. Matrix products are recorded where they happen, then repeated
alone, on the same tensors. What vi_lab adds to the mathematics is a difference: metrics are `VAE.training_step` less
noise, forward and unrelaxed loss, which are timed in turn with it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import now
from benchmarks.loops import forever, made
from vi_lab.seeding import NOISE, seed_noise

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


def pieces(config: DictConfig, steps: int) -> dict[str, float]:
    """Seconds per step of each part, medians over `steps` steps: loader, noise, forward, unrelaxed loss, metrics,
    backward, optimizer; and of the matrix products within three of them, as "forward products" and so on."""
    datamodule, model, device = made(config)
    batches = forever(datamodule.train_dataloader())
    optimizer = model.optimizer(model.parameters())
    times: dict[str, list[float]] = defaultdict(list)
    at = now()

    def lap(name: str) -> None:
        nonlocal at
        times[name].append((end := now()) - at)
        at = end

    def backward(loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()

    products = {name: Products() for name in ("forward", "unrelaxed loss", "backward")}
    x, labels = next(batches)
    with products["forward"]:
        q, nats = model.posterior(x), model.nats(x)
        terms = model.objective(q, model.latent.prior(), nats, model.estimator, x)
    if model.estimator.relaxed:
        with products["unrelaxed loss"]:
            model.objective.unrelaxed_given_kl(q, nats, terms.kl)
    with products["backward"]:
        (terms.loss.mean() + terms.control_loss).backward()

    for step in range(steps):
        at = now()
        x, labels = next(batches)
        lap("loader")
        seed_noise(device, 0, NOISE, 0, step, 0)
        lap("noise")
        q, nats = model.posterior(x), model.nats(x)
        terms = model.objective(q, model.latent.prior(), nats, model.estimator, x)
        loss = terms.loss.mean() + terms.control_loss
        lap("forward")
        if model.estimator.relaxed:
            model.objective.unrelaxed_given_kl(q, nats, terms.kl).loss.mean()
        lap("unrelaxed loss")
        backward(loss)
        lap("backward")
        optimizer.step()
        lap("optimizer")
        loss = model.training_step((x, labels), step)
        lap("training_step")
        backward(loss)
        optimizer.step()
        at = now()
        for name, recorded in products.items():
            recorded.repeat()
            lap(f"{name} products")
    found = {name: statistics.median(values) for name, values in times.items()}
    found["metrics"] = found.pop("training_step") - found["noise"] - found["forward"] - found["unrelaxed loss"]
    return found
