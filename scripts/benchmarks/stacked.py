"""Runs trained as one stack against the same runs one after the other, by the number of runs.

Alone, a run takes the steps of the bare loop: draw, forward with the unrelaxed loss, backward, fused Adam, on a batch
that stays in place. A stack draws each run's noise, takes all gradients by one batched pass, and steps its own Adam. On
a GPU the pass and Adam are captured once as a CUDA graph and replayed. Ratios are of run-steps per second; the loops
take turns. `--steps` is the number of steps of the stack in a block.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from omegaconf import DictConfig

from benchmarks.common import Loop, Options, Result, compose, ms, now, ratio, take_turns
from benchmarks.loops import bare, made
from vi_lab.seeding import NOISE
from vi_lab.training.stacked import Stack, StackedAdam

ROUNDS, STEPS, ESTIMATORS = 3, 20, ("gaussian", "gumbel_softmax")
RUNS = {"cpu": (1, 2, 4), "cuda": (1, 4, 16, 64, 128)}


def measure(options: Options) -> Result:
    rows = []
    for name in options.estimators:
        config = compose(f"estimator={name}", *options.overrides)
        device = made(config)[2]
        runs = RUNS[device.type]
        loops = {"alone": bare(config, 100)} | {str(n): stack(config, n, options.steps) for n in runs}
        times = take_turns(loops, options.rounds)
        for n in runs:
            seconds = times[str(n)]
            faster = n * ratio(times["alone"], seconds)
            rows.append([name, str(n), *(ms(statistics.median(t)) for t in (times["alone"], seconds)), f"{faster:.2f}"])
    return Result(["estimator", "runs", "ms per step alone", "ms per step of the stack", "stack / alone"], rows)


def stack(config: DictConfig, runs: int, steps: int) -> Loop:
    """Seconds of a step of so many runs at once."""
    datamodule, _, device = made(config)
    models = []
    for seed in range(runs):
        config.seed = seed
        models.append(made(config)[1])
    x, _ = next(iter(datamodule.train_dataloader()))
    batches = x.expand(runs, *x.shape).contiguous()
    optimizers = [model.optimizer(model.parameters()) for model in models]
    stacked = Stack(models)
    adam = StackedAdam([*stacked.parameters.values()], optimizers)
    stacked.draw(batches, NOISE, 0, 0, 0)

    def compute() -> None:
        adam.zero_grad()
        stacked.losses(batches)[0].sum().backward()
        adam.step()

    replay = captured(compute) if device.type == "cuda" else compute

    def block() -> float:
        start = now()
        for step in range(steps):
            stacked.draw(batches, NOISE, 0, step, 0)
            replay()
        return (now() - start) / steps

    return block


def captured(compute: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of what `compute` launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    return graph.replay
