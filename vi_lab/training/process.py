"""This process: its threads, its floating point, its device, and whether it keeps the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from vi_lab.errors import UserError
from vi_lab.machine import cores


def main_process() -> bool:
    """Whether this process keeps the run folder, where several train together."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def trains_together(config: Mapping[str, Any]) -> bool:
    """Whether several processes train the model of a config."""
    return "ddp" in str(config["accelerator"]["strategy"])


def check_accelerators(configs: list[dict]) -> None:
    """Refuse what this machine does not have.

    Args:
        configs: of the jobs.

    Raises:
        UserError: a device is missing.
    """
    kinds = {config["accelerator"]["accelerator"] for config in configs}
    for config in configs:
        kind, devices, cores = (*map(config["accelerator"].get, ("accelerator", "devices")), os.cpu_count() or 1)
        if kind == "cpu" and devices > cores:
            raise UserError(f"accelerator.devices={devices}: wanted at most {cores}, the cores of this machine")
    if kinds & {"gpu", "cuda", "mps"}:
        import torch  # only now: the other mistakes are answered without it

        if kinds & {"gpu", "cuda"} and not torch.cuda.is_available():
            raise UserError("accelerator=gpu: no CUDA device is visible here; use accelerator=cpu or accelerator=auto")
        if "mps" in kinds and not torch.backends.mps.is_available():
            raise UserError("accelerator=mps: there is no Apple GPU here; use accelerator=cpu or accelerator=auto")


def prepare_process(config: DictConfig, workers: int = 1, threads: int | None = None) -> tuple[str, int]:
    """Threads and floating point of this process; must come before any thread pool starts.

    Args:
        config: its `threads` and `accelerator` count.
        workers: how many such jobs run at once on this machine (negative: one per core), to share out the cores.
        threads: of the run that is repeated, where the config leaves them open: another number gives other bits.

    Returns:
        the kind of device, and the number of threads.
    """
    import torch

    from vi_lab.training.waiting import watch_cores

    # Adam's first moments of dead units decay into denormal numbers, which cost half the speed after some 650 steps.
    # Worker threads inherit the setting from the thread that starts them, so it comes first.
    torch.set_flush_denormal(True)
    available = cores()
    workers = available if workers < 0 else workers
    count: int = config.threads or threads or (max(1, available // workers) if workers > 1 else torch.get_num_threads())
    torch.set_num_threads(count)
    watch_cores(count)
    if config.get("stack") and (capability := torch.backends.cpu.get_cpu_capability()) in ("AVX2", "AVX512"):
        # the rows of a stack lie at any address, by which MKL would sum in another order; read at its first product
        os.environ.setdefault("MKL_CBWR", f"{capability},STRICT")
    kind = config.accelerator.accelerator
    if kind in ("gpu", "cuda") or (kind == "auto" and torch.cuda.is_available()):
        return "cuda", count
    if kind == "mps" or (kind == "auto" and torch.backends.mps.is_available()):
        return "mps", count
    # Lightning has torch look for GPUs by NVML, and its optimizers do so at each step: where there is none, a library
    # is sought in vain each time, which takes a tenth of the step
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    return "cpu", count
