"""`vi-lab train resume=PATH`: go on with a run, or finish a sweep. The folder says all the rest.

The folder may be somebody else's: what its files name is checked as in `vi_lab.runs.trust`, and of a sweep's overrides
only values and the known launchers are taken over.
"""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import DictConfig

from vi_lab.config import parse_values, plain, put_values, quote, resolved
from vi_lab.errors import UserError, printable
from vi_lab.runs.files import CONFIG_FILE
from vi_lab.runs.run import Run, finished
from vi_lab.runs.trust import check_loggers, check_stored, read_yaml, refuse_links
from vi_lab.schema import RESUME, SWEEP, has, leaves
from vi_lab.training.execution import execute
from vi_lab.training.process import check_accelerators

LONGEST = 20_000
"""Characters of the overrides of a sweep, which Hydra reads slowly."""


def resume_run(folder: Path, overrides: list[str]) -> None:
    """Go on with one run from its last checkpoint, or say that it is completed.

    Raises:
        UserError: no run folder, or an override that would make it another run.
        ViLabError: no checkpoint can be used.
    """
    run = Run(folder)
    config = run.config
    refuse_links(folder)
    epochs = config.trainer.max_epochs
    config.data.download = False  # nothing is fetched on the word of somebody else's folder
    put_values(config, parse_values(overrides, RESUME, "resume="))
    check_stored(plain(config), f"resume={folder}", "this one")
    check_loggers(plain(config), f"resume={folder}")
    check_accelerators([plain(config)], multirun=False)
    if finished(folder) is not None and config.trainer.max_epochs <= epochs:
        print(f"{printable(folder)} is completed, after {epochs} epochs; trainer.max_epochs=N with a larger N goes on")
        return
    execute(config, folder, resume=True)


def resume_sweep(folder: Path, overrides: list[str]) -> list[str]:
    """The arguments that start a sweep again in its folder: completed jobs are skipped, interrupted ones go on.

    Raises:
        UserError: not a sweep of `vi-lab train`, or overrides that are not accepted.
    """
    refuse_links(folder)
    values = read_yaml(folder, "multirun.yaml")
    try:
        task, own = ([str(o) for o in values["hydra"]["overrides"][kind]] for kind in ("task", "hydra"))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'multirun.yaml'}: not a sweep of vi-lab train") from error
    if (length := sum(map(len, task))) > LONGEST:
        raise UserError(f"{folder / 'multirun.yaml'}: overrides of {length} characters, more than {LONGEST}")
    for override in task:
        if "hydra" in override.split("=")[0] or "_target_" in override or re.search(r"\$\{|\boc\.", override):
            raise UserError(f"{folder / 'multirun.yaml'}: {override}: not a value, so it is not taken over")
    kept = []
    for override in own:
        key = override.split("=")[0]
        if key in ("hydra.mode", "hydra.sweep.dir", "hydra.run.dir"):
            continue
        subdir = key == "hydra.sweep.subdir" and not re.search(r"\.\.|=['\"]?[/~]|oc\.", override)
        if not subdir and not re.fullmatch(r"hydra/launcher=(basic|joblib)|hydra\.launcher\.n_jobs=-?\d+", override):
            raise UserError(f"{folder / 'multirun.yaml'}: {override}: not taken over from a sweep; start it again")
        kept.append(override)
    parse_values(overrides, SWEEP, "resume=")
    where = quote(str(folder))
    return ["-m", *task, f"resume={where}", f"hydra.sweep.dir={where}", *kept, *overrides]


def stored_config(folder: Path, config: DictConfig) -> DictConfig:
    """The config of a job of a sweep that is started again, which must be that of the run in its folder, if any.

    Raises:
        UserError: the folder holds another run.
    """
    if (folder / CONFIG_FILE).is_file():
        stored = Run(folder).settings
        for path, value in leaves(resolved(config)):
            if not has(path, SWEEP) and str(value) != str(stored.get(path)):
                raise UserError(f"{folder}: holds another run: its {path} is {stored.get(path)}, not {value}")
    return config
