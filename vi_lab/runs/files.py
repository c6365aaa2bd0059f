"""The files of a run folder, written whole or not at all.

config_resolved.yaml  environment.json  status.json  metrics.csv  metrics.json  timing.csv  evaluation.json  units.csv
checkpoints/  figures/
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

CONFIG_FILE = "config_resolved.yaml"
"""What makes a folder a run folder."""


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
        """Replace the file; a reader sees the old state or the new one.

        Args:
            state: running, completed, interrupted or failed.
            reason: one line, for a run that failed or was interrupted.

        Raises:
            OSError: it cannot be written.
        """
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
