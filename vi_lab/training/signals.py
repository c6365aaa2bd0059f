"""Stopping when a signal asks for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from vi_lab.errors import Interrupted


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
