"""What a run was made with: code, versions, hardware, threads and data, recorded as `environment.json`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from vi_lab.version import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "hydra-core",
    "omegaconf",
    "numpy",
    "tensorboard",
    "scikit-learn",
)


def _git(*arguments: str) -> str | None:
    """Output of git in the folder of this package, if that is a checkout of the project."""
    here = Path(__file__).resolve().parents[2]
    if not (here / "pyproject.toml").is_file():
        return None
    try:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(command: str, device: str, data: dict[str, str]) -> dict:
    """Code, versions, hardware, threads, data and command of this process."""
    import torch

    changes = _git("status", "--porcelain")
    return {
        "command": command,
        "vi_lab": __version__,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "cuda": torch.version.cuda if device.startswith("cuda") else None,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "data": data,
    }


def differences(then: dict, now: dict) -> list[str]:
    """What of code, versions, hardware, threads and data two snapshots (see `environment`) differ in, in words."""

    def flat(snapshot: dict) -> dict[str, Any]:
        parts = {key: snapshot.get(key) for key in ("packages", "data", "init_from")}  # perhaps of a damaged file
        inner = {f"{k}.{i}": v for k, part in parts.items() if isinstance(part, dict) for i, v in part.items()}
        return {**snapshot, **inner}

    then, now = flat(then), flat(now)
    keys = [key for key in now if key not in ("command", "packages", "data", "init_from", "platform", "resumed")]
    return [f"{key} is {now[key]}, was {then.get(key)}" for key in keys if now[key] != then.get(key)]


def threads_of(snapshot: dict) -> int | None:
    """The number of CPU threads in a snapshot, which the last digits depend on; None where it says nothing of use."""
    threads = snapshot.get("threads")
    return threads if isinstance(threads, int) and 0 < threads <= 1024 else None
