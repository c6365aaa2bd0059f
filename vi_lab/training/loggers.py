"""Loggers: every one gets the same metrics under the same names; what only TensorBoard can show goes to it alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

FINAL = ("train/loss", "train/loss_unrelaxed", "val/loss", "test/loss", "test/nll")
"""What TensorBoard's table of hyperparameters shows of a finished run."""

# one chart with both losses, in TensorBoard's "custom scalars" tab
LAYOUT = {
    "loss": {
        "relaxed vs unrelaxed": ["Multiline", ["train/loss", "train/loss_unrelaxed"]],
        "train, validation, test": ["Multiline", ["train/loss_unrelaxed", "val/loss", "test/loss"]],
    }
}

GROWING = ("events.out.tfevents.*",)
"""Files that loggers only ever append to, so that they can be cut back to where they stood at a checkpoint."""


def log(trainer: lightning.Trainer, metrics: Mapping[str, float], step: int | None = None) -> None:
    """Log metrics at a step; without one at the present step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), trainer.global_step if step is None else step)


def tensorboard(trainer: lightning.Trainer) -> SummaryWriter | None:
    """TensorBoard's writer, where there is one, in the process that keeps the run folder."""
    if not trainer.is_global_zero:
        return None
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def log_start(trainer: lightning.Trainer, hyperparameters: dict) -> None:
    """What distinguishes the run; for TensorBoard also its charts and a row of its table, to be filled at the end."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(hyperparameters, {f"hp/{name}": math.nan for name in FINAL})
        else:
            logger.log_hyperparams(hyperparameters)
    if (writer := tensorboard(trainer)) is not None:
        writer.add_custom_scalars(LAYOUT)


def log_end(trainer: lightning.Trainer, final: Mapping[str, float]) -> None:
    """The final metrics of the row that `log_start` has opened in TensorBoard's table."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            row = {f"hp/{name}": final[name] for name in FINAL if name in final}
            logger.log_metrics(row, trainer.global_step)


def sizes(trainer: lightning.Trainer, folder: Path) -> dict[str, int]:
    """How long the files that only grow are now, all that was logged included."""
    if (writer := tensorboard(trainer)) is not None:
        writer.flush()
    return {file.name: file.stat().st_size for pattern in GROWING for file in folder.glob(pattern)}


def cut(folder: Path, lengths: Mapping[str, int]) -> None:
    """Cut the files that only grow back to their sizes at a checkpoint: so they hold no step twice."""
    for file in (file for pattern in GROWING for file in folder.glob(pattern)):
        if file.is_symlink() or not isinstance(lengths.get(file.name), int):
            file.unlink()
        elif file.stat().st_size > lengths[file.name] >= 0:
            os.truncate(file, lengths[file.name])
