"""`vi-lab train`: from overrides to finished run folders. Nothing heavy is imported before the config is checked."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from vi_lab.arguments import unquote
from vi_lab.commands.launch import Abort, launch_training
from vi_lab.commands.resume import completed, resume_run, resume_sweep, stored_config
from vi_lab.config import only_asks, read_arguments, swept_keys
from vi_lab.errors import UserError, ViLabError, complain, nearby, one_line, printable
from vi_lab.runs.trust import read_yaml
from vi_lab.training.execution import Job, execute
from vi_lab.training.sweep import Stacks, standing, time_left
from vi_lab.training.workers import work


def main(argv: list[str]) -> int:
    """Train what the overrides say, or go on with the run or the sweep that `resume=` names."""
    arguments = read_arguments(argv)
    folders = [o.removeprefix("resume=") for o in arguments.overrides if o.startswith("resume=")]
    if not folders or folders[-1] in ("", "null") or only_asks(arguments):
        return launch_training(task, argv)
    folder, others = Path(unquote(folders[-1])), [o for o in arguments.overrides if not o.startswith("resume=")]
    if (folder / "multirun.yaml").is_file():
        own = ["--config-dir", arguments.config_dir] if arguments.config_dir else []
        return launch_training(task, [*own, *resume_sweep(folder, others)], resuming=True)
    resume_run(folder, others)
    return 0


def task(config: DictConfig, stacks: Stacks | None = None) -> float | Callable[[], float]:
    """One job of Hydra's: what it is called and where it writes, then `execute`. Of a job that waits for others of its
    stack, what tells its result once all have been trained."""
    of_hydra = HydraConfig.get()
    folder = Path(of_hydra.runtime.output_dir)
    sweep = of_hydra.mode == RunMode.MULTIRUN
    number = of_hydra.job.num if sweep else 0
    stacked = stacks if stacks is not None and number in stacks.members else None
    parallel = sweep and "BasicLauncher" not in of_hydra.launcher._target_
    resume, config.resume = config.resume is not None, None
    label = f"{standing(number)}: " if sweep else ""
    try:
        if resume and (done := completed(folder, stored_config(folder, config))) is not None:
            print(printable(f"{label}{folder.name if sweep else nearby(folder)} is completed"))
            if stacked:
                _train_stack(stacked, number, None)
            return done
        if sweep:
            print(printable(f"{label}{folder.name}{time_left(Path(of_hydra.sweep.dir), number)}"), flush=True)
        words = [word for word in of_hydra.overrides.task if not word.startswith("resume=")]
        options = {
            "command": shlex.join(["vi-lab", "train", *words]),
            "workers": of_hydra.launcher.get("n_jobs") or 1 if parallel else 1,
            "label": label,
            "bar": not parallel,
            "resume": resume and (folder / "status.json").is_file(),  # a job that is new has nothing to go on from
            "swept": _swept(Path(of_hydra.sweep.dir), words) if sweep else {},
        }
        job = Job(config, folder, options, Path(of_hydra.sweep.dir) if sweep else None)
        if stacked:
            return _train_stack(stacked, number, job)
        return work(partial(execute, job)) if parallel else execute(job)
    except BaseException as error:
        if stacked and isinstance(error, Exception) and number not in stacked.outcomes:
            _train_stack(stacked, number, None)  # the others do not wait for it
        if sweep and isinstance(error, Exception):  # the sweep goes on; say now which job failed and why
            raise _failed(number, folder, error) from error
        raise Abort(error) from None


def _failed(number: int, folder: Path, error: Exception) -> ViLabError:
    """Say that a job of a sweep has failed; what Hydra is to raise at the end."""
    name = f"{standing(number)} ({printable(folder.name)})"
    complain(f"vi-lab train: {name} failed: {one_line(error)}")
    return (UserError if isinstance(error, UserError) else ViLabError)(f"{name} has failed, as said above")


def _train_stack(stacks: Stacks, number: int, job: Job | None) -> Callable[[], float]:
    """Add a job to its stack, which is trained where that was the last one."""
    stacks.add(number, job, _failed)

    def result() -> float:
        outcome = stacks.outcomes[number]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return result


def _swept(folder: Path, words: list[str]) -> dict[str, Any]:
    """What a job has of that in which the jobs of its sweep differ."""
    keys = swept_keys(read_yaml(folder, "multirun.yaml")["hydra"]["overrides"]["task"])
    parsed = OverridesParser.create().parse_overrides(words)
    return {override.key_or_group: override.value() for override in parsed if override.key_or_group in keys}
