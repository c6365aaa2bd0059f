"""Checkpoints that a kill at any moment leaves whole.

    checkpoints/last.ckpt       after every epoch, after every N steps where asked, and when a signal stops the run
    checkpoints/previous.ckpt   the one before, for the case that the last is damaged
    checkpoints/best.ckpt       least validation loss

Going on from one repeats the uninterrupted run to the last bit, because all that a step draws is a function of (seed,
epoch, batch): see `vi_lab.seeding`. A checkpoint holds tensors and plain values only and is loaded as such.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vi_lab.errors import Interrupted, ViLabError, one_line
from vi_lab.models import VAE
from vi_lab.runs.files import replacing, scratch
from vi_lab.runs.trust import LARGEST_CHECKPOINT, load_checkpoint, opened, save_checkpoint
from vi_lab.training import loggers
from vi_lab.training.callbacks import Recorder, remedy, step_is_complete, vae
from vi_lab.training.signals import Stop


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames; Lightning's own goes through `$TMPDIR`, perhaps on another file system,
    where a kill leaves a truncated file. Loads weights only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it; what stood there becomes previous.ckpt.

        Raises:
            ViLabError: it cannot be written, such as on a full disk; what stood there stays.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path, keep=path.with_name("previous.ckpt"), durable=True) as file:
                save_checkpoint(checkpoint, file)
        except (RuntimeError, OSError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            cause = error if isinstance(error, OSError) else error.__context__
            reason = cause.strerror if isinstance(cause, OSError) else one_line(error)[:200]
            raise ViLabError(f"{path}: the checkpoint cannot be written ({reason}); the one before is kept") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Tensors and plain values on the CPU, whatever device and pickles Lightning would allow.

        Raises:
            ViLabError: it is damaged, or holds anything else.
        """
        return load_checkpoint(Path(path))


class Checkpoints(Checkpoint):
    """Saves `last.ckpt` and `best.ckpt`, and serves a request to stop. Lightning calls a `Checkpoint` last.

    Args:
        folder: the run folder.
        recorder: has the row of the epoch that ends.
        stop: raised as `Interrupted` once the checkpoint is on the disk.
        every_n_steps: also within epochs; None only at their ends.

    Raises:
        ViLabError: the weights are not finite, so the last checkpoint is kept as it is.
        Interrupted: a signal has asked to stop.
    """

    def __init__(self, folder: Path, recorder: Recorder, stop: Stop, every_n_steps: int | None = None) -> None:
        self.folder, self.recorder, self.stop, self.every_n_steps = folder, recorder, stop, every_n_steps
        self.file = folder / "checkpoints" / "last.ckpt"
        self.best = float("inf")
        self.is_best = False  # of the checkpoint that is written
        self.events: dict[str, int] = {}
        self.epoch_ended = False  # at this checkpoint
        self.stopped_early = False  # by early stopping

    def state_dict(self) -> dict[str, Any]:
        """What `rewind` and a resumed run need to know of this very checkpoint."""
        names = ("best", "is_best", "events", "epoch_ended", "stopped_early")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what still holds after the checkpoint; the rest is of the checkpoint alone."""
        self.best, self.epoch_ended, self.stopped_early = state["best"], state["epoch_ended"], state["stopped_early"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Does what an interruption at the end of an epoch has left undone: early stopping, plateau schedules."""
        trainer.should_stop |= self.stopped_early  # or a run that early stopping had ended would train one epoch more
        if self.epoch_ended:
            self._step_plateaus(trainer)

    def _step_plateaus(self, trainer: lightning.Trainer) -> None:
        """What Lightning leaves out at the end of the epoch in which, or after which, a run is resumed."""
        rows = self.recorder.rows
        for scheduler in trainer.lr_scheduler_configs:
            if not scheduler.reduce_on_plateau or scheduler.interval != "epoch":
                continue
            known = [row[scheduler.monitor] for row in rows if scheduler.monitor in row]  # not every epoch has it
            if known and rows[-1]["epoch"] % scheduler.frequency == 0:
                scheduler.scheduler.step(known[-1])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Saves within the epoch where that is due or a signal asks to stop; the epoch's last step is left to its end.

        Raises:
            Interrupted: a signal has asked to stop.
        """
        if trainer.is_last_batch or not step_is_complete(trainer, batch_idx):  # the end of the epoch follows, or more
            return
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due or self.stop.requested:
            self._save(trainer, vae(pl_module))
        self._serve(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves the epoch, and gives the checkpoint its second name where it is the best until now.

        Raises:
            Interrupted: a signal has asked to stop.
        """
        loss = self.recorder.rows[-1].get("val/loss", float("inf"))
        self.is_best, self.best = loss < self.best, min(loss, self.best)
        self.epoch_ended = True
        self._save(trainer, vae(pl_module))
        self.epoch_ended = False
        if self.is_best and trainer.is_global_zero:
            _link(self.file, self.file.with_name("best.ckpt"))
        self.is_best = False
        self._serve(trainer)
        if trainer.fit_loop.restarting:
            self._step_plateaus(trainer)

    def _save(self, trainer: lightning.Trainer, module: VAE) -> None:
        self.stopped_early = trainer.should_stop
        self.recorder.check_losses(trainer, module)
        for name, weights in module.state_dict().items():
            if not torch.isfinite(weights).all():
                raise ViLabError(
                    f"{name} is not finite any more at step {trainer.global_step} (epoch {trainer.current_epoch + 1}); "
                    f"{remedy(self.folder, module)}"
                )
        if trainer.is_global_zero:
            self.events = loggers.sizes(trainer, self.folder)
        trainer.save_checkpoint(self.file)

    def _serve(self, trainer: lightning.Trainer) -> None:
        if self.stop.requested:
            raise Interrupted(
                self.stop.requested, f"after step {trainer.global_step} (epoch {trainer.current_epoch + 1})"
            )


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is only ever replaced; a copy where the file system has no hard links."""
    beside = scratch(target)
    try:
        os.link(source, beside)
        os.replace(beside, target)
    except OSError:
        with opened(source, LARGEST_CHECKPOINT) as content, replacing(target) as file:
            shutil.copyfileobj(content, file)
    finally:
        beside.unlink(missing_ok=True)


def rewind(folder: Path, fits: Callable[[dict], None], warn: Callable[[str], None], cut: bool = True) -> Path | None:
    """Put a run folder back to its last good checkpoint; None where there is none, so that the run begins anew.

    TensorBoard's files only ever grow: cut back to their sizes at the checkpoint, they hold no step twice.

    Args:
        fits: raises ViLabError for a checkpoint that does not fit the model.
        warn: told of a damaged checkpoint.
        cut: False changes no file: for the processes that don't keep the folder.

    Raises:
        ViLabError: there are checkpoints, and none can be used.
    """
    files = [folder / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]
    problems = []
    for file in [file for file in files if file.is_file()]:
        try:
            checkpoint = load_checkpoint(file)
        except ViLabError as error:
            problems.append(one_line(error))
            continue
        try:
            fits(checkpoint)
        except ViLabError as error:
            problems.append(f"{file}: {one_line(error)}")
            continue
        state = checkpoint["callbacks"]["Checkpoints"]
        for problem in problems:
            warn(f"{problem}; the checkpoint before it is used")
        if cut:
            loggers.cut(folder, state["events"])
            if state["is_best"]:  # the process may have ended before it said so
                _link(file, file.with_name("best.ckpt"))
        return file
    if problems:
        raise ViLabError("; ".join(problems))
    if cut:
        loggers.cut(folder, {})
    return None
