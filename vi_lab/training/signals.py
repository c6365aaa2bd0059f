"""Stopping when a signal asks for it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType

from vi_lab.errors import Interrupted, ViLabError

HANGUP = getattr(signal, "SIGHUP", None)
"""The terminal is gone; None on Windows, which has no such signal."""


class Stop:
    """Makes of the first SIGINT, SIGTERM or SIGHUP a request, which is served when the step at hand is done. A SIGHUP
    that is ignored, as under nohup, stays so.

    Outside of training (`patient` is False), and at the second signal, it raises `Interrupted` at once. That may come
    up anywhere: in a finalizer, which drops it, or within a library, which makes another error of it. So the stages of
    a run ask with `serve`, and `Interrupted` takes the place of an error that a signal has caused.
    """

    signals: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, *([] if HANGUP is None else [HANGUP]))

    def __init__(self) -> None:
        self.requested: int | None = None
        self.patient = False
        self.depth = 0

    def __enter__(self) -> Stop:
        """May be entered several times over, as by the runs of a stack, which share one."""
        self.depth += 1
        if self.depth > 1:
            return self
        self.before = {}
        self.terminals: list[int] = []
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            heard = [n for n in self.signals if n != HANGUP or signal.getsignal(n) != signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._handle) for number in heard}
            self.terminals = [number for number in (1, 2) if os.isatty(number)]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.depth -= 1
        for number, handler in self.before.items() if self.depth == 0 else ():
            signal.signal(number, handler)
        if isinstance(error, Exception) and self.requested is not None and _of_a_signal(error):
            raise Interrupted(self.requested) from error

    def serve(self, where: str = "") -> None:
        """Stop here if a signal has asked for it.

        Raises:
            Interrupted: it has.
        """
        if self.requested is not None:
            raise Interrupted(self.requested, where)

    def _leave_terminal(self) -> None:
        """Where the terminal is gone, nothing that is said from now on may fail: the checkpoint comes after it."""
        for number in self.terminals:
            if not os.isatty(number):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._leave_terminal()
        if number == HANGUP == self.requested:  # the shell says it, and the system too
            return
        first, self.requested = self.requested is None, number
        if not (self.patient and first):
            raise Interrupted(number)
        if signal.SIGINT not in self.signals:  # a worker: the sweep's process has said it
            return
        with suppress(OSError):  # nobody reads it any more
            # not print: the signal may have come in the middle of one
            os.write(2, b"\nstopping after this step; once more stops at once\n")


def _of_a_signal(error: BaseException | None) -> bool:
    """Whether an error is what a library has made of `Interrupted`, or one that nobody foresaw."""
    if not isinstance(error, (ViLabError, OSError)):
        return True
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
