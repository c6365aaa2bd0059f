"""A run as the only work in its folder, with `status.json` saying how it ended. Light: torch comes with the session."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vi_lab.console import load
from vi_lab.errors import Interrupted, UserError, one_line
from vi_lab.runs.files import CONFIG_FILE, LAST, LOG, Status, append_text
from vi_lab.runs.lock import LOCK, hold
from vi_lab.training.process import main_process
from vi_lab.training.signals import Stop

BEFORE = {LOCK, ".hydra", LOG}
"""What stands in a run folder before the run does anything."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that takes no more."""

PATIENCE = 15.0
"""Seconds that a resumed run waits for the process that has its folder: perhaps one that is about to stop, as the
workers of a sweep whose process is gone."""


def execute(config: DictConfig, folder: Path, hint: Path | None = None, **options: Any) -> float:
    """Train one model into `folder`, which no other process may work in meanwhile; even Ctrl-C and SIGTERM leave a
    status. What ends before it has begun, as by a user's mistake, leaves nothing, but in a sweep, whose comparison
    lists the job.

    Args:
        config: a composed and checked train config.
        hint: the folder that the message on how to go on names, where it is not `folder`.
        options: see `vi_lab.training.session.Session`.

    Returns:
        what `Session.train` does.

    Raises:
        UserError: another process works in the folder, or it holds a run that is not to be resumed.
        Interrupted: a signal has stopped the run; its checkpoint is written.
    """
    if not main_process():  # one process keeps the books, and ends the others: Lightning kills all where one is gone
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return _train(config, folder, **options)
    with hold(folder, PATIENCE if options.get("resume") else 0):
        if not options.get("resume") and (folder / CONFIG_FILE).is_file():  # perhaps since the command has looked
            raise UserError(f"{folder}: holds a run already; go on with resume=, or choose another folder")
        status, fresh = Status(folder), not {path.name for path in folder.iterdir()} - BEFORE
        try:
            with Stop() as stop:
                status.write("running")
                result = _train(config, folder, **options, stop=stop)
                status.write("completed")
                return result
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
                error.filename = str(folder)  # the system names no file where it cannot write, as TensorBoard's
            elif isinstance(error, OSError) and isinstance(error.filename, bytes):
                error.filename = os.fsdecode(error.filename)  # TensorBoard's
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            with contextlib.suppress(OSError):  # a full disk: the error at hand says so
                status.write("interrupted" if stopped else "failed", one_line(error))
                append_text(folder / LOG, f"{one_line(error) or 'interrupted'}\n")
            alone, begun = hint is None, (folder / CONFIG_FILE).is_file()
            vain = isinstance(error, UserError) and not (folder / LAST).exists()
            if alone and fresh and (vain or not begun):
                shutil.rmtree(folder, ignore_errors=True)  # there is nothing to go on with
            if isinstance(error, Interrupted) and (begun or not alone):
                raise Interrupted(error.number, error.where, hint or folder) from error
            raise


def _train(config: DictConfig, folder: Path, **options: Any) -> float:
    if main_process() and not options.get("label"):  # of a sweep it was said before the first job
        load("torch", "lightning")
    from vi_lab.training.session import Session  # seconds of imports, now that the folder is ours

    return Session(config, folder, **options).train()
