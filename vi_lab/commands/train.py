"""`vi-lab train`: from overrides to finished run folders. Nothing heavy is imported before the config is checked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from vi_lab.arguments import unquote
from vi_lab.commands.launch import Abort, launch_training
from vi_lab.commands.named import again, launch_named, name_of
from vi_lab.commands.resume import completed, resume_run, resume_sweep, stored_config
from vi_lab.config import key_of, only_asks, read_arguments, resolved, swept_keys
from vi_lab.errors import Pruned, UserError, ViLabError, complain, nearby, one_line, printable
from vi_lab.runs.files import CONFIG_FILE, STUDY_FILE
from vi_lab.runs.jobs import CLAIM, NAME, TRIAL, Jobs, Record, fingerprint, is_run
from vi_lab.runs.run import Run, finished
from vi_lab.runs.trust import read_yaml, trusting
from vi_lab.training.apart import execute_apart
from vi_lab.training.execution import Job, execute
from vi_lab.training.process import trains_together
from vi_lab.training.sweep import Stacks, beside, standing, time_left
from vi_lab.training.workers import follow_parent, preemption, work

OF_SWEEP = ("resume", "sweep", "retries")
"""Keys that say nothing of a run."""


def main(argv: list[str]) -> int:
    """Train what the overrides say, or go on with the run or the sweep that `resume=` names."""
    follow_parent()
    arguments = read_arguments(argv)
    folders = [o.removeprefix("resume=") for o in arguments.overrides if o.startswith("resume=")]
    resumed = bool(folders) and folders[-1] not in ("", "null")
    if name_of(arguments.overrides) is not None and not only_asks(arguments):
        if resumed:
            raise UserError("resume= and sweep=: the same command again goes on with a named sweep; leave resume= out")
        return launch_named(task, arguments)
    if not resumed or only_asks(arguments):
        return launch_training(task, argv)
    folder, others = Path(unquote(folders[-1])), [o for o in arguments.overrides if not o.startswith("resume=")]
    if (folder / ".sweep").exists():
        raise UserError(f"{folder}: a named sweep; the command that made it, with sweep={folder.name}, goes on with it")
    if (folder / "multirun.yaml").is_file():
        own = ["--config-dir", arguments.config_dir] if arguments.config_dir else []
        return launch_training(task, [*own, *resume_sweep(folder, others)], resuming=True)
    resume_run(folder, others)
    return 0


def task(config: DictConfig, stacks: Stacks | None = None) -> float | Callable[[], float] | None:
    """One job of Hydra's: what it is called and where it writes, then `execute`. Of a job that waits for others of its
    stack, what tells its result once all have been trained; None of a job of a named sweep that another worker has,
    or that has failed, as its files say."""
    of_hydra = HydraConfig.get()
    folder, sweep = Path(of_hydra.runtime.output_dir), Path(of_hydra.sweep.dir)
    in_sweep = of_hydra.mode == RunMode.MULTIRUN
    number = of_hydra.job.num if in_sweep else 0
    stacked = stacks if stacks is not None and number in stacks.members else None
    parallel = in_sweep and "BasicLauncher" not in of_hydra.launcher._target_
    resume, named = config.resume is not None, config.sweep is not None
    config.resume, config.sweep, config.retries = None, None, 0  # they say nothing of the run
    label = f"{standing(number)}: " if in_sweep else ""
    words = [word for word in of_hydra.overrides.task if key_of(word) not in OF_SWEEP]
    options = {
        "command": shlex.join(["vi-lab", "train", *words]),
        "workers": beside(of_hydra.launcher) if parallel else 1,
        "label": label,
        "bar": not parallel,
    }
    if named:
        record = Record(sweep)
        options["swept"] = _values(words, record.swept)
        trial = TRIAL.fullmatch(folder.name) if (sweep / STUDY_FILE).is_file() else None
        if trial and trial["run"] == record.commands[0]["first"]:  # which speaks for the others of its trial
            pruner = record.commands[0]["pruner"]
            options["pruning"] = {"folder": sweep, "number": int(trial["number"]), "pruner": pruner}
        job = Job(config, folder, options, sweep)
        try:
            do = partial(_do_claimed, job, _apart(of_hydra))
            return work(do) if parallel else do()
        except KeyboardInterrupt as error:
            raise Abort(error) from None
    try:
        if resume and (done := completed(folder, stored_config(folder, config))) is not None:
            print(printable(f"{label}{folder.name if in_sweep else nearby(folder)} is completed"))
            if stacked:
                _train_stack(stacked, number, None)
            return done
        if in_sweep:
            print(printable(f"{label}{folder.name}{time_left(sweep, number)}"), flush=True)
            options["swept"] = _values(
                words, swept_keys(read_yaml(sweep, "multirun.yaml")["hydra"]["overrides"]["task"])
            )
        requeued = bool(preemption())  # perhaps: then the folder, which is of this sweep alone, holds the run
        options["resume"] = (resume or requeued) and (folder / "status.json").is_file()
        job = Job(config, folder, options, sweep if in_sweep else None)
        if stacked:
            return _train_stack(stacked, number, job)
        alone = partial(_do, job, _apart(of_hydra))
        return work(alone) if parallel else alone()
    except BaseException as error:
        if stacked and isinstance(error, Exception) and number not in stacked.outcomes:
            _train_stack(stacked, number, None)  # the others do not wait for it
        if in_sweep and isinstance(error, Exception):  # the sweep goes on; say now which job failed and why
            raise _failed(number, folder, error) from error
        raise Abort(error) from None


def _apart(of_hydra: HydraConf) -> list[str]:
    """The overrides of a job, for a process of its own."""
    words = [word for word in of_hydra.overrides.task if key_of(word) not in OF_SWEEP]
    return [*words, *(word for word in of_hydra.overrides.hydra if word.startswith("hydra.searchpath="))]


def _check_own(job: Job) -> None:
    """Refuse a folder that is not the job's: another one's by its name, or with another run in it.

    Raises:
        UserError: it is one.
    """
    config = resolved(job.config)
    name, mark = job.folder.name, fingerprint(config)
    if NAME.fullmatch(name) and not name.endswith(f"-{mark}"):
        raise UserError(
            "its settings have changed since the folder was named: a file of the configs, or the environment"
        )
    if not (job.folder / CONFIG_FILE).is_file():
        return
    with trusting([config]):  # of the classes in the stored one, those that the command names too
        stored_config(job.folder, job.config)
        epochs, wanted = Run(job.folder).config.trainer.max_epochs, job.config.trainer.max_epochs
    if epochs > wanted:
        raise UserError(f"the run was resumed on its own, for {epochs} epochs where the sweep has {wanted}")


def _do(job: Job, words: list[str]) -> float:
    """Do a job: of a sweep, where processes train together, in one of its own."""
    return execute_apart(job, words) if job.hint is not None and trains_together(job.config) else execute(job)


def _do_claimed(job: Job, words: list[str]) -> float | None:
    """Do a job of a named sweep, unless another worker has it. Where it fails, the sweep goes on."""
    sweep, folder = job.folder.parent, job.folder
    jobs, number = Jobs(sweep, [folder.name]), int(os.environ[CLAIM])
    held = jobs.claim(folder.name, number)
    if held is None and preemption() and (state := jobs.states()[folder.name]).name == "interrupted":
        held = jobs.claim(folder.name, state.claims + 1)  # it was put into the queue again
    if held is None:
        return None
    with held:
        if (done := finished(folder)) is not None:  # another worker has ended it meanwhile
            held.outcome = "completed"
            return done
        print(printable(f"{job.options['label']}{folder.name}"), flush=True)
        resume = is_run(folder)
        try:
            _check_own(job)
            result = _do(job._replace(options={**job.options, "resume": resume}), words)
        except KeyboardInterrupt as error:
            raise again(error) from error
        except Pruned as error:
            held.outcome = "pruned"
            print(printable(f"{job.options['label']}{error}"), flush=True)
            return None
        except Exception as error:
            held.outcome = "failed"
            complain(
                f"vi-lab train: {printable(job.options['label'])}{printable(folder.name)} failed: {one_line(error)}"
            )
            return None
        held.outcome = "completed"
        return result


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


def _values(words: list[str], keys: Collection[str]) -> dict[str, Any]:
    """What a job has of that in which the jobs of its sweep differ."""
    parsed = OverridesParser.create().parse_overrides(words)
    return {override.key_or_group: override.value() for override in parsed if override.key_or_group in keys}
