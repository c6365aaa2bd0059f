"""Stopping when a signal asks for it, and one process per run folder."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from filelock import FileLock, Timeout

from vi_lab.errors import Interrupted, UserError, ViLabError

LOCK = ".lock"


class Stop:
    """Makes of the first SIGINT or SIGTERM a request, which is served when the step at hand is done.

    Outside of training (`patient` is False), and at the second signal, it raises `Interrupted` at once.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.patient = False

    def __enter__(self) -> Stop:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = self.requested is None, number
        if not (self.patient and first):
            raise Interrupted(number)
        # not print: the signal may have come in the middle of one
        os.write(sys.stderr.fileno(), b"\nstopping after this step; once more stops at once\n")


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder. The system frees it when this process ends, however it ends.

    Raises:
        UserError: another process has it.
        ViLabError: its lock file is a link.
    """
    if (folder / LOCK).is_symlink():  # a lock file is emptied
        raise ViLabError(f"{folder / LOCK}: a link; it is not followed")
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
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
