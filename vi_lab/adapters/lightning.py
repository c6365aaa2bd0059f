"""Lightning, beyond its public interface: its notices, its errors, and what it makes of signals.

Checked against lightning 2.6.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import WeightAveraging

from vi_lab.errors import UserError, one_line

__all__ = ["EqualWeightAveraging", "complaints", "resume_behind_epochs", "signals_are_ours", "silence"]

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


class EqualWeightAveraging(WeightAveraging):
    """The mean of the weights at the ends of epochs, each as heavy (Izmailov et al. 2018, arXiv 1803.05407). Until
    there is one, it is the weights themselves, where Lightning's own keeps those from before the first step.

    Args:
        start_epoch: the epochs after so many enter.
    """

    def __init__(self, start_epoch: int) -> None:
        super().__init__(use_buffers=False)  # temperatures and moving averages are those of the moment
        if start_epoch < 0:
            raise ValueError(f"start_epoch must not be negative, got {start_epoch}")
        self.start_epoch = start_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Never by Lightning, who would do so after the epoch's validation."""
        return False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Takes the weights in after the last step of an epoch, before they are evaluated."""
        assert self._average_model is not None
        if trainer.is_last_batch and trainer.current_epoch >= self.start_epoch:
            self._average_model.update_parameters(pl_module)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Evaluates the mean."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leaves the mean in the model."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the mean, and what is trained beside it."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def _follow(self, module: lightning.LightningModule) -> None:
        if self._average_model is not None and not self._average_model.n_averaged.item():
            self._average_model.module.load_state_dict(module.state_dict())
