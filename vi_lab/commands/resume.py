"""`vi-lab train resume=PATH`: go on with a run, or with a sweep: finish it, train its jobs longer, or give it more. The
folder says all the rest.

The folder may be somebody else's: what its files name is checked as in `vi_lab.runs.trust`, and of a sweep's overrides
only values and the known launchers are taken over.
"""

from __future__ import annotations

import re
from itertools import accumulate, count
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig

from vi_lab.config import explain, key_of, parse_values, plain, put_values, quote, resolved, split_sweep, swept_keys
from vi_lab.errors import UserError, nearby, printable
from vi_lab.runs.files import CONFIG_FILE
from vi_lab.runs.run import Run, finished
from vi_lab.runs.trust import check_loggers, check_stored, read_yaml, refuse_links
from vi_lab.schema import RESUME, SWEEP, has, leaves
from vi_lab.training.execution import Job, execute
from vi_lab.training.process import check_accelerators

LONGEST = 20_000
"""Characters of the overrides of a sweep, which Hydra reads slowly."""

NUMBER = "${hydra.job.num}"
NUMBERED = re.compile(r"\$\{numbered:\$\{hydra\.job\.num\},\[(\d{1,6}(?:,\d{1,6})*)\]\}")
"""What stands for the number of a job in `hydra.sweep.subdir` where a sweep was given more jobs: Hydra counts them in
the order of the overrides, and those that were there keep their folders."""


def resume_run(folder: Path, overrides: list[str]) -> None:
    """Go on with one run from its last checkpoint, or say that it is completed.

    Raises:
        UserError: no run folder, or an override that would make it another run.
        ViLabError: no checkpoint can be used.
    """
    run = Run(folder)
    config = run.config
    refuse_links(folder)
    config.data.download = False  # nothing is fetched on the word of somebody else's folder
    put_values(config, parse_values(overrides, RESUME, "resume="))
    check_stored(plain(config), f"resume={folder}", "this one")
    check_loggers(plain(config), f"resume={folder}")
    check_accelerators([plain(config)])
    if completed(folder, config) is not None:
        epochs = Run(folder).config.trainer.max_epochs
        name = printable(nearby(folder))
        print(f"{name} is completed, after {epochs} epochs; trainer.max_epochs=N with a larger N goes on")
        return
    execute(Job(config, folder, {"resume": True}))


def completed(folder: Path, config: DictConfig) -> float | None:
    """What `finished` returns; None also where the config wants more epochs than the run was to have."""
    result = finished(folder)
    return result if result is None or config.trainer.max_epochs <= Run(folder).config.trainer.max_epochs else None


def resume_sweep(folder: Path, overrides: list[str]) -> list[str]:
    """The arguments that start a sweep again in its folder: completed jobs are skipped, interrupted ones go on, and
    those that are missing begin. `multirun.yaml` is then that of the whole sweep.

    Args:
        overrides: of `RESUME` and `SWEEP`, for all jobs; and for what was swept, or the seed, all its values and more.

    Raises:
        UserError: not a sweep of `vi-lab train`, or overrides that are not accepted.
    """
    refuse_links(folder)
    file = folder / "multirun.yaml"
    values = read_yaml(folder, file.name)
    try:
        task, own = ([str(o) for o in values["hydra"]["overrides"][kind]] for kind in ("task", "hydra"))
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: not a sweep of vi-lab train") from error
    task = [override for override in task if key_of(override) != "resume"]  # of the last time
    if (length := sum(map(len, task))) > LONGEST:
        raise UserError(f"{file}: overrides of {length} characters, more than {LONGEST}")
    for override in task:
        if "hydra" in override.split("=")[0] or "_target_" in override or re.search(r"\$\{|\boc\.", override):
            raise UserError(f"{file}: {override}: not a value, so it is not taken over")
    kept = []
    for override in own:
        key = key_of(override)
        if key in ("hydra.mode", "hydra.sweep.dir", "hydra.run.dir"):
            continue
        named = key == "hydra.sweep.subdir" and _stays_inside(override.partition("=")[2])
        if not named and not re.fullmatch(
            r"hydra/launcher=(basic|joblib|local)|hydra\.launcher\.n_jobs=-?\d+", override
        ):
            raise UserError(f"{file}: {override}: not taken over from a sweep; start it again")
        kept.append(override)
    try:
        swept = swept_keys(task)
    except HydraException as error:
        raise UserError(f"{file}: {explain(error)}") from error
    more = [override for override in overrides if key_of(override) in {*swept, "seed"}]
    parsed = parse_values([o for o in overrides if o not in more], RESUME | SWEEP, "resume=")
    before = dict(leaves(values))
    epochs, least = dict(parsed).get("trainer.max_epochs"), before.get("trainer.max_epochs")
    if isinstance(epochs, int) and isinstance(least, int) and epochs < least:
        raise UserError(f"trainer.max_epochs={epochs}: the jobs of this sweep have {least}; wanted more")
    of_hydra = [override for override in overrides if key_of(override).startswith("hydra")]
    given = [override for override in overrides if override not in of_hydra]
    # nothing is fetched on the word of somebody else's folder
    wanted = _replaced(task, ["data.download=false", *given])
    if more:
        subdir = before.get("hydra.sweep.subdir")
        subdir = subdir.replace("${hydra:job.num}", NUMBER) if isinstance(subdir, str) else subdir
        if not isinstance(subdir, str) or not _stays_inside(subdir):
            raise UserError(f"{file}: hydra.sweep.subdir={subdir}: not taken over from a sweep; start another")
        numbers = _numbers(task, wanted, {*swept, "seed"}, NUMBERED.search(subdir), before.get("seed"))
        listed = f"${{numbered:{NUMBER},[{','.join(map(str, numbers))}]}}"
        kept = _replaced(kept, [f"hydra.sweep.subdir={quote(NUMBERED.sub(NUMBER, subdir).replace(NUMBER, listed))}"])
    where = quote(str(folder))
    return ["-m", *wanted, f"resume={where}", f"hydra.sweep.dir={where}", *_replaced(kept, of_hydra)]


def _replaced(overrides: list[str], others: list[str]) -> list[str]:
    """Overrides with others, each in the place of the one with its key."""
    found = {key_of(override): override for override in overrides}
    return [*(found | {key_of(override): override for override in others}).values()]


def _stays_inside(subdir: str) -> bool:
    """Whether the name of a job's folder leads nowhere else, as far as it stands there; see also `check_folders`."""
    known = (
        r"\$\{(hydra[.:]job\.num|(?!hydra|paths|data|resume)[\w.]+)\}"
        r"|\$\{swept:\$\{hydra\.overrides\.task\},\[[\w.,/@]*\]\}"
    )
    rest = re.sub(known, "", NUMBERED.sub("", subdir))
    return not re.search(r"\.\.|^['\"]?[/~]|\$\{", rest)


def check_folders(configs: list[dict], overrides: list[str]) -> None:
    """Refuse texts of a stranger's sweep that would lead a job's folder out of that of the sweep.

    Args:
        configs: of the jobs.
        overrides: of the sweep.
    """
    subdirs = [override for override in overrides if key_of(override) == "hydra.sweep.subdir"] or ["${name}"]
    keys = re.findall(r"\$\{([\w.]+)\}", subdirs[-1])
    for values in map(dict, map(leaves, configs)):
        for key in keys:
            if not re.fullmatch(r"(?!.*\.\.)[\w.+=,-]*", str(values.get(key, ""))):
                raise UserError(f"{key}={values[key]}: names the folders of this sweep's jobs, and is no name")


def _numbers(before: list[str], after: list[str], swept: set[str], known: re.Match[str] | None, seed: Any) -> list[int]:
    """The numbers of a sweep's jobs, in Hydra's order: those that are there keep theirs, the others take the next ones.

    Args:
        before, after: overrides of the sweep as it is, and as it is to be.
        swept: keys by which its jobs differ.
        known: the numbers of the jobs as they are; None: in Hydra's order.
        seed: of all jobs, where `before` says none.

    Raises:
        UserError: jobs that are there would be missing.
    """

    def jobs(overrides: list[str]) -> list[tuple]:
        try:
            split = split_sweep(overrides)
        except HydraException as error:
            raise UserError(explain(error)) from error
        settings = [{"seed": str(seed)} | {key_of(o): o.partition("=")[2] for o in job} for job in split]
        return [tuple((key, values[key]) for key in sorted(swept)) for values in settings]

    there, wanted = jobs(before), jobs(after)
    if len({*there}) != len(there) or len({*wanted}) != len(wanted):
        raise UserError("the same job stands twice in this sweep, so it cannot be given more; start another")
    numbers = [int(number) for number in known[1].split(",")] if known else range(len(there))
    if len({*numbers}) != len(there):
        raise UserError("multirun.yaml: the numbers of its jobs are not those of a sweep; start another")
    if gone := [job for job in there if job not in {*wanted}]:
        name = " ".join(f"{key}={value}" for key, value in gone[0])
        raise UserError(f"the job {name} would be missing: give all values that were swept, and those that are added")
    number, following = dict(zip(there, numbers, strict=True)), count(max(numbers) + 1)
    return [number[job] if job in number else next(following) for job in wanted]


def stored_config(folder: Path, config: DictConfig) -> DictConfig:
    """The config of a job of a sweep that is started again, which must be that of the run in its folder, if any.

    Raises:
        UserError: the folder holds another run.
    """
    if (folder / CONFIG_FILE).is_file():
        stored = Run(folder).settings
        for path, value in leaves(resolved(config)):
            nodes = accumulate(path.split("."), "{}.{}".format)
            if not any(has(node, RESUME | SWEEP) for node in nodes) and str(value) != str(stored.get(path)):
                raise UserError(f"{folder}: holds another run: its {path} is {stored.get(path)}, not {value}")
    return config
