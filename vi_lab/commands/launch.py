"""The bridge to Hydra: a command's overrides are checked here, before Hydra runs its task on each composed config."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vi_lab.adapters.hydra import start
from vi_lab.commands.help import help_text
from vi_lab.commands.resume import check_folders
from vi_lab.config import DRY_RUN, check_overrides, explain, only_asks, quote, read_arguments, swept_keys, swept_subdir
from vi_lab.console import load
from vi_lab.errors import UserError, nearby, printable
from vi_lab.runs.files import CONFIG_FILE, claim
from vi_lab.runs.trust import check_loggers, check_targets, trusting
from vi_lab.schema import CONFIG_DIR
from vi_lab.training.process import check_accelerators, main_process
from vi_lab.training.sweep import Stacks, sweeping
from vi_lab.training.workers import StopSweep, settle

Task = Callable[..., Any]
"""Called with the composed config of a job; that of training also with `stacks`, where there are any."""


class Abort(BaseException):
    """Carries an error past Hydra, which would print a report of its own before ours."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error

    def __reduce__(self) -> tuple:
        return Abort, (self.error,)  # parallel launchers send it between processes


def launch(name: str, task: Task, argv: list[str]) -> int:
    """Check the overrides of the command `name`, then let Hydra run its `task` on the composed config.

    Raises:
        UserError: a mistake in the overrides, before anything heavy is imported.
    """
    arguments = read_arguments(argv, folders=True)
    if only_asks(arguments):
        hand_over(name, task, arguments)
        return 0
    configs = checked(name, arguments)
    rehearse_all([config for config in configs if "estimator" in config and config["run"] is None])
    with _own_folder(name, arguments):
        hand_over(name, task, arguments)
    return 0


def launch_training(task: Task, argv: list[str], resuming: bool = False) -> int:
    """`launch` of `vi-lab train`: never over a run or a sweep that is there, and a sweep ends with its comparison.

    Args:
        resuming: a sweep is started again in its folder, from a file that may be a stranger's.
    """
    arguments = read_arguments(argv)
    if only_asks(arguments):
        hand_over("train", task, arguments)
        return 0
    configs = checked("train", arguments)
    if any(config["sweep"] is not None for config in configs):
        raise UserError("sweep= names a sweep on the command line only, as the word sweep=NAME")
    for config in configs if resuming else []:
        check_targets(config, "resume")
        check_loggers(config, "resume")
    if resuming:
        check_folders(configs, arguments.overrides)
    rehearse_all(configs)
    if not arguments.multirun:
        with _own_folder("train", arguments):
            hand_over("train", task, arguments)
        return 0
    if any(config["stack"] for config in configs):
        if "BasicLauncher" not in HydraConfig.get().launcher._target_:
            raise UserError("stack= trains jobs in one process; leave hydra/launcher= or stack= out")
        task = update_wrapper(partial(task, stacks=Stacks(configs)), task)
    subdir = swept_subdir(arguments.overrides)
    if subdir is not None:
        arguments.overrides.append(f"hydra.sweep.subdir={quote(subdir)}")
    with nullcontext(Path(HydraConfig.get().sweep.dir)) if resuming else _own_folder("train", arguments) as sweep:
        try:
            print(f"{len(configs)} job{'s' * (len(configs) != 1)} below {printable(nearby(sweep))}", flush=True)
            if note := _swept_in_vain(configs, arguments.overrides):
                print(note, flush=True)
            with StopSweep(sweep), sweeping(len(configs)):
                hand_over("train", task, arguments)
        finally:
            settle(sweep)
            if (sweep / "multirun.yaml").is_file():
                from vi_lab.comparison.publish import summarize

                with trusting(configs):
                    summarize(sweep)
    return 0


def _swept_in_vain(configs: list[dict], overrides: list[str]) -> str:
    """The note that some estimators of a sweep over temperatures or their schedules have none; empty where all have."""
    keys = [key for key in swept_keys(overrides) if key.partition(".")[0] in ("temperature", "schedule")]
    without = dict.fromkeys(
        printable(config["name"])
        for config in configs
        if config["estimator"]["_target_"].startswith("vi_lab.") and "temperature" not in config["estimator"]
    )
    if not keys or not without:
        return ""
    return f"note: without a temperature: {', '.join(without)}; jobs that differ in {', '.join(keys)} only are the same"


def checked(name: str, arguments: argparse.Namespace) -> list[dict]:
    """The configs of all jobs, composed and checked."""
    if arguments.dry_run:
        raise UserError(f"{DRY_RUN} lists the jobs of a named sweep: vi-lab train -m sweep=NAME")
    configs = check_overrides(name, arguments.overrides, arguments.multirun, arguments.config_dir)
    check_accelerators(configs)
    return configs


def rehearse_all(configs: list[dict]) -> None:
    """Find what only constructors know, before there is a folder."""
    if configs and main_process():
        load("torch", "lightning")  # now that nothing else is wrong
        from vi_lab.training.rehearsal import rehearse

        rehearse(configs)


def hand_over(name: str, task: Task, arguments: argparse.Namespace) -> None:
    """Let Hydra go on, with its errors as ours."""
    try:
        if arguments.help:
            print(help_text(name, arguments))
            return
        start(task, arguments, CONFIG_DIR, name)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except Abort as abort:
        raise abort.error from None


@contextmanager
def _own_folder(name: str, arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder that Hydra is told to write into, which holds nothing of another run or sweep. One that is named
    after the time is made here, so that of two commands within a second each has its own.

    Raises:
        UserError: the user has chosen a folder that holds a run or a sweep.
    """
    kind = "sweep" if arguments.multirun else "run"
    node = HydraConfig.get().sweep if arguments.multirun else HydraConfig.get().run  # of the last job that was composed
    try:
        folder = Path(node.dir)
    except OmegaConfBaseException as error:  # ${...} that names nothing
        raise UserError(explain(error)) from error
    if not main_process():
        yield folder
        return
    if (folder / ("multirun.yaml" if arguments.multirun else CONFIG_FILE)).is_file() and not _is_timed(node):
        on = f"go on with {shlex.quote(f'resume={folder}')}, or " if name == "train" else ""
        raise UserError(f"{folder}: holds a {kind} already; {on}choose another hydra.{kind}.dir")
    if _is_timed(node):
        folder = claim(folder)
        arguments.overrides.append(f"hydra.{kind}.dir={quote(str(folder))}")
    try:
        yield folder
    finally:
        with suppress(OSError):  # it holds something, as it should
            folder.rmdir()


def _is_timed(node: Any) -> bool:
    return "${now:" in OmegaConf.to_yaml(node)
