"""`vi-lab train -m sweep=NAME ...`: a sweep whose jobs have folders that follow from what they are, for any number of
workers. Each start of the command is a worker: it does what no other one has, and ends when nothing is left.

What is complete is known without composing it, and without torch: the sweep keeps which overrides made which folder
(`vi_lab.runs.jobs`), and who does what (`vi_lab.runs.claims`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vi_lab.adapters.hydra import Launch, launcher
from vi_lab.commands.launch import Abort, rehearse_all
from vi_lab.config import (
    check_jobs,
    compose_job,
    explain,
    key_of,
    quote,
    resolved,
    search_path,
    split_sweep,
    swept_keys,
    swept_text,
)
from vi_lab.console import Heading, make_console, print_tables
from vi_lab.errors import Interrupted, UserError, ViLabError, complain, nearby, one_line, printable
from vi_lab.runs.claims import DRIVER, kernel
from vi_lab.runs.files import STUDY_FILE, Status, write_text
from vi_lab.runs.jobs import CLAIM, Jobs, Record, State, counted, fingerprint, settings_of
from vi_lab.runs.lock import hold
from vi_lab.runs.run import Run
from vi_lab.runs.trust import inside, is_own, refuse_links, trusting
from vi_lab.schema import CONFIG_DIR, JOB, NO_GROUPS, has
from vi_lab.training.process import check_accelerators
from vi_lab.training.sweep import sweeping
from vi_lab.training.workers import StopSweep, end_workers
from vi_lab.version import __version__

LOOK = 2.0
"""Seconds between two looks at the jobs of other workers, where nothing else is left."""
REPEATED = ("seed", "data.seed", "data.fold")
"""In which jobs of a sweep may always differ."""
LONGEST = 150
"""Characters of a folder's name before its hash."""
IN_VAIN = 5
"""So often in a row may jobs be started of which none begins, as where another worker was faster."""
MANY = 50
"""So many jobs to check that it is said."""


class Task(NamedTuple):
    """A job of this command."""

    words: list[str]
    """Its overrides."""
    name: str
    """Of its folder."""
    number: int
    """By which it is called."""


def name_of(overrides: Iterable[str]) -> str | None:
    """The name that `sweep=` gives, if any."""
    names = [override.partition("=")[2] for override in overrides if override.startswith("sweep=")]
    return names[-1] if names and names[-1] not in ("", "null") else None


def launch_named(task: Callable, arguments: argparse.Namespace) -> int:
    """Do what is left of a named sweep, beside other workers, or say what that is.

    Returns:
        the exit code: 1 where a job of the command has failed.

    Raises:
        UserError: a mistake in the overrides, or the sweep was made with others that do not go with them.
    """
    if not arguments.multirun:
        raise UserError("sweep= names a sweep; add -m")
    of_hydra = [word for word in arguments.overrides if key_of(word).startswith("hydra")]
    for word in of_hydra:
        if key_of(word).startswith(("hydra.sweep", "hydra.run", "hydra.mode", "hydra/sweeper", "hydra.job")):
            raise UserError(f"{word}: sweep= says where the jobs go; leave it out")
    words = [word for word in arguments.overrides if word not in of_hydra]
    named = _Named(words, of_hydra, arguments.config_dir)
    tasks = named.tasks
    jobs = Jobs(named.folder, (one.name for one in tasks))
    states = jobs.states()
    if arguments.dry_run:
        _tell(named.folder, tasks, states)
        return 0
    where = printable(nearby(named.folder))
    print(f"{len(tasks)} job{'s' * (len(tasks) != 1)} below {where}: {counted(states.values())}", flush=True)
    done = all(state.name == "completed" for state in states.values())
    if not done:
        rehearse_all(named.configs)
    refuse_links_of_sweep(named.folder)
    named = named.written(of_hydra)
    tasks = named.tasks
    jobs.names = [one.name for one in tasks]
    states = jobs.states()
    if done:
        _comparison(named, whole=True)
        return 0
    overrides = [*words, *of_hydra, f"hydra.sweep.dir={quote(str(named.folder))}"]
    launch = launcher(task, [*overrides, *search_path(arguments.config_dir)], CONFIG_DIR, "train")
    write_text(named.folder / "multirun.yaml", launch.yaml)
    with at_work(jobs, len(tasks), launch):
        forgiven = {name: state.failures for name, state in states.items()}
        drain(lambda: tasks, jobs, launch, forgiven, named.retries)
    states = jobs.states()
    _comparison(named, whole=False)
    failed = [name for name, state in states.items() if state.name == "failed"]
    for name in failed[:3]:
        reason = Run(named.folder / name).status.get("reason")
        complain(f"vi-lab train: {printable(name)} has failed: {printable(reason or 'it has not said why')}")
    if len(failed) > 3:
        complain(f"vi-lab train: and {len(failed) - 3} more have failed; vi-lab status {where} names them")
    return 1 if failed else 0


def again(error: KeyboardInterrupt) -> Interrupted:
    """An interruption, saying how to go on with a named sweep."""
    where = f"{getattr(error, 'where', '')} (the same command goes on)".strip()
    return Interrupted(getattr(error, "number", signal.SIGINT), where)


@contextmanager
def at_work(jobs: Jobs, number: int, launch: Launch) -> Iterator[None]:
    """While a worker starts so many jobs: signals, Hydra's errors, and the processes of launchers."""
    try:
        with StopSweep(jobs.folder, partial(_own, jobs)), sweeping(number):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except Abort as abort:
        raise abort.error from None
    except KeyboardInterrupt as error:
        raise again(error) from error
    finally:
        if launch.parallel:
            end_workers()


class _Named:
    """What a command asks of a named sweep.

    Args:
        words: its overrides, Hydra's own left out.
        of_hydra: those.
        config_dir: of the user's own configs.

    Raises:
        UserError: a mistake in the overrides, or the sweep was made with others that do not go with them.
    """

    def __init__(self, words: list[str], of_hydra: list[str], config_dir: str | None) -> None:
        self.words, self.config_dir, self.digest = words, config_dir, digest_of(config_dir)
        try:
            self.swept = swept_keys(words)
            jobs = split_sweep(words)
        except HydraException as error:
            raise UserError(explain(error)) from error
        if vain := [key for key in self.swept if has(key, JOB)]:
            raise UserError(f"{vain[0]}: jobs that differ in it are the same; give one value")
        outside = [word for word in words if has(key_of(word), JOB)]
        (own,) = check_jobs("train", [[*outside, *of_hydra]], config_dir)
        self.name, self.retries = str(own["sweep"]), int(own["retries"])
        self.folder = Path(own["paths"]["log_dir"]) / "sweeps" / self.name
        self.record = Record(self.folder)
        if self.record.commands and "pruner" in self.record.commands[0]:
            raise UserError(f"sweep={self.name}: a search of vi-lab tune has this name; choose another")
        self.configs: list[dict] = []
        """Of the jobs that are new to the sweep, composed and checked."""
        self.names = self._names(jobs)
        """A job's overrides, as one text -> its folder's name."""
        first = {self.names[_text(job)]: job for job in reversed(jobs)}
        order = dict.fromkeys(self.names[_text(job)] for job in jobs)
        self.tasks = [Task(first[name], name, number) for number, name in enumerate(order)]
        """Each job once."""

    def written(self, of_hydra: list[str]) -> _Named:
        """Put the command into the sweep's record, and look at it again: another command may have been written since,
        and the first one counts.

        Raises:
            UserError: it does not go with that.
        """
        words = [word for word in self.words if not has(key_of(word), JOB)]
        made = {"vi_lab": __version__, "configs": self.digest}
        before = len(self.record.commands)
        file = self.record.write({"words": words, "swept": self.swept, **made, "jobs": self.names})
        if len(Record(self.folder).commands) <= before + 1:
            return self
        try:
            again = _Named(self.words, of_hydra, self.config_dir)
            self.record.write({"words": words, "swept": self.swept, **made, "jobs": again.names})
        except UserError:
            file.unlink(missing_ok=True)
            raise
        return again

    def kinds(self) -> list[dict]:
        """The configs of the command's jobs, those that differ in the seed once: classes that they name are trusted."""
        kinds = {tuple(word for word in one.words if key_of(word) not in REPEATED): one.words for one in self.tasks}
        return check_jobs("train", [*kinds.values()], self.config_dir)

    def _names(self, jobs: list[list[str]]) -> dict[str, str]:
        known = self.record.jobs
        there = {name[-10:]: name for name in reversed([*known.values()])}
        unchanged = all(command.get("configs") == self.digest for command in self.record.commands)
        names = {text: there[known[text][-10:]] for text in map(_text, jobs) if unchanged and text in known}
        others = [job for job in jobs if _text(job) not in names]
        if not unchanged:
            self._check_configs()
        self._check_base()
        if not others:
            return names
        if len(others) > MANY:
            print(f"checking {len(others)} jobs", flush=True)
        configs = check_jobs("train", others, self.config_dir)
        check_accelerators(configs)
        for job, config in zip(others, configs, strict=True):
            text, mark = _text(job), fingerprint(config)
            if config["stack"]:
                raise UserError("stack= trains jobs in one process, sweep=NAME in any number; leave one of them out")
            if text in known and not known[text].endswith(f"-{mark}"):
                raise UserError(self._changed(known[text], config))
            if mark not in there:
                swept = swept_text(job, [key for key in self.swept if key not in ("seed", "estimator", "name")])
                parts = (config["name"], swept, f"s{config['seed']}", mark)
                readable = re.sub(r"[^\w.,=+-]+", "_", "-".join(filter(None, parts[:-1])), flags=re.ASCII)
                there[mark] = f"{readable[:LONGEST].lstrip('.') or 'job'}-{mark}"
                self.configs.append(config)
            names[text] = there[mark]
        return names

    def _changed(self, name: str, config: dict) -> str:
        """What is other now in a job that the sweep has already."""
        before: dict[str, Any] = {}
        with suppress(ViLabError):
            before = settings_of(Run(self.folder / name).settings)
        differ = _differences(before, settings_of(config)) if before else ["it has not begun"]
        return (
            f"sweep={self.name}: the configs have changed since it was made ({name}: {_few(differ)}); "
            "change them back, or choose another name"
        )

    def _check_configs(self) -> None:
        """Refuse files of configs that make another job of the first one of the sweep. (Each job is looked at once more
        when it begins.)"""
        text, name = next(iter(self.record.commands[0]["jobs"].items()), ("", ""))
        if not name or "${" in text or "hydra" in text:
            return
        (config,) = check_jobs("train", [shlex.split(text)], self.config_dir)
        if not name.endswith(f"-{fingerprint(config)}"):
            raise UserError(self._changed(name, config))

    def _check_base(self) -> None:
        """Refuse what no job of the command shares with those of the sweep: all values but those that are swept."""
        if not self.record.commands:
            return
        first, free = self.record.commands[0], self.record.swept | {*self.swept, *REPEATED}
        sides = [
            [word for word in words if key_of(word) not in free and not has(key_of(word), JOB)]
            for words in (first["words"], self.words)
        ]
        if set(sides[0]) == set(sides[1]):
            return
        try:
            before, now = (settings_of(resolved(compose_job("train", side, self.config_dir))) for side in sides)
            differ = _differences(before, now)
        except (HydraException, OmegaConfBaseException):  # they need what is swept
            differ = sorted({*sides[0]} ^ {*sides[1]})
        if differ:
            raise UserError(
                f"sweep={self.name}: its jobs have other settings ({_few(differ)}); "
                "give those that it was made with, or choose another name"
            )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{path} is {before.get(path)} there, {now.get(path)} here"
        for path in dict.fromkeys([*before, *now])
        if str(before.get(path)) != str(now.get(path))
    ]


def _few(texts: list[str]) -> str:
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")


def _text(job: list[str]) -> str:
    """A job's overrides as one text, without what does not make it another one."""
    return shlex.join(word for word in job if not has(key_of(word), JOB))


def digest_of(config_dir: str | None) -> str:
    """Of all that overrides refer to: the files of the configs, and vi_lab's version."""
    digest = hashlib.sha256(__version__.encode())
    groups = [path.name for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name not in NO_GROUPS]
    for folder in (CONFIG_DIR, *([Path(config_dir)] if config_dir else [])):
        files = [*folder.glob("*.yaml"), *(file for group in groups for file in folder.glob(f"{group}/**/*.yaml"))]
        for file in sorted(file for file in files if file.is_file()):
            digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


# --- doing it --------------------------------------------------------------------------------------------------------


def drain(
    source: Callable[[], list[Task]],
    jobs: Jobs,
    launch: Launch,
    forgiven: Mapping[str, int],
    retries: int,
    one_by_one: bool = False,
) -> None:
    """Start jobs that nobody has until all have ended, those of other workers too: whose worker dies is taken over.

    Args:
        source: gives the jobs, asked again each time.
        forgiven: how often a job had failed before this command: it is tried again.
        one_by_one: ask the source before each job, as time or what has ended decides what comes next.
    """
    waiting, vain = False, 0
    while True:
        tasks = source()
        jobs.names = [task.name for task in tasks]
        states = jobs.states()
        dying = [
            name for name, state in states.items() if state.name == "interrupted" and jobs.dies(name, state.claims)
        ]
        for name in dying:
            _give_up(jobs, name, states[name])
        if dying:
            continue
        free = [task for task in tasks if is_free(states[task.name], forgiven.get(task.name, 0), retries)]
        if free:
            waiting = False
            batch = free[:1] if one_by_one else free
            for task in batch:
                _refuse_links_of_job(jobs.folder / task.name)
            overrides = [_launched(task, states[task.name].claims + 1) for task in batch]
            error = None
            try:
                launch(overrides, batch[0].number)
            except Exception as caught:  # such as a worker that the system has killed for its memory
                error = caught
            claims = jobs.claims.read()
            started = any(len(claims.get(task.name, ())) > states[task.name].claims for task in batch)
            vain = 0 if started else vain + 1
            if error is not None and not started:
                raise error
            if error is not None:
                complain(f"vi-lab train: {one_line(error)}")
                if launch.parallel:
                    end_workers()
            if vain > IN_VAIN:
                raise ViLabError(f"{jobs.folder}: no job begins, though {len(free)} are free; is the folder writable?")
            continue
        busy = [state for state in states.values() if state.name == "running"]
        if not busy:
            return
        if not waiting:
            waiting = True
            workers = ", ".join(sorted({printable(state.worker) or "another process" for state in busy}))
            print(f"waits for {len(busy)} job{'s' * (len(busy) != 1)} of {workers}; Ctrl-C leaves them", flush=True)
        time.sleep(LOOK)


def refuse_links_of_sweep(folder: Path) -> None:
    """Before anything is written into a sweep's folder, which may be somebody else's: into what is not a job's.

    Raises:
        ViLabError: a link leads out of it; see `vi_lab.runs.trust.refuse_links`.
    """
    for name in (".sweep", "comparison", "tuning", STUDY_FILE, "multirun.yaml"):
        if os.path.lexists(path := folder / name):
            inside(folder, name)
            if path.is_dir():
                refuse_links(path)
            elif not is_own(path):
                raise ViLabError(f"{path}: a link, or no file; remove it")


def _refuse_links_of_job(folder: Path) -> None:
    if folder.is_symlink():
        raise ViLabError(f"{folder}: a link in place of a job's folder; remove it")
    if folder.is_dir():
        refuse_links(folder)


def _launched(task: Task, claim: int) -> list[str]:
    """The overrides of a job for a launcher."""
    return [*task.words, f"hydra.sweep.subdir={quote(task.name)}", f"+hydra.job.env_set.{CLAIM}='{claim}'"]


def _own(jobs: Jobs) -> set[int]:
    """The processes of this machine that this command has started and that are at work on jobs."""
    pids, own = set(), {"kernel": kernel(), "driver": os.environ.get(DRIVER)}
    for name, state in jobs.states().items():
        about = jobs.claims.about(name, state.claims) if state.name == "running" else {}
        pid = str(about.get("worker")).rpartition(":")[2]
        if pid.isdecimal() and own.items() <= about.items():
            pids.add(int(pid))
    return pids - {os.getpid()}


def is_free(state: State, forgiven: int, retries: int) -> bool:
    """Whether a job is to be started."""
    return state.name in ("new", "interrupted") or (state.name == "failed" and state.failures - forgiven <= retries)


def _give_up(jobs: Jobs, name: str, state: State) -> None:
    """A job with which one worker after the other has died has failed."""
    held = jobs.claims.take(name, state.claims + 1)
    if held is None:
        return
    with held, hold(jobs.folder / name):
        reason = "its worker has died each time at this place: killed, perhaps as memory was short"
        Status(jobs.folder / name).write("failed", reason)
        held.outcome = "failed"


# --- saying it -------------------------------------------------------------------------------------------------------


def _tell(folder: Path, tasks: list[Task], states: dict[str, State]) -> None:
    """What the command would do with each job."""
    what = {
        "completed": "is left as it is",
        "running": "is left to {worker}",
        "interrupted": "goes on from its last checkpoint",
        "failed": "is tried again",
        "new": "begins",
    }
    terminal = make_console()
    rows = [
        [task.name, state.name, what[state.name].format(worker=state.worker)]
        for task in tasks
        for state in [states[task.name]]
    ]
    headings = [Heading("job", numeric=False), Heading("state", numeric=False), Heading("what happens", numeric=False)]
    print_tables(terminal, headings, [("", rows)])
    terminal.say(f"{len(tasks)} job{'s' * (len(tasks) != 1)} below {nearby(folder)}: {counted(states.values())}")


def _comparison(named: _Named, whole: bool) -> None:
    """The comparison of the sweep; where nothing was done, only where it is."""
    page = named.folder / "comparison" / "comparison.html"
    if whole and page.is_file():
        print(f"Tables and curves: {printable(nearby(page))}")
        return
    from vi_lab.comparison.publish import summarize

    with trusting(named.kinds()):
        summarize(named.folder)
