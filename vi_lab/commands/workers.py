"""What the commands share that train many runs within a budget of time: their arguments, and workers side by side.

The runs are jobs of a named sweep (`vi_lab.commands.named`). A command starts some more processes of itself, each with
a plan in a file; they end with it, and what they leave is taken up by the next start.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vi_lab.adapters.hydra import launcher
from vi_lab.arguments import Parser
from vi_lab.commands import train
from vi_lab.commands.named import Task, at_work, drain
from vi_lab.config import check_jobs, key_of, quote, search_path
from vi_lab.errors import UserError
from vi_lab.machine import cores
from vi_lab.runs.files import write_json, write_text
from vi_lab.runs.jobs import Jobs
from vi_lab.schema import CONFIG_DIR, JOB, has
from vi_lab.training.workers import PARENT

# --- arguments -------------------------------------------------------------------------------------------------------


def add_budget(parser: Parser) -> None:
    """--budget and --workers, and what a process of our own is started with."""
    what = "wall time to train: 90s, 30m, 2h30m, 0 (only report) or none (as long as it takes) (1h)"
    parser.add_argument("--budget", metavar="TIME", default="1h", help=what)
    parser.add_argument("--workers", metavar="N", type=int, help="runs at a time (one for each core)")
    parser.add_argument("--tasks", help=argparse.SUPPRESS)  # of a worker that another process has started


def seconds_of(text: str) -> float:
    """A budget in words.

    Raises:
        UserError: it is none.
    """
    if text == "none":
        return float("inf")
    found = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s?)?", text)
    if not found or not text:
        raise UserError(f"--budget {text}: wanted a time such as 90s, 30m, 1h or 2h30m, or none")
    return sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))


def number_of(workers: int | None) -> int:
    """How many runs are trained at a time.

    Raises:
        UserError: less than one.
    """
    workers = cores() if workers is None else workers
    if workers < 1:
        raise UserError(f"--workers {workers}: wanted at least 1")
    return workers


def says_how(word: str) -> bool:
    """Whether an override says where and how runs are run, and not what they are."""
    return has(key_of(word), JOB) or key_of(word).startswith("accelerator")


def threads_of(workers: int, words: Sequence[str]) -> list[str]:
    """One thread for each of several workers, unless some words say how many."""
    return [] if workers == 1 or any(word.startswith("threads=") for word in words) else ["threads=1"]


def sweep_of(words: Sequence[str], name: str, config_dir: str | None) -> tuple[list[str], Path]:
    """Overrides without that of the sweep's name, and the sweep's folder.

    Args:
        name: unless sweep= gives another.

    Raises:
        UserError: a mistake in the overrides.
    """
    name = next((word.partition("=")[2] for word in words if word.startswith("sweep=")), name)
    words = [word for word in words if not word.startswith("sweep=")]
    (own,) = check_jobs("train", [[*words, f"sweep={name}"]], config_dir)
    return words, Path(own["paths"]["log_dir"]) / "sweeps" / name


# --- work ------------------------------------------------------------------------------------------------------------


def work(
    folder: Path,
    config_dir: str | None,
    source: Callable[[], list[Task]],
    names: Sequence[str],
    number: int | None = None,
    retries: int = 0,
) -> None:
    """Train what a source gives, beside other workers, until all of it has ended.

    Args:
        folder: of the sweep.
        source: asked again before each run.
        names: of the folders of what is known of it.
        number: of runs, at most; as many as names where it is None.
        retries: so often a run that fails is tried again by this start.
    """
    given = [f"sweep={folder.name}", f"hydra.sweep.dir={quote(str(folder))}"]
    launch = launcher(train.task, [*given, *search_path(config_dir)], CONFIG_DIR, "train")
    write_text(folder / "multirun.yaml", launch.yaml)
    jobs = Jobs(folder, names)
    forgiven = {name: state.failures for name, state in jobs.states().items()}
    with at_work(jobs, len(names) if number is None else number, launch):
        drain(source, jobs, launch, forgiven, retries, one_by_one=True)


def read_plan(file: str) -> dict[str, Any]:
    """What `side_by_side` has written."""
    return json.loads(Path(file).read_text(encoding="utf-8"))


@contextmanager
def side_by_side(command: str, folder: Path, plan: dict[str, Any], number: int) -> Iterator[None]:
    """So many more processes that work for a plan; they end with this one.

    Args:
        command: of vi-lab, which is given the plan's file as --tasks.
        folder: of the sweep.
    """
    file = folder / ".sweep" / f"plan-{os.getpid()}.json"
    write_json(file, plan)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vi_lab", command, "--tasks", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, PARENT: str(os.getpid())},
            start_new_session=True,  # a signal of the terminal reaches them through this process alone
        )
        for _ in range(number)
    ]
    try:
        yield
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # it stops after a step, and leaves a checkpoint
        for process in processes:
            process.wait()
        file.unlink(missing_ok=True)
