"""Lightning, beyond its public interface: its notices, its errors, what it makes of signals, and what its loop costs.

Checked against lightning 2.6.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.profilers import PassThroughProfiler

from vi_lab.errors import UserError, one_line

__all__ = [
    "EqualWeightAveraging",
    "IdleHooks",
    "NoProfiler",
    "complaints",
    "resume_behind_epochs",
    "signals_are_ours",
    "silence",
]

HARMLESS = (
    "The number of training batches",  # points in TensorBoard may span epochs
    "`isinstance\\(treespec, LeafSpec\\)`",  # Lightning's own use of torch
    "The `srun` command",
    "Total length of `list` across ranks is zero",  # nothing is held out
)
"""Beginnings of warnings of Lightning's that say nothing to our users."""

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
"""What Lightning calls of every callback, and of the module, in each step."""


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


class NoProfiler(PassThroughProfiler):
    """Times nothing. Lightning enters a context of its profiler at each hook, some ninety times in a step; that of its
    own that times nothing is a generator, made anew each time."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]  # of the same use
        """One context for all."""
        return self._nothing


class IdleHooks(Callback):
    """Lightning passes over a hook that is not callable: what nobody has written of those that come in each step is
    None while a model is fitted, in place of a function that does nothing."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Of all callbacks and of the module."""
        for owner, hook in self._idle(trainer, pl_module):
            setattr(owner, hook, None)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Puts them back."""
        for owner in (*trainer.callbacks, pl_module):  # type: ignore[attr-defined]  # set without being declared
            for hook in STEP_HOOKS:
                if vars(owner).get(hook, hook) is None:
                    delattr(owner, hook)

    @staticmethod
    def _idle(trainer: lightning.Trainer, module: lightning.LightningModule) -> Iterator[tuple[Any, str]]:
        owners: list[tuple[Any, type]] = [(one, Callback) for one in trainer.callbacks]  # type: ignore[attr-defined]
        for owner, base in [*owners, (module, lightning.LightningModule)]:
            for hook in STEP_HOOKS:
                if hook not in vars(owner) and getattr(type(owner), hook, None) is getattr(base, hook):
                    yield owner, hook


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
