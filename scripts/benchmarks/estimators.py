"""All estimators: what a training step takes, and what vi_lab adds to a bare loop that computes the same.

The two take turns. "decoder" is how often a step evaluates the decoder for each image, forward, without the unrelaxed
loss (`vi_lab.audit.decoder_evaluations`). "memory" is how far a bare step rises above what is held before it: on a GPU
`torch.cuda.max_memory_allocated`, on a CPU the running sum of the allocations that `torch.profiler` sees. Each
estimator has the latent of its own default, so rows compare within a family only.
"""

from __future__ import annotations

import statistics

import torch

from benchmarks.common import Loop, Options, Result, compose, ms, ratio, take_turns
from benchmarks.loops import Fit, bare
from vi_lab.audit import decoder_evaluations
from vi_lab.schema import CONFIG_DIR

ROUNDS, STEPS = 5, 50
ESTIMATORS = tuple(sorted(path.stem for path in (CONFIG_DIR / "estimator").glob("*.yaml")))


def measure(options: Options) -> Result:
    rows = []
    for name in options.estimators:
        config = compose(f"estimator={name}", *options.overrides)
        fit = Fit(config, options.scratch, options.steps)
        loops = {"bare": bare(config, options.steps), "vi_lab": fit.block}
        times = take_turns(loops, options.rounds)
        evaluations = decoder_evaluations(fit.model.cpu(), fit.datamodule.shape)
        rows.append(
            [
                f"`{name}`",
                ms(statistics.median(times["vi_lab"])),
                ms(statistics.median(times["bare"])),
                f"{ratio(times['vi_lab'], times['bare']):.2f}",
                f"{evaluations:g}",
                f"{peak(bare(config, 1)) / 2**20:.1f}",
            ]
        )
    return Result(["estimator", "vi_lab ms", "bare ms", "vi_lab / bare", "decoder", "memory MiB"], rows)


def peak(step: Loop) -> float:
    """Bytes that a step holds at the most besides what is there before it."""
    step()  # the optimizer's state and the buffers of libraries stay
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = least = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        least = min(least, held)  # the last step's gradients are freed first
        most = max(most, held - least)
    return most
