"""`vi-lab share RUN... FOLDER`: a copy of run folders that does not say on whose machine they were made.

Left out are Hydra's own records and the log, which hold absolute paths; event files lose the host in their names, and
what else is written in words its folders. The copy can be compared, evaluated, resumed and repeated like the original.
"""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from vi_lab.adapters.tensorboard import EVENT_FILES
from vi_lab.arguments import Parser, folder_of
from vi_lab.console import make_console
from vi_lab.errors import UserError, printable
from vi_lab.runs.evaluations import LATER
from vi_lab.runs.files import CONFIG_FILE, claim, is_vacant, replacing, write_bytes, write_json, write_text
from vi_lab.runs.run import Run, find_runs
from vi_lab.runs.trust import inside, load_checkpoint, read_bytes, read_json, read_text, read_yaml, save_checkpoint

TABLES = ("metrics.csv", "timing.csv", "units.csv", "scalars.csv")
RECORDS = ("environment.json", "status.json", "metrics.json", "evaluation.json", "reproduction.json")
LARGEST = 1 << 30
"""Bytes of an event file or a picture."""

DIRECTORIES = re.compile(r"(?<![^\s='\",\[(:])(?:[A-Za-z]:[\\/]|~?/)(?:[^\s'\",\])]*[\\/])?")
"""The directories of a path that does not begin here, wherever it stands in a text."""


def parser() -> Parser:
    """The arguments."""
    parser = Parser(
        prog="vi-lab share",
        description="Copy run folders without what tells whose machine they were made on: host name, user name, "
        "folders. Processor, versions and the device stay: they are needed to judge a repetition.",
    )
    what = "run folders, sweep folders, or patterns such as 'outputs/*/*'; run=RUN is the same"
    parser.add_argument("runs", metavar="RUN", nargs="+", type=folder_of, help=what)
    parser.add_argument("folder", metavar="FOLDER", help="where the copies go; must be new or empty")
    return parser


def main(argv: list[str]) -> int:
    """Copy runs; 1 where a copy still holds a word that names the machine or its user, otherwise 0.

    Raises:
        UserError: no run was named, or the target holds something.
    """
    arguments = parser().parse_args(argv)
    return share(arguments.runs, Path(arguments.folder))


def share(paths: list[str], target: Path) -> int:
    """Copy the runs at or below `paths` to `target`; returns the exit code, see `main`.

    Raises:
        UserError: there is no run, or the target holds something.
    """
    runs = find_runs(paths)
    if not is_vacant(target):
        raise UserError(f"{target}: not an empty folder")
    terminal = make_console()
    single = len(runs) == 1
    copied = [run for run in runs if (run.folder / CONFIG_FILE).is_file()]
    for run in copied:
        copy(run, target if single else claim(target / run.folder.name))  # sweeps have jobs of equal names
    words = names(copied)
    told = [f"{file} holds {word!r}" for file in sorted(target.rglob("*")) for word in _telling(file, words)]
    for line in told:
        terminal.say(f"! {printable(line)}: look at it before you share it", "yellow")
    terminal.say(f"{len(copied)} of {len(runs)} runs copied to {printable(target)}")
    return 1 if told else 0


def copy(run: Run, target: Path) -> None:
    """Copy one run.

    Raises:
        UserError: its config is not one of ours.
        ViLabError: a file cannot be read.
    """
    _ = run.config  # checked
    folder = run.folder
    config = nameless(read_yaml(folder, CONFIG_FILE))
    if config["data"].get("root") is not None:
        config["data"]["root"] = "data"
    (target / "checkpoints").mkdir(parents=True)
    write_text(target / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    later = [file.relative_to(folder).as_posix() for file in sorted((folder / LATER).glob("*.*"))]
    if later:
        (target / LATER).mkdir()
    for name in (*RECORDS, *(name for name in later if name.endswith(".json"))):
        if (folder / name).is_file():
            write_json(target / name, nameless({k: v for k, v in read_json(folder, name).items() if k != "pid"}))
    for name in (*TABLES, *(name for name in later if name.endswith(".csv"))):
        if (folder / name).is_file():
            write_text(target / name, read_text(folder, name))
    renamed = {}
    for number, file in enumerate(sorted(folder.glob(EVENT_FILES))):
        renamed[file.name] = f"events.out.tfevents.{_time_of(file)}.host.0.{number}"
        write_bytes(target / renamed[file.name], read_bytes(inside(folder, file.name), LARGEST))
    for file in sorted(folder.glob("figures/*.png")):
        (target / "figures").mkdir(exist_ok=True)
        write_bytes(target / "figures" / file.name, read_bytes(inside(folder, f"figures/{file.name}"), LARGEST))
    for name in ("last", "previous", "best"):
        if (file := run.checkpoint(name)).is_file():
            checkpoint = load_checkpoint(file)
            with suppress(KeyError, TypeError, AttributeError):  # it cannot be resumed, here as there
                state = checkpoint["callbacks"]["Checkpoints"]  # has the lengths of event files
                state["events"] = {renamed.get(name, name): length for name, length in state["events"].items()}
            with replacing(target / "checkpoints" / file.name) as copied:
                save_checkpoint(checkpoint, copied)


def _time_of(file: Path) -> str:
    found = re.match(r"events\.out\.tfevents\.(\d+)\.", file.name)
    return found[1] if found else "0"


def nameless(value: Any) -> Any:
    """Plain values with every absolute path in their texts cut to its last part."""
    if isinstance(value, dict):
        return {key: nameless(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [nameless(inner) for inner in value]
    return DIRECTORIES.sub("", value) if isinstance(value, str) else value


def names(runs: list[Run]) -> set[str]:
    """Words that name this machine, its user, or the machines that event files name; none too short to be told from
    others."""
    hosts = {socket.gethostname()}
    for file in (file for run in runs for file in run.folder.glob(EVENT_FILES)):
        hosts |= set(re.findall(r"tfevents\.\d+\.(.+)\.\d+\.\d+$", file.name))
    words = {*hosts, getpass.getuser(), str(Path.home()), *(str(run.folder.resolve().parent) for run in runs)}
    return {word for word in words if len(word) > 4 and word not in ("localhost", "host")}


def _telling(file: Path, words: set[str]) -> Iterator[str]:
    data = file.name.encode() + (file.read_bytes() if file.is_file() else b"")
    yield from sorted(word for word in words if word.encode() in data)
