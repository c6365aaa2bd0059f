"""The jobs of a sweep, read from its files alone: which there are, where each stands, who is at work on it.

A named sweep keeps, below `.sweep/`, what commands have asked for (`commands/`), and who has done what (`claims/`, see
`vi_lab.runs.claims`). Of any other sweep the jobs are the run folders in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vi_lab.errors import ViLabError
from vi_lab.runs.claims import Claims, Held
from vi_lab.runs.files import CONFIG_FILE, LAST, write_json
from vi_lab.runs.run import Run
from vi_lab.runs.trust import read_json
from vi_lab.schema import JOB, has, leaves

COMMANDS = Path(".sweep", "commands")
DEATHS = 3
"""So many workers in a row that die with a job which gets no further: then it is the job's fault, and it has failed."""


CLAIM = "VI_LAB_CLAIM"
"""In the environment of a job: the number of the claim that is to be made on it."""

NAME = re.compile(r"(?!\.)[\w.,=+-]{1,200}-[0-9a-f]{10}", re.ASCII)
"""The folder of a job of a named sweep."""

TRIAL = re.compile(r"trial-(?P<number>\d{1,7})-(?P<run>s\d+(-fold\d+)?)")
"""The folder of a run of a study."""

STATES = ("completed", "pruned", "running", "interrupted", "failed", "new")


class State(NamedTuple):
    """Where a job stands."""

    name: str
    """One of `STATES`; interrupted: it has begun, and nobody is at work on it."""
    claims: int = 0
    """How often it was claimed."""
    failures: int = 0
    worker: str = ""
    """HOST:PID of the one that is at work on it."""


def counted(states: Iterable[State]) -> str:
    """As "3 completed, 1 running, 8 new"."""
    counts = Counter(state.name for state in states)
    return ", ".join(f"{number} {name}" for name in STATES if (number := counts[name]))


def settings_of(config: dict) -> dict[str, Any]:
    """What makes a job what it is: all of its config but where and how it is run."""
    return {path: value for path, value in leaves(config) if not has(path, JOB)}


def fingerprint(config: dict) -> str:
    """Ten hexadecimal digits of a job's settings."""
    text = json.dumps(sorted(settings_of(config).items()), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def is_run(folder: Path) -> bool:
    """Whether a run has written into a folder."""
    return any((folder / mark).is_file() for mark in (CONFIG_FILE, "status.json"))


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was started in a folder."""
    return any((folder / mark).exists() for mark in ("multirun.yaml", COMMANDS))


class Record:
    """What commands have asked of a named sweep: jobs, by their overrides.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[dict[str, Any]] = []
        """In the order in which they were given first."""
        files = sorted((folder / COMMANDS).glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
        for file in files:
            command = read_json(folder, str(COMMANDS / file.name))
            if not _is_command(command):
                raise ViLabError(f"{file}: damaged; remove it, and give its command again")
            self.commands.append(command)

    @property
    def jobs(self) -> dict[str, str]:
        """A job's overrides, as one text -> its folder's name."""
        return {words: name for command in reversed(self.commands) for words, name in command["jobs"].items()}

    @property
    def swept(self) -> set[str]:
        """The keys that some command has swept over."""
        return {key for command in self.commands for key in command["swept"]}

    def write(self, command: dict[str, Any]) -> Path:
        """Add a command, or write it again, which leaves its place in the order; returns the file."""
        name = hashlib.sha256(json.dumps(command["words"]).encode()).hexdigest()[:16]
        path = self.folder / COMMANDS / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        given = path.stat().st_mtime_ns if path.is_file() else None
        write_json(path, command)
        if given is not None:
            os.utime(path, ns=(given, given))
        return path


def _is_command(command: dict[str, Any]) -> bool:
    """Whether a record is one of ours: the folder may be somebody else's, and the names in it become paths."""
    texts = [command.get(key) for key in ("words", "swept")]
    jobs = command.get("jobs")
    return (
        all(isinstance(text, list) and all(isinstance(one, str) for one in text) for text in texts)
        and isinstance(jobs, dict)
        and all(isinstance(name, str) and NAME.fullmatch(name) for name in jobs.values())
    )


class Jobs:
    """Where the jobs of a sweep stand.

    Args:
        folder: of the sweep.
        names: of the jobs' folders.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder, self.names = folder, list(names)
        self.claims = Claims(folder)

    @classmethod
    def found(cls, folder: Path) -> Jobs:
        """Of a sweep's files: those that its commands have asked for, and what run folders there are."""
        named = dict.fromkeys(Record(folder).jobs.values())
        marks = (CONFIG_FILE, "status.json")
        there = sorted(
            path.name for path in folder.iterdir() if path.is_dir() and any((path / m).is_file() for m in marks)
        )
        return cls(folder, {**named, **dict.fromkeys(sorted(there, key=_natural))})

    def states(self) -> dict[str, State]:
        """Of each job, in order."""
        claims = self.claims.read()
        return {name: self._state(name, claims.get(name, [])) for name in self.names}

    def _state(self, name: str, outcomes: Sequence[str | None]) -> State:
        number, failures = len(outcomes), outcomes.count("failed")
        if number and outcomes[-1] is None and self.claims.is_live(name, number):
            worker = str(self.claims.about(name, number).get("worker", ""))
            return State("running", number, failures, worker)
        state = Run(self.folder / name).state
        if state not in ("completed", "pruned") and outcomes and outcomes[-1] == "failed":
            state = "failed"  # perhaps before it could write so
        if state == "unknown":
            state = "interrupted" if (self.folder / name / CONFIG_FILE).is_file() else "new"
        return State("interrupted" if state == "killed" else state, number, failures)

    def claim(self, name: str, number: int) -> Held | None:
        """Make claim `number` on a job; None where it was given since one has looked."""
        return self.claims.take(name, number, self.progress(name))

    def progress(self, name: str) -> int:
        """How far a job is: what its last checkpoint tells it from those before."""
        with suppress(OSError):
            return (self.folder / name / LAST).stat().st_mtime_ns
        return 0

    def dies(self, name: str, claims: int) -> bool:
        """Whether the last `DEATHS` workers have died with the job at the same place."""
        last = self.claims.read().get(name, [])[claims - DEATHS : claims] if claims >= DEATHS else []
        if len(last) < DEATHS or any(outcome is not None for outcome in last):
            return False
        progress = self.progress(name)
        return all(self.claims.about(name, claims - i).get("progress") == progress for i in range(DEATHS))


def _natural(name: str) -> tuple:
    """10-rloo behind 9-rloo."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))
