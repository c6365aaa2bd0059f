"""Where a job stands in its sweep, when the sweep will end, and which jobs train as one stack: for any launcher and any
number of processes, but for stacks, whose jobs are of one process."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig

from vi_lab.console import duration
from vi_lab.runs.claims import DRIVER
from vi_lab.runs.run import Run
from vi_lab.schema import STACK, has, leaves
from vi_lab.training.execution import Job, execute_stack

SWEEP = DRIVER
"""In the environment, which the processes of all launchers inherit: the number of jobs, when the sweep began, and what
no other command has."""


@contextmanager
def sweeping(jobs: int) -> Iterator[None]:
    """While a sweep is started."""
    os.environ[SWEEP] = f"{jobs} {time.time()} {secrets.token_hex(8)}"
    try:
        yield
    finally:
        del os.environ[SWEEP]


def beside(launcher: DictConfig) -> int:
    """How many jobs a launcher runs at a time on one machine: -1 is one for each core."""
    jobs = int(os.environ.get(SWEEP, "1").partition(" ")[0])
    if "LocalLauncher" in launcher._target_:  # submitit's: all of them
        return jobs
    return launcher.get("n_jobs") or 1


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
    jobs, since, *_ = [*os.environ.get(SWEEP, "").split(" "), ""]
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


class Stacks:
    """The jobs that train as stacks, by `stack=` of each: those that are alike in all but what runs of a stack may
    differ in. A job waits until the last one of its stack is known; then all are trained.

    Args:
        configs: of all jobs, in the order of their numbers.
    """

    def __init__(self, configs: Sequence[dict]) -> None:
        self.members: dict[int, list[int]] = {}
        """Of each job that trains so, the numbers of its stack."""
        self.waiting: dict[int, Job] = {}
        self.outcomes: dict[int, float | Exception] = {}
        growing: dict[str, list[int]] = {}
        for number, config in enumerate(configs):
            if size := config["stack"]:
                alike = repr([(path, value) for path, value in leaves(config) if not has(path, STACK)])
                if len(growing.get(alike, ())) % size == 0:
                    growing[alike] = []
                growing[alike].append(number)
                self.members[number] = growing[alike]

    def add(self, number: int, job: Job | None, failed: Callable[[int, Path, Exception], Exception]) -> None:
        """Let a job wait; with the last one of its stack, train them.

        Args:
            job: None: there is nothing to train.
            failed: told at once of a job that has failed, by number, folder and error; returns what is to stand for
                the error.
        """
        if job is not None:
            self.waiting[number] = job
        stack = self.members[number]
        if number == stack[-1]:
            numbers = [one for one in stack if one in self.waiting]
            jobs = [self.waiting.pop(one) for one in numbers]
            outcomes = execute_stack(jobs, lambda place, error: failed(numbers[place], jobs[place].folder, error))
            self.outcomes |= zip(numbers, outcomes, strict=True)
