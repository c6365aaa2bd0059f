"""The files of a run folder, written whole or not at all.

config_resolved.yaml  environment.json  status.json  metrics.csv  metrics.json  timing.csv  evaluation.json  units.csv
evaluations/  checkpoints/  figures/
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

CONFIG_FILE = "config_resolved.yaml"
"""What makes a folder a run folder."""

AUDIT_FILE = "audit.json"
"""What makes a folder that of an audit."""

STUDY_FILE = "study.journal"
"""What makes a sweep's folder that of `vi-lab tune`."""

LOG = "train.log"
"""What a run has said, and what libraries log."""

LAST = Path("checkpoints", "last.ckpt")
"""Where a run goes on from."""


LEFTOVER = re.compile(r"\.[\w.-]+\.[0-9a-f]+\.tmp")
"""What `scratch` names; a kill before the rename leaves it."""


def claim(folder: Path) -> Path:
    """A folder that was not there, made for the caller alone: `folder`, or else with -2, -3 and so on behind its name.
    Two runs that start within a second have the same time in their names."""
    for number in itertools.count(1):
        path = folder.with_name(f"{folder.name}-{number}") if number > 1 else folder
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError  # the numbers do not end


def is_vacant(folder: Path) -> bool:
    """Whether there is nothing, or an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def scratch(path: Path) -> Path:
    """A name beside `path` that nobody can foresee: nothing waits there, such as a link to be written through."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def replacing(path: Path, keep: Path | None = None, durable: bool = False) -> Iterator[BinaryIO]:
    """Replace `path` whole or not at all by what is written into the file that this gives.

    Args:
        keep: what stood at `path` gets this name.
        durable: also where the power fails: the bytes reach the disk before their name does, and what is kept reaches
            it before what is new. At every moment one of the two is on the disk whole, and afterwards both are.
    """
    beside = scratch(path)
    try:
        with beside.open("x+b") as file:  # never through a link
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
            if durable:
                _sync_names(keep.parent)
        os.replace(beside, path)
        if durable:
            _sync_names(path.parent)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(beside):  # say which file, and not our name for it
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):  # as on a disk that is read-only now: the error at hand says so
            beside.unlink(missing_ok=True)


def _sync_names(folder: Path) -> None:
    with suppress(OSError):  # not every system lets a folder be opened, and not every disk be asked
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a run folder. Follows no link."""
    for place in (folder, folder / "checkpoints"):
        if place.is_dir() and not place.is_symlink():
            for path in place.iterdir():
                if LEFTOVER.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
                    path.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` whole or not at all: written beside the target, then renamed."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: dict) -> None:
    """`data` as strict JSON: NaN and infinities become null, which every JSON reader takes."""
    write_text(path, json.dumps(strict(data), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_once(path: Path, data: dict) -> None:
    """`write_json`, unless the file is there: of several processes the first one's stays."""
    beside = scratch(path)
    write_json(beside, data)
    try:
        os.link(beside, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def strict(value: Any) -> Any:
    """`value` with null for what strict JSON has no number for."""
    if isinstance(value, dict):
        return {key: strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows with the union of their keys as columns, in the order of first appearance; floats in full precision."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file; never through a link, nor into what is no file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(text)


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
