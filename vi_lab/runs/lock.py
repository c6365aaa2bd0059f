"""One process per run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vi_lab.errors import UserError, ViLabError
from vi_lab.runs.trust import is_own

LOCK = ".lock"


@contextmanager
def hold(folder: Path, patience: float = 0) -> Iterator[None]:
    """Keep other processes out of a run folder. The system frees it when this process ends, however it ends.

    Args:
        patience: seconds to wait for a process that has it.

    Raises:
        UserError: another process has it.
        ViLabError: its lock file is a link, or no file.
    """
    if os.path.lexists(folder / LOCK) and not is_own(folder / LOCK):  # a lock file may be emptied
        raise ViLabError(f"{folder / LOCK}: a link, or no file; it is not used")
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(f"{folder}: another process is at work in this run folder") from None
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process is at work in the folder. Makes no file."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with hold(folder):
            return False
    except (ViLabError, OSError):
        return True
