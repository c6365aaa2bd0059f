"""`vi-lab status [PATH]`: where the jobs of a sweep stand, who is at work on them, and when it ends: from its files."""

from __future__ import annotations

import csv
import io
import json
import time
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from rich.live import Live
from rich.text import Text

from vi_lab.arguments import Parser, folder_of
from vi_lab.console import Heading, Terminal, duration, make_console, print_tables
from vi_lab.errors import UserError, ViLabError, nearby, one_line
from vi_lab.runs.files import CONFIG_FILE, strict
from vi_lab.runs.jobs import Jobs, State, counted, is_run, is_sweep
from vi_lab.runs.run import Run
from vi_lab.runs.trust import read_text, read_yaml

MOST = 20
"""Jobs of a state that a terminal names; --json has all."""
NAMED = ("running", "failed", "interrupted")
"""States whose jobs are named; of the others it is enough how many they are."""
CENTURY = 3e9
"""Seconds; longer is no time that one waits for."""
PERIOD = 2.0
"""Seconds between two looks of --watch."""


class Job(NamedTuple):
    """What there is to say of a job."""

    name: str
    state: State
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    """val/loss of the last epoch, or train/loss."""
    seconds: float | None = None
    """That a completed one took, in its last start."""
    seconds_left: float | None = None
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        state = {"state": self.state.name, **self.state._replace(name="")._asdict()}
        return {**self._asdict(), **state, "name": self.name}


class Report(NamedTuple):
    """What there is to say of a sweep."""

    folder: Path
    jobs: list[Job]

    @property
    def seconds_left(self) -> float | None:
        """Until all have ended, as those at work go on; None where nobody is, or none has ended yet."""
        running = [job for job in self.jobs if job.state.name == "running"]
        waiting = [job for job in self.jobs if job.state.name in ("new", "interrupted")]
        took = [job.seconds for job in self.jobs if job.seconds is not None]
        if not running or not (took or all(job.seconds_left is not None for job in running)):
            return None
        typical = mean(took) if took else None
        if typical is None and waiting:
            return None
        left = [typical / 2 if job.seconds_left is None and typical else job.seconds_left or 0.0 for job in running]
        return max(max(left), (sum(left) + len(waiting) * (typical or 0.0)) / len(running))


def report(folder: Path) -> Report:
    """Read a sweep's files, or those of one run."""
    jobs = Jobs(folder.parent, [folder.name]) if is_run(folder) else Jobs.found(folder)
    return Report(folder, [_job(jobs.folder / name, state) for name, state in jobs.states().items()])


def _job(folder: Path, state: State) -> Job:
    status = Run(folder).status if state.name != "new" else {}
    reason = str(status["reason"]) if status.get("reason") else None
    if state.name == "completed":
        seconds = status.get("seconds")
        if not isinstance(seconds, (int, float)) or not abs(seconds) < CENTURY:
            seconds = None
        return Job(folder.name, state, seconds=seconds)
    if state.name == "new":
        return Job(folder.name, state, reason=reason)
    return Job(folder.name, state, reason=reason, **_progress(folder))


def _progress(folder: Path) -> dict[str, Any]:
    """How far a run is, as far as its files say it."""
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError, LookupError, TypeError, csv.Error, ViLabError):
        epochs = found["epochs"] = int(read_yaml(folder, CONFIG_FILE)["trainer"]["max_epochs"])
        found["epoch"] = 0
        row = [*csv.DictReader(read_text(folder, "metrics.csv").splitlines())][-1]
        epoch = found["epoch"] = int(row["epoch"])
        found["loss"] = float(row.get("val/loss") or row["train/loss"])
        since = time.time() - (folder / "metrics.csv").stat().st_mtime
        left = Run(folder).epoch_seconds * (epochs - epoch) - since
        found |= {"seconds_left": max(0.0, left)} if abs(left) < CENTURY else {}
    return found


# --- saying it -------------------------------------------------------------------------------------------------------


def show(report: Report, terminal: Terminal) -> None:
    """The counts, and a table of the jobs that are not simply new or completed."""
    left = report.seconds_left
    ends = "" if left is None else f", about {duration(left)} left"
    count = f"{len(report.jobs)} job{'s' * (len(report.jobs) != 1)}"
    terminal.say(f"{nearby(report.folder)}: {count}: {counted(job.state for job in report.jobs)}{ends}")
    rows: list[list[str]] = []
    for name in NAMED:
        jobs = [job for job in report.jobs if job.state.name == name]
        rows += [_row(job) for job in jobs[:MOST]]
        if len(jobs) > MOST:
            rows.append([f"and {len(jobs) - MOST} more", name, *[""] * 4])
    headings = [
        Heading("job", numeric=False),
        Heading("state", numeric=False),
        Heading("epoch", priority=1),
        Heading("loss", priority=3),
        Heading("left", priority=2),
        Heading("worker, or reason", numeric=False),
    ]
    if rows:
        print_tables(terminal, headings, [("", rows)], "--json has them")


def _row(job: Job) -> list[str]:
    epoch = "" if job.epoch is None else f"{job.epoch} of {job.epochs}"
    loss = "" if job.loss is None else f"{job.loss:.2f}"
    left = "" if job.seconds_left is None or job.state.name != "running" else duration(job.seconds_left)
    return [job.name, job.state.name, epoch, loss, left, job.state.worker or job.reason or ""]


def _show_all(folders: list[Path], terminal: Terminal) -> None:
    """A line for each sweep."""
    rows = []
    for folder in folders:
        try:
            states = Jobs.found(folder).states().values()
            rows.append([str(nearby(folder)), str(len(states)), counted(states)])
        except ViLabError as error:
            rows.append([str(nearby(folder)), "", one_line(error)])
    headings = [Heading("sweep", numeric=False), Heading("jobs"), Heading("of these", numeric=False)]
    print_tables(terminal, headings, [("", rows)])


# --- the command -----------------------------------------------------------------------------------------------------


def parser() -> Parser:
    """The arguments."""
    parser = Parser(
        prog="vi-lab status",
        description="Where the jobs of a sweep stand, from its files alone: how many are completed, "
        "running, interrupted, failed or new; how far those at work are and who has them; why others failed.",
    )
    what = "a sweep folder, a run folder, or a folder of sweeps (outputs)"
    parser.add_argument("path", nargs="?", metavar="PATH", default="outputs", type=folder_of, help=what)
    parser.add_argument("--json", action="store_true", help="one JSON object with all jobs")
    parser.add_argument("--watch", action="store_true", help="look again every two seconds, until nothing is running")
    return parser


def main(argv: list[str]) -> int:
    """Print where a sweep stands.

    Raises:
        UserError: there is no sweep.
    """
    arguments = parser().parse_args(argv)
    path = Path(arguments.path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a sweep folder, a run folder, or outputs")
    folders = _sweeps(path)
    terminal = make_console()
    if len(folders) > 1:
        if arguments.json or arguments.watch:
            names = ", ".join(str(nearby(folder)) for folder in folders[:3])
            raise UserError(f"{path}: holds {len(folders)} sweeps; name one of them ({names})")
        _show_all(folders, terminal)
        return 0
    found = report(folders[0])
    if arguments.json:
        jobs = [job.as_json() for job in found.jobs]
        whole = {"folder": str(folders[0]), "seconds_left": found.seconds_left, "jobs": jobs}
        print(json.dumps(strict(whole), indent=2, allow_nan=False))
    elif arguments.watch:
        _watch(folders[0], terminal)
    else:
        show(found, terminal)
    return 0


def _sweeps(path: Path) -> list[Path]:
    if is_run(path) or is_sweep(path) or any(map(is_run, path.iterdir())):
        return [path]
    below = {file.parent for file in path.rglob("multirun.yaml")}
    if not below:
        raise UserError(f"{path}: no sweep below it; vi-lab train -m makes one")
    return sorted(below, key=lambda folder: (folder.stat().st_mtime, folder))


def _watch(folder: Path, terminal: Terminal) -> None:
    """Show it again and again; where there is no terminal, a line whenever the counts have changed."""
    said = ""
    with Live(console=terminal, auto_refresh=False) as live:
        while True:
            found = report(folder)
            if terminal.is_terminal:
                page = io.StringIO()  # what is printed on the terminal itself would stay above
                show(found, Terminal(file=page, width=terminal.width, force_terminal=True))
                live.update(Text.from_ansi(page.getvalue()), refresh=True)
            elif (line := counted(job.state for job in found.jobs)) != said:
                terminal.say(said := line)
            if not any(job.state.name == "running" for job in found.jobs):
                return
            time.sleep(PERIOD)
