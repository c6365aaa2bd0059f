"""A job of a sweep in a process of its own: of jobs whose processes train together (DDP), which Lightning starts from
the command line of their first process. It is the same as the single run, and ends with the sweep's process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from vi_lab.config import quote
from vi_lab.errors import Interrupted, Pruned, ViLabError, printable
from vi_lab.runs.files import Status, append_text
from vi_lab.runs.run import Run, finished
from vi_lab.training.execution import Job
from vi_lab.training.signals import Stop
from vi_lab.training.workers import PARENT

PATIENCE = 60.0
"""Seconds that the processes have to stop after their step; then they are killed."""
LAST_WORDS = 2000
"""Characters of what a process has said on stderr that are kept where it fails."""


def execute_apart(job: Job, words: Sequence[str]) -> float:
    """`vi_lab.training.execution.execute` in a process of its own, and its process group.

    Args:
        words: the overrides of the job.

    Raises:
        ViLabError: it has failed; says why.
        Interrupted: a signal has stopped it; its checkpoint is written.
    """
    folder = job.folder
    resumed = [f"resume={quote(str(folder))}"]
    arguments = resumed if job.options.get("resume") else [*words, f"hydra.run.dir={quote(str(folder))}"]
    command = [sys.executable, "-m", "vi_lab", "train", *arguments]
    with Stop() as stop:
        stop.patient = True
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, PARENT: str(os.getpid())},
            start_new_session=True,  # a signal of the terminal reaches it through this process alone
        )
        try:
            said = _wait(process, stop)
        except BaseException:
            _kill(process)
            process.wait()
            raise
    if stop.requested is not None:
        where = re.sub(r"^interrupted by SIG\w+ ?", "", str(Run(folder).status.get("reason") or ""))
        raise Interrupted(stop.requested, where, job.hint)
    if (done := finished(folder)) is not None and process.returncode == 0:
        return done
    status = Run(folder).status
    if status.get("state") not in ("failed", "pruned"):
        last = [line for line in said.splitlines() if line.strip()][-1:]
        reason = printable(last[0] if last else f"its process has ended with exit code {process.returncode}")
        folder.mkdir(parents=True, exist_ok=True)
        Status(folder).write("failed", reason)
        append_text(folder / "train.log", f"{printable(said[-LAST_WORDS:])}\n")
        raise ViLabError(reason)
    raise (Pruned if status["state"] == "pruned" else ViLabError)(str(status.get("reason")))


def _kill(process: subprocess.Popen) -> None:
    """With all that train with it."""
    with suppress(OSError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen, stop: Stop) -> str:
    """Until it ends; a signal is passed on once. Returns what it has said on stderr."""
    told = False
    while True:
        try:
            return process.communicate(timeout=PATIENCE if told else 0.2)[1]
        except subprocess.TimeoutExpired:
            if told:
                _kill(process)
            elif stop.requested is not None:
                told = True
                process.terminate()
