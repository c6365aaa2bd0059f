"""Where a job stands in its sweep, and when the sweep will end: for any launcher and any number of processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vi_lab.console import duration
from vi_lab.runs.run import Run

SWEEP = "VI_LAB_SWEEP"
"""In the environment, which the processes of all launchers inherit: the number of jobs, and when the sweep began."""


@contextmanager
def sweeping(jobs: int) -> Iterator[None]:
    """While a sweep is started."""
    os.environ[SWEEP] = f"{jobs} {time.time()}"
    try:
        yield
    finally:
        del os.environ[SWEEP]


def standing(number: int) -> str:
    """As "job 3 of 12".

    Args:
        number: Hydra's, from 0.
    """
    jobs = os.environ.get(SWEEP, "").partition(" ")[0]
    return f"job {number + 1}" + (f" of {jobs}" if jobs else "")


def time_left(sweep: Path, number: int) -> str:
    """As ", about 7 min left", from the time that the jobs of this start have taken; empty where none has ended.

    Args:
        number: Hydra's, from 0, of the job that begins.
    """
    jobs, _, since = os.environ.get(SWEEP, "").partition(" ")
    if not jobs:
        return ""
    states = []
    for file in sweep.glob("*/status.json"):
        with suppress(OSError):
            if file.stat().st_mtime >= float(since):  # those that were completed before took no time
                states.append(Run(file.parent).status.get("state"))
    beside = states.count("running") / 2  # done by half, more or less
    ended = states.count("completed") + states.count("failed")
    if not ended:
        return ""
    seconds = (time.time() - float(since)) / (ended + beside) * (int(jobs) - number + beside)
    return f", about {duration(seconds)} left"
