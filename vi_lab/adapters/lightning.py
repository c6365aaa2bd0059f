"""Lightning, beyond its public interface: its notices, its errors, and what it makes of signals.

Checked against lightning 2.6.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

from vi_lab.errors import UserError, one_line

__all__ = ["complaints", "resume_behind_epochs", "signals_are_ours", "silence"]

HARMLESS = (
    "The number of training batches",  # points in TensorBoard may span epochs
    "`isinstance\\(treespec, LeafSpec\\)`",  # Lightning's own use of torch
    "The `srun` command",
    "Total length of `list` across ranks is zero",  # nothing is held out
)
"""Beginnings of warnings of Lightning's that say nothing to our users."""


def silence() -> None:
    """Lightning's notices repeat what the first line of a run says already; its other warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()
    for text in HARMLESS:
        warnings.filterwarnings("ignore", text)


@contextmanager
def complaints(about: str = "") -> Iterator[None]:
    """What Lightning says of its arguments, at whatever time it finds out, as the user's mistake. It checks few of
    them: where Python refuses in Lightning's own code what these came to, it is the same.

    Args:
        about: begins the message.

    Raises:
        UserError: Lightning does not take an argument, or parts do not suit each other.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"{about}{one_line(error)}") from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not str(frame.f_globals.get("__name__")).startswith("lightning."):
            raise
        raise UserError(f"{about}{one_line(error)}") from error


def resume_behind_epochs(trainer: lightning.Trainer) -> None:
    """Where `max_steps` is set, Lightning takes every checkpoint for one within an epoch: resumed from one at the end
    of an epoch, it would end that epoch a second time. Without it the place of the checkpoint counts."""
    setattr(trainer.fit_loop, "_iteration_based_training", lambda: False)  # noqa: B010 (a method)


@contextmanager
def signals_are_ours(trainer: lightning.Trainer) -> Iterator[None]:
    """Lightning ends the process by SystemExit where a KeyboardInterrupt reaches it; this raises the original. At
    SIGTERM its loops raise another SystemExit, wherever they are, before our checkpoint is written: of one process,
    only our handler is called."""
    if trainer.world_size == 1:
        setattr(trainer._signal_connector, "_sigterm_notifier_fn", lambda number, frame: None)  # noqa: B010 (a method)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
