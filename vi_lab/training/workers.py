"""Jobs of a sweep in processes of their own: they stop when the sweep does, and do not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TypeVar

from vi_lab.errors import Interrupted
from vi_lab.runs.files import write_json
from vi_lab.runs.lock import is_held
from vi_lab.runs.run import Run
from vi_lab.training.signals import HANGUP, Stop

T = TypeVar("T")

GRACE = 10.0
"""Seconds that a worker has to stop after its step once its parent is gone; then it ends as by a kill."""

PARENT = "VI_LAB_PARENT"
"""In the environment of a process that a sweep's process has started for one job: that one."""

PATIENCE = 60.0
"""Seconds that the sweep's process waits for the jobs to stop after their steps; then it ends them."""


class StopSweep(Stop):
    """In the process that starts a sweep's jobs: at the first of `Stop.signals` it lets the jobs at work stop after
    their steps, and raises `Interrupted`, which says how to go on; at the second it does so at once.

    Args:
        folder: of the sweep.
        own: the processes of this machine that are at work on jobs of this command; None: those on all its jobs.
    """

    def __init__(self, folder: Path, own: Callable[[], set[int]] | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.own = own or self._all
        self.began = time.time()

    def _all(self) -> set[int]:
        pids = set()
        for job in self.folder.glob("*"):
            with suppress(OSError):  # what was written before may be a stranger's
                if is_held(job) and (job / "status.json").stat().st_mtime >= self.began:
                    pids.add(Run(job).status.get("pid"))
        return {pid for pid in pids if isinstance(pid, int) and pid > 1} - {os.getpid()}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._leave_terminal()
        if number == HANGUP == self.requested:
            return
        first, self.requested = self.requested is None, number
        children = {child.pid for child in multiprocessing.active_children() if child.pid}
        workers = children | self.own() if first else set()  # submitit's are no children
        if workers:
            with suppress(OSError):
                os.write(2, b"\nthe jobs stop after this step; once more stops at once\n")
        for worker in workers:
            with suppress(OSError):  # it has just ended
                os.kill(worker, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while workers and time.monotonic() < deadline and self.own():
            time.sleep(0.05)
        raise Interrupted(number, folder=self.folder)


def settle(folder: Path) -> None:
    """Let the workers of a sweep go, and say of its jobs that were ended without a word that they were interrupted."""
    end_workers()
    for job in folder.glob("*"):
        run = Run(job)
        if run.state == "killed":
            write_json(job / "status.json", {**run.status, "state": "interrupted", "reason": "ended with the sweep"})


def end_workers() -> None:
    """Joblib would give the same workers to the next sweep of this process: in the directory where they were started,
    and unwilling to begin a job where they were once told to stop."""
    if "joblib" in sys.modules:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(kill_workers=True)


def preemption() -> tuple[int, ...]:
    """The signal by which submitit hears that its job is to be put into the queue again, if this is one."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return ()
    return (signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2').removeprefix('SIG')}"],)


class _Worker:
    """This process, where it works for the process of a sweep."""

    parent: int | None = None
    stopped: Interrupted | None = None


def work(job: Callable[[], T]) -> T:
    """Do a job in a worker process, which follows the process that has started it from now on.

    Raises:
        Interrupted: the sweep has stopped; then no other job is begun.
    """
    if _Worker.parent is None:
        _Worker.parent = os.getppid()
        for number in {*Stop.signals} - {signal.SIGTERM}:  # a terminal sends Ctrl-C and SIGHUP to all
            signal.signal(number, signal.SIG_IGN)
        Stop.signals = (signal.SIGTERM, *preemption())  # by which the parent says when to stop
        Interrupted.of_worker = True
        threading.Thread(target=_follow, args=(_Worker.parent,), daemon=True).start()
    if _Worker.stopped is not None:
        raise _Worker.stopped
    try:
        return job()
    except Interrupted as error:
        if error.number in preemption():
            signal.raise_signal(error.number)  # submitit's turn, now that the checkpoint is written
        _Worker.stopped = error
        if os.getppid() != _Worker.parent:
            sys.stdout.flush()
            os._exit(error.exit_code)  # nobody is left to be told
        raise


def _follow(parent: int, group: bool = False) -> None:
    """End where the parent is gone.

    Args:
        group: with the whole process group, which is this process's own.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    if group:
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


def follow_parent() -> None:
    """In the first process of a job that is executed apart (`vi_lab.training.apart`): not to outlive the sweep's."""
    if os.environ.get(PARENT) == str(os.getppid()) and os.getpgid(0) == os.getpid():
        threading.Thread(target=_follow, args=(os.getppid(), True), daemon=True).start()
