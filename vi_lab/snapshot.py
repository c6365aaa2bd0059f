"""What a run folder records, so that the folder alone says what was run, on what, and how it ended.

config_resolved.yaml  environment.json  status.json  metrics.csv  metrics.json  timing.csv  checkpoints/  figures/
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

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


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` whole or not at all: written beside the target, then renamed."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: dict) -> None:
    """`data` as strict JSON: NaN and infinities become null, which every JSON reader takes."""
    write_text(path, json.dumps(_strict(data), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows with the union of their keys as columns, in the order of first appearance; floats in full precision."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class Status:
    """`status.json`: running, completed, interrupted or failed, since when, and why."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "status.json"
        self.started = time.time()

    def write(self, state: str, reason: str | None = None) -> None:
        now = time.time()
        write_json(
            self.path,
            {
                "state": state,
                "reason": reason,
                "started": _iso(self.started),
                "updated": _iso(now),
                "seconds": round(now - self.started, 3),
                "pid": os.getpid(),
            },
        )


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _git(*arguments: str) -> str | None:
    """Output of git in the folder of this package, if that is a checkout of the project."""
    here = Path(__file__).resolve().parent.parent
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

    import vi_lab

    changes = _git("status", "--porcelain")
    return {
        "command": command,
        "vi_lab": vi_lab.__version__,
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
        parts = {key: snapshot.get(key) for key in ("packages", "data")}  # perhaps of a damaged file
        inner = {f"{k}.{i}": v for k, part in parts.items() if isinstance(part, dict) for i, v in part.items()}
        return {**snapshot, **inner}

    then, now = flat(then), flat(now)
    keys = [key for key in now if key not in ("command", "packages", "data", "platform", "resumed")]
    return [f"{key} is {now[key]}, was {then.get(key)}" for key in keys if now[key] != then.get(key)]


def threads_of(snapshot: dict) -> int | None:
    """The number of CPU threads in a snapshot, which the last digits depend on; None where it says nothing of use."""
    threads = snapshot.get("threads")
    return threads if isinstance(threads, int) and 0 < threads <= 1024 else None
