"""Loggers: every one gets the same metrics under the same names; what only TensorBoard can show goes to it alone."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch.utils.tensorboard import SummaryWriter

from vi_lab.adapters.tensorboard import EVENT_FILES, hush_writers, table
from vi_lab.build import instantiate
from vi_lab.errors import UserError
from vi_lab.runs.files import write_json
from vi_lab.runs.trust import is_own, read_json

FINAL = ("val/loss", "test/loss", "test/nll", "train/loss_unrelaxed", "train/loss")
"""What TensorBoard's table of hyperparameters shows beside them: the last point of each of these curves."""

# in TensorBoard's "custom scalars" tab, where all lines of a run have its color: so the relaxed loss is no second line
# but the edge of a band between the two, which is the relaxation gap (a margin: value, lower end, upper end)
LAYOUT = {
    "loss": {
        "unrelaxed (line) to relaxed (band)": [
            "Margin",
            ["train/loss_unrelaxed", "train/loss", "train/loss_unrelaxed"],
        ],
        "train, validation, test": ["Multiline", ["train/loss_unrelaxed", "val/loss", "test/loss"]],
    }
}

SCALARS = "scalars.csv"
GROWING = (EVENT_FILES, SCALARS)
"""Files that loggers only ever append to, so that they can be cut back to where they stood at a checkpoint."""

SERVICES = {"WandbLogger": "id", "MLFlowLogger": "run_id", "AimLogger": "run_hash"}
"""Loggers that keep their record elsewhere, and the argument by which they go on with a run of theirs."""
RECORD = "loggers.json"
"""Where a run folder says under which identity each of them knows the run."""


class CSVLogger(Logger):
    """Everything that is logged in one file of three columns: step, name, value in full precision.

    Lightning's own makes a column for each name and rewrites its file for a new one; this one only appends, so that a
    resumed run goes on where its checkpoint was. `pandas.read_csv(file).pivot_table(index="step", columns="name",
    values="value")` gives the wide table.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.file = Path(save_dir) / SCALARS

    @property
    def name(self) -> str:
        """Of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one per run folder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config_resolved.yaml has them all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row for each metric."""
        with self.file.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(["step", "name", "value"])
            writer.writerows([step, name, float(value)] for name, value in metrics.items())


def make_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """The loggers that a config names; those of a resumed run go on with its record.

    Raises:
        UserError: a package is not installed.
    """
    hush_writers()
    known = read_json(folder, RECORD)
    made = []
    for name, node in (config.get("logger") or {}).items():
        arguments = {"save_dir": str(folder)} if "save_dir" in node and node.save_dir is None else {}
        kind = node._target_.rpartition(".")[2]
        if kind in SERVICES and known.get(kind):
            arguments[SERVICES[kind]] = str(known[kind])
        try:
            made.append(instantiate(node, **arguments))
        except UserError as error:
            raise UserError(f"logger={name}: {error}") from error
    return made


@contextmanager
def _as_it_came() -> Iterator[None]:
    """Raises what a full disk does: Lightning calls the value wrong, whatever the reason."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


@_as_it_came()
def log(trainer: lightning.Trainer, metrics: Mapping[str, float], step: int | None = None) -> None:
    """Log metrics at a step; without one at the present step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), trainer.global_step if step is None else step)


def tensorboard(trainer: lightning.Trainer) -> SummaryWriter | None:
    """TensorBoard's writer, where there is one, in the process that keeps the run folder."""
    if not trainer.is_global_zero:
        return None
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


@_as_it_came()
def log_start(trainer: lightning.Trainer, folder: Path, hyperparameters: dict) -> None:
    """What distinguishes the run; for TensorBoard also its charts and a row of its table."""
    for logger in trainer.loggers:
        logger.log_hyperparams(hyperparameters)
    if (writer := tensorboard(trainer)) is not None:
        # not by the logger, which would draw a curve of two points for each of the table's metrics
        for summary in table(hyperparameters, FINAL):
            writer._get_file_writer().add_summary(summary)
        writer.add_custom_scalars(LAYOUT)
    kept_elsewhere = {kind: str(one.version) for one in trainer.loggers if (kind := type(one).__name__) in SERVICES}
    if kept_elsewhere and trainer.is_global_zero:
        write_json(folder / RECORD, kept_elsewhere)


def sizes(trainer: lightning.Trainer, folder: Path) -> dict[str, int]:
    """How long the files that only grow are now, all that was logged included."""
    if (writer := tensorboard(trainer)) is not None:
        writer.flush()
    return {file.name: file.stat().st_size for pattern in GROWING for file in folder.glob(pattern)}


def cut(folder: Path, lengths: Mapping[str, int]) -> None:
    """Cut the files that only grow back to their sizes at a checkpoint: so they hold no step twice."""
    for file in (file for pattern in GROWING for file in folder.glob(pattern)):
        if not is_own(file) or not isinstance(lengths.get(file.name), int):
            file.unlink()  # of a link the name alone
        elif file.stat().st_size > lengths[file.name] >= 0:
            os.truncate(file, lengths[file.name])
