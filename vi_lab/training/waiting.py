"""Threads that wait for each other spin where cores are free, and sleep where another process wants them.

GNU's OpenMP, which torch is built with on Linux, lets a thread that waits for the others of an operation spin for some
300,000 turns. Asleep it would wake too late: a step takes half as long again. But beside another process the spinning
takes the cores from the very threads that are waited for: a step takes up to forty times as long. The library sleeps
sooner "if there are more OpenMP threads than available CPUs" (its manual, GOMP_SPINCOUNT). So a thread looks twice a
second whether others use the cores, and keeps a few more, sleeping, OpenMP threads meanwhile. No result depends on it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import torch

SET_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PERIOD = 0.5
"""Seconds between two looks."""
MARGIN = 0.25
"""Cores that others may use beyond those that are left to them; noise of the count stays below it."""


def busy_seconds(stat: str, cores: set[int]) -> float:
    """What `cores` have worked since the machine was started, from the text of /proc/stat."""
    total = 0
    for line in stat.splitlines():
        name, *times = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, *interrupts_and_stolen = map(int, times[:8])
            total += user + nice + system + sum(interrupts_and_stolen)
    return total / os.sysconf("SC_CLK_TCK")


class Crowd:
    """OpenMP threads that do nothing: more than there are cores, together with those of this process.

    Args:
        threads: of each team of torch's.
        cores: that this process may use.
    """

    def __init__(self, threads: int, cores: int) -> None:
        self.teams = (cores - threads) // (threads - 1) + 1
        self.leave = threading.Event()
        for _ in range(self.teams):
            threading.Thread(target=self._stay, daemon=True, name="vi_lab crowd").start()

    def _stay(self) -> None:
        torch.ones(1 << 18).add_(1)  # large enough for an operation of several threads: they stay with this one
        self.leave.wait()


class Watch(threading.Thread):
    """Looks at the cores, and calls for a crowd or sends it away."""

    def __init__(self, threads: int, cores: set[int]) -> None:
        super().__init__(daemon=True, name="vi_lab watch")
        self.threads, self.cores = threads, cores
        self.crowd: Crowd | None = None
        self.last = self._times()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            time.sleep(PERIOD)
            self.look()

    def look(self) -> None:
        """Compare what others have used since the last look with what is left to them."""
        now = self._times()
        wall, busy, own = (after - before for after, before in zip(now, self.last, strict=True))
        self.last = now
        others = (busy - own) / max(wall, 1e-3)
        if self.threads < 2 or others < len(self.cores) - self.threads + MARGIN:
            self.disperse()
        elif self.crowd is None:
            self.crowd = Crowd(self.threads, len(self.cores))

    def disperse(self) -> None:
        """Send the crowd away."""
        if self.crowd is not None:
            self.crowd.leave.set()
            self.crowd = None

    def _times(self) -> tuple[float, float, float]:
        stat = Path("/proc/stat").read_text(encoding="ascii")
        return time.perf_counter(), busy_seconds(stat, self.cores), time.process_time()


def watch_cores(threads: int) -> Watch | None:
    """Start to watch, once in a process.

    Returns:
        None where there is nothing to watch: one thread, another system than Linux, or an environment that says itself
        how threads wait.
    """
    running = next((thread for thread in threading.enumerate() if isinstance(thread, Watch)), None)
    if running is not None:
        running.threads = threads
        running.disperse()  # the next look calls one of the right size
        return running
    if threads < 2 or not sys.platform.startswith("linux") or any(name in os.environ for name in SET_BY_USERS):
        return None
    try:
        watch = Watch(threads, os.sched_getaffinity(0))
    except OSError:  # no /proc here
        return None
    watch.start()
    return watch
