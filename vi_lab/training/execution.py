"""A run as the only work in its folder, with `status.json` saying how it ended. Light: torch comes with the session."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from vi_lab.console import load
from vi_lab.errors import Interrupted, Pruned, UserError, ViLabError, one_line, printable_lines
from vi_lab.runs.files import CONFIG_FILE, LAST, LOG, Status, append_text
from vi_lab.runs.lock import LOCK, hold
from vi_lab.training.process import main_process
from vi_lab.training.signals import Stop

if TYPE_CHECKING:
    from vi_lab.training.session import Session

BEFORE = {LOCK, ".hydra", LOG}
"""What stands in a run folder before the run does anything."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that takes no more."""

PATIENCE = 15.0
"""Seconds that a resumed run waits for the process that has its folder: perhaps one that is about to stop, as the
workers of a sweep whose process is gone."""


class Job(NamedTuple):
    """A run to be executed."""

    config: DictConfig
    """Composed and checked."""
    folder: Path
    options: Mapping[str, Any]
    """See `vi_lab.training.session.Session`."""
    hint: Path | None = None
    """The folder that the message on how to go on names, where it is not the run's."""


def execute(job: Job) -> float:
    """Train one model into its folder, which no other process may work in meanwhile; even Ctrl-C and SIGTERM leave a
    status. What ends before it has begun, as by a user's mistake, leaves nothing, but in a sweep, whose comparison
    lists the job.

    Returns:
        what `Session.train` does.

    Raises:
        UserError: another process works in the folder, or it holds a run that is not to be resumed.
        Interrupted: a signal has stopped the run; its checkpoint is written.
    """
    if not main_process():  # one process keeps the books, and ends the others: Lightning kills all where one is gone
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _session(job).train()
    if job.config.stack:
        (outcome,) = execute_stack([job])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
    stop = Stop()
    with _at_work(job, stop):
        return _session(job, stop=stop).train()


def execute_stack(
    jobs: Sequence[Job], failed: Callable[[int, Exception], Exception] = lambda number, error: error
) -> list[float | Exception]:
    """Train jobs as one stack (see `vi_lab.training.stacking`), otherwise each as `execute` does.

    Args:
        failed: told at once of a job that has failed, by its place among the jobs, and why; returns what is to stand
            for the error.

    Returns:
        of each job what `execute` returns, or the error that has ended it: the others go on.

    Raises:
        Interrupted: a signal has stopped them; their checkpoints are written.
    """
    outcomes: dict[int, float | Exception] = {}
    stages: list[Generator[Session, None, float]] = []
    sessions: dict[int, Session] = {}

    def go_on(number: int, error: Exception | None = None) -> Session | None:
        try:
            return next(stages[number]) if error is None else stages[number].throw(error)
        except StopIteration as end:
            outcomes[number] = end.value
        except Exception as failure:
            outcomes[number] = failed(number, failure)
        return None

    try:
        with Stop() as stop:
            for number, job in enumerate(jobs):
                stages.append(_stages(job, stop, beside=next(iter(sessions.values()), None)))
                if session := go_on(number):
                    sessions[number] = session
            if sessions:
                from vi_lab.training.stacking import fit_stacks

                numbers = {session: number for number, session in sessions.items()}
                fit_stacks([*numbers], lambda session, error: go_on(numbers[session], error))
                for number in sorted(sessions.keys() - outcomes.keys()):
                    go_on(number)
    except BaseException as error:
        told = error
        for stage in stages:  # those that are not at their end write how they were stopped
            try:
                stage.throw(error)
            except BaseException as own:
                told = told if own is error else own  # which says how to go on
        raise told from None
    return [outcomes[number] for number in range(len(jobs))]


def _stages(job: Job, stop: Stop, beside: Session | None) -> Generator[Session, None, float]:
    """A run of a stack: what comes before its training, and, once that is done, what comes after."""
    with _at_work(job, stop):
        session = _session(job, stop=stop, beside=beside)
        session.prepare()
        yield session
        session.checkpoint = job.folder / LAST
        session.fit()
        return session.conclude()


@contextmanager
def _at_work(job: Job, stop: Stop) -> Iterator[None]:
    """Hold the folder, and write into it how the work has ended."""
    folder, hint, resume = job.folder, job.hint, job.options.get("resume")
    with hold(folder, PATIENCE if resume else 0):
        if not resume and (folder / CONFIG_FILE).is_file():  # perhaps since the command has looked
            raise UserError(f"{folder}: holds a run already; go on with resume=, or choose another folder")
        status, fresh = Status(folder), not {path.name for path in folder.iterdir()} - BEFORE
        try:
            with stop:
                status.write("running")
                yield
                status.write("completed")
        except BaseException as caught:
            error = caught
            if type(error) is SystemExit:  # by somebody's own code; Lightning's, at SIGTERM, is another class
                error = ViLabError(f"something in the run has called sys.exit({error.code!r})")
            if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
                error.filename = str(folder)  # the system names no file where it cannot write, as TensorBoard's
            elif isinstance(error, OSError) and isinstance(error.filename, bytes):
                error.filename = os.fsdecode(error.filename)  # TensorBoard's
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            with contextlib.suppress(OSError):  # a full disk: the error at hand says so
                state = "interrupted" if stopped else "pruned" if isinstance(error, Pruned) else "failed"
                status.write(state, one_line(error))
                if not stopped and not isinstance(error, (UserError, Pruned)):
                    append_text(folder / LOG, printable_lines("".join(traceback.format_exception(error))))
                append_text(folder / LOG, f"{one_line(error) or 'interrupted'}\n")
            alone, begun = hint is None, (folder / CONFIG_FILE).is_file()
            vain = isinstance(error, UserError) and not (folder / LAST).exists()
            if alone and fresh and (vain or not begun):
                shutil.rmtree(folder, ignore_errors=True)  # there is nothing to go on with
            if isinstance(error, Interrupted) and (begun or not alone):
                raise Interrupted(error.number, error.where, hint or folder) from error
            if error is not caught:
                raise error from caught
            raise


def _session(job: Job, **options: Any) -> Session:
    if main_process() and not job.options.get("label"):  # of a sweep it was said before the first job
        load("torch", "lightning")
    from vi_lab.training.session import Session  # seconds of imports, now that the folder is ours

    return Session(job.config, job.folder, **job.options, **options)
