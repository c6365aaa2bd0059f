"""Which worker does which job of a sweep: claims, as files, for any number of processes on any number of machines.

A claim on a job is a file JOB.N, made with O_CREAT and O_EXCL: of those who try, one succeeds, on NFS too (from version
3 on). Its worker touches it every `BEAT` seconds, and makes JOB.N.end where it ends. N counts the claims of a job, and
no file is removed: a number is given once, whatever a cache says of a folder. A worker that has died leaves a claim
without an end; the next one takes number N + 1.

Who has died? On one machine, the one whose run folder is not locked any more (the system frees it). On another, the one
that has not touched its claim for `STALE` seconds, by the file server's clock: both times are the server's, so clocks
may differ. A worker that was away for longer, as one that was suspended, looks whether its claim was taken over, and
then ends itself.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vi_lab.errors import complain, printable
from vi_lab.runs.files import write_json
from vi_lab.runs.lock import is_held
from vi_lab.runs.trust import is_own

BEAT = 15.0
"""Seconds between two touches of a claim."""
STALE = 90.0
"""A claim that was not touched for so many seconds is taken over."""
YOUNG = 10.0
"""Seconds that a worker has to lock the run folder once it has its claim."""
LOST = 75
"""Exit code of a worker that was suspended until its claim was another's."""

MOST = 100_000
"""Claims on one job; more are nobody's."""
DRIVER = "VI_LAB_SWEEP"
"""In the environment of all processes that one command has started: what is its own."""

FOLDER = Path(".sweep", "claims")
NAMED = re.compile(r"(?P<job>.+)\.(?P<number>[1-9]\d{0,8})(?P<end>\.end)?")


def kernel() -> str:
    """What two processes have in common that can see each other's locks: the machine since its start."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


class Claims:
    """The claims on the jobs of one sweep.

    Args:
        sweep: its folder.
    """

    def __init__(self, sweep: Path) -> None:
        self.sweep, self.folder = sweep, sweep / FOLDER
        self.ends: dict[str, str] = {}  # what files JOB.N.end say, which never changes

    def read(self) -> dict[str, list[str | None]]:
        """Of each job that was claimed, how its claims have ended, in their order: completed, failed or interrupted;
        None: not ended, as its worker is at work, or has died."""
        try:
            names = os.listdir(self.folder)
        except OSError:  # nothing was claimed
            return {}
        found: dict[str, dict[int, bool]] = {}
        for name in names:
            if parts := NAMED.fullmatch(name):
                numbers = found.setdefault(parts["job"], {})
                numbers[int(parts["number"])] = numbers.get(int(parts["number"]), False) or parts["end"] is not None
        return {
            job: [self._outcome(job, n) if numbers.get(n) else None for n in range(1, max(numbers) + 1)]
            for job, numbers in found.items()
            if max(numbers) <= MOST
        }

    def _outcome(self, job: str, number: int) -> str | None:
        name = f"{job}.{number}.end"
        if name not in self.ends:
            outcome = self._content(name).get("outcome")
            if not isinstance(outcome, str):
                return None  # being written
            self.ends[name] = outcome
        return self.ends[name]

    def about(self, job: str, number: int) -> dict[str, Any]:
        """Who has made a claim ("worker", "kernel"), when ("since"), and how far the job was then ("progress"); empty
        where it is being made."""
        return self._content(f"{job}.{number}")

    def _content(self, name: str) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            if is_own(self.folder / name):
                content = json.loads((self.folder / name).read_text(encoding="utf-8"))
                return content if isinstance(content, dict) else {}
        return {}

    def is_live(self, job: str, number: int) -> bool:
        """Whether the worker of a claim that has not ended is at work, as far as one can know."""
        age = self.age(f"{job}.{number}")
        if age is None:  # somebody has removed it
            return False
        if age < YOUNG:
            return True
        if self.about(job, number).get("kernel") == kernel():
            return is_held(self.sweep / job)
        return age < STALE

    def age(self, name: str) -> float | None:
        """Seconds since a file of claims was touched, both times by the clock of the file server, where it takes a file
        to ask it; None where it is not there."""
        try:
            number = os.open(self.folder / name, os.O_RDONLY)  # opened: a cache of NFS may be a minute behind
        except FileNotFoundError:
            return None
        except OSError:
            return 0.0  # it cannot be known: nothing is taken from anybody
        try:
            touched = os.fstat(number).st_mtime
        finally:
            os.close(number)
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix=".now-") as file:
                os.utime(file.fileno())
                return os.fstat(file.fileno()).st_mtime - touched
        except OSError:  # one may only read here
            return time.time() - touched

    def take(self, job: str, number: int, progress: int = 0) -> Held | None:
        """Make claim `number` on a job; None where another worker has it.

        Args:
            number: one more than there are.
            progress: how far the job is, such as the step of its last checkpoint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{job}.{number}"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None
        about = {
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "kernel": kernel(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "progress": progress,
            "driver": os.environ.get(DRIVER),
        }
        with os.fdopen(file, "w", encoding="utf-8") as text:
            text.write(json.dumps(about) + "\n")
        return Held(path)


class Held:
    """A claim of this process. While it is entered, a thread touches it; it ends with `outcome`.

    Args:
        path: of the claim.
        lost: called where the claim has become another's; ends the process, whose every write would be in the way.
    """

    def __init__(self, path: Path, lost: Callable[[Path], None] | None = None) -> None:
        self.path, self.lost = path, lost or _end
        self.outcome = "interrupted"
        self.done = threading.Event()
        self.beat = _now()

    def __enter__(self) -> Held:
        threading.Thread(target=self._keep, daemon=True, name="vi_lab claim").start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        with suppress(OSError):  # a full disk: then it gets stale
            write_json(self.path.with_name(f"{self.path.name}.end"), {"outcome": self.outcome})

    def _keep(self) -> None:
        while not self.done.wait(min(BEAT, 1.0)):
            if _now() - self.beat < BEAT:
                continue
            if self._taken_over():
                self.lost(self.path)
                return
            with suppress(OSError):  # the server may be away for a while; what counts is that it comes back
                os.utime(self.path)
            self.beat = _now()

    def _taken_over(self) -> bool:
        job, _, number = self.path.name.rpartition(".")
        return self.path.with_name(f"{job}.{int(number) + 1}").exists()


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


def _end(path: Path) -> None:
    complain(
        f"vi-lab train: {printable(path.name)}: this process was away for too long; another worker has the job now"
    )
    os._exit(LOST)
