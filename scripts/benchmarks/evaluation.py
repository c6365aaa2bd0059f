"""The likelihood by K = 5000 samples (`evaluation.samples=K` for another), on as many images as `--steps` says.

"achieved" is the rate of its floating-point operations, as `torch.utils.flop_counter` counts those of matrix products,
over the time of all of `vi_lab.evaluation.evaluate`; "products alone" is the rate of the very same products, repeated
without the rest, by as many threads. The two take turns, and the share is that of one in the other. "memory" is how
far the process, or on a GPU its tensors, rise meanwhile above what they held before; a CPU's is known on Linux, which
can begin anew with the highest value (/proc/self/clear_refs). The weights are untrained: the time
does not depend on them.
"""

from __future__ import annotations

import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Loop, Options, Result, compose, now, ratio, take_turns
from benchmarks.loops import made
from benchmarks.parts import Products
from vi_lab.evaluation import ROWS, ROWS_ELSEWHERE, evaluate, importance_weighted

ROUNDS, STEPS, ESTIMATORS = 3, 100, ("gaussian", "gumbel_softmax")
SAMPLES = 5000


def measure(options: Options) -> Result:
    given = [f"evaluation.samples={SAMPLES}", *options.overrides]
    return Result(
        ["estimator", "seconds", "images per s", "achieved GFLOP/s", "products alone GFLOP/s", "share", "memory MiB"],
        [row(name, compose(f"estimator={name}", *given), options) for name in options.estimators],
    )


def row(name: str, config: DictConfig, options: Options) -> list[str]:
    """Measure one estimator's model."""
    datamodule, model, device = made(config)
    images, samples = options.steps, config.evaluation.samples
    x = datamodule.splits["test"][0][:images].float().div(255).round()
    part = x[: max(1, ROWS.get(device.type, ROWS_ELSEWHERE) // samples)]  # what `evaluate` does at once

    def whole() -> float:
        start = now()
        evaluate(model, [x], samples)
        return now() - start

    grown = risen(whole)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    recorded = Products()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, recorded:
        importance_weighted(model.posterior(part), model.latent.prior(), model.nats(part), samples)
    operations = counter.get_total_flops() * len(x) / len(part)

    def products() -> float:
        start = now()
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads) as pool:
            for waiting in [pool.submit(recorded.repeat) for _ in range(len(x) // len(part))]:
                waiting.result()
        torch.set_num_threads(before)
        return now() - start

    times = take_turns({"evaluate": whole, "products": products}, options.rounds)
    seconds, alone = (statistics.median(found) for found in times.values())
    return [
        name,
        f"{seconds:.2f}",
        f"{len(x) / seconds:.1f}",
        f"{operations / seconds / 1e9:.1f}",
        f"{operations / alone / 1e9:.1f}",
        f"{ratio(times['products'], times['evaluate']):.0%}",
        "—" if grown is None else f"{grown / 2**20:.0f}",
    ]


def risen(work: Loop) -> float | None:
    """Bytes that some work holds at the most besides what is held before it; None where the system does not say."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        work()
        return None

    def kilobytes(name: str) -> int:
        return int(re.search(rf"^{name}:\s+(\d+)", status.read_text(), re.MULTILINE)[1])

    reset.write_text("5")
    before = kilobytes("VmRSS")
    work()
    return 1024 * (kilobytes("VmHWM") - before)
