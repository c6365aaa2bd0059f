"""`vi-lab train resume=PATH`: go on with a run, or finish a sweep. The folder says all the rest.

The folder may be somebody else's: what its files name is checked as in `vi_lab.runs`, and of a sweep's overrides only
values and the known launchers are taken over.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from vi_lab.config import CONFIG_DIR, check_stored, explain, leaves, plain, quote, resolved
from vi_lab.errors import UserError
from vi_lab.runs import CONFIG_FILE, Run, finished, read_yaml

MAY_CHANGE = (
    "trainer.max_epochs",
    "trainer.log_every_n_steps",
    "data.root",
    "data.download",
    "threads",
    "accelerator",
    "figures",
    "figures_every_n_epochs",
    "projector",
    "evaluation.samples",
    "evaluation.images",
    "checkpoint.every_n_steps",
    "debug",
)
SWEEP_MAY_CHANGE = ("data.root", "data.download", "threads", "debug", "hydra/launcher", "hydra.launcher.n_jobs")


def resume_run(folder: Path, overrides: list[str]) -> None:
    """Go on with one run from its last checkpoint, or say that it is completed.

    Raises:
        UserError: no run folder, or an override that would make it another run.
        ViLabError: no checkpoint can be used.
    """
    from vi_lab.train import check_accelerators, execute

    run = Run(folder)
    config = run.config
    epochs = config.trainer.max_epochs
    config.data.download = False  # nothing is fetched on the word of somebody else's folder
    for key, value in _parse(overrides, MAY_CHANGE):
        if key == "accelerator":
            config.accelerator = _choice("accelerator", value)
        else:
            OmegaConf.update(config, key, value)
    check_stored(plain(config), f"resume={folder}", "this one")
    check_accelerators([plain(config)], multirun=False)
    if finished(folder) is not None and config.trainer.max_epochs <= epochs:
        print(f"{folder} is completed, after {epochs} epochs; trainer.max_epochs=N with a larger N goes on")
        return
    execute(config, folder, resume=True)


def resume_sweep(folder: Path, overrides: list[str]) -> list[str]:
    """The arguments that start a sweep again in its folder: completed jobs are skipped, interrupted ones go on.

    Raises:
        UserError: not a sweep of `vi-lab train`, or overrides that are not accepted.
    """
    values = read_yaml(folder, "multirun.yaml")
    try:
        task = [str(o) for o in values["hydra"]["overrides"]["task"]]
        own = [str(o) for o in values["hydra"]["overrides"]["hydra"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'multirun.yaml'}: not a sweep of vi-lab train") from error
    for override in task:
        if "hydra" in override.split("=")[0] or "_target_" in override:
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
    _parse(overrides, SWEEP_MAY_CHANGE)
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
            if not path.startswith(SWEEP_MAY_CHANGE) and str(value) != str(stored.get(path)):
                raise UserError(f"{folder}: holds another run: its {path} is {stored.get(path)}, not {value}")
    return config


def _parse(overrides: list[str], accepted: tuple[str, ...]) -> list[tuple[str, object]]:
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(explain(error)) from error
    for override in parsed:
        if override.key_or_group not in accepted or override.is_delete():
            raise UserError(
                f"{override.key_or_group} cannot change with resume=: the folder says what the run is "
                f"(only {', '.join(accepted)} may)"
            )
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: wanted one value")
    return [(override.key_or_group, override.value()) for override in parsed]


def _choice(group: str, name: object) -> dict:
    file = CONFIG_DIR / group / f"{name}.yaml"
    choices = sorted(path.stem for path in file.parent.glob("*.yaml"))
    if name not in choices:
        raise UserError(f"{group}={name}: no such choice (one of {', '.join(choices)})")
    return yaml.safe_load(file.read_text(encoding="utf-8"))
