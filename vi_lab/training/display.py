"""What a run says while it works: lines on the terminal, all of them in its train.log, and a progress bar."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from vi_lab.console import PATIENCE, Terminal, Words, busy
from vi_lab.runs.files import LOG, append_text
from vi_lab.training.callbacks import Recorder, vae


class Voice:
    """The lines of a run: all of them in its `train.log`; on the terminal, of a job of a sweep, only what matters.

    Args:
        terminal: for all runs of this process.
        folder: of the run; None writes no log.
        label: begins each line on the terminal: which job of a sweep speaks.
        bar: whether to show progress, where the terminal can.
    """

    def __init__(self, terminal: Terminal, folder: Path | None = None, label: str = "", bar: bool = True) -> None:
        self.terminal, self.folder, self.label = terminal, folder, label
        self.bar = bar and terminal.is_terminal
        self.muted = False  # while another run of its stack speaks for all
        self.spoken = time.perf_counter()

    def say(self, text: str) -> None:
        """A line that nobody should miss."""
        self.spoken = time.perf_counter()
        self.terminal.say(f"{self.label}{text}")
        self.note(text)

    def detail(self, what: str | Callable[[Terminal], None]) -> None:
        """A line, or what prints a table, that of many jobs would be too much: then it is in the log only."""
        if not self.label:
            self._put(self.terminal, what)
        self.note(what)

    def sign(self, text: str) -> None:
        """A line of progress: of many jobs only now and then, and not beside a bar."""
        quiet = self.muted or (self.label and (self.bar or time.perf_counter() - self.spoken < PATIENCE))
        self.note(text) if quiet else self.say(text)

    @contextmanager
    def wait(self, what: str) -> Iterator[None]:
        """While nothing can be said of how far it is; of a job of a sweep only where it would seem to stand still."""
        if self.label and not self.bar:
            yield
            return
        with busy(self.terminal, f"{self.label}{what}"):
            yield

    def note(self, what: str | Callable[[Terminal], None]) -> None:
        """In the log only."""
        if self.folder is not None:
            file = io.StringIO()
            self._put(Terminal(file=file, width=140), what)
            append_text(self.folder / LOG, file.getvalue())

    @staticmethod
    def _put(terminal: Terminal, what: str | Callable[[Terminal], None]) -> None:
        what(terminal) if callable(what) else terminal.say(what)


class ProgressDisplay(Callback):
    """A rich bar over the whole run with the losses and the temperature on a terminal, and a line per epoch.

    Values are read from the device at most four times a second, so a step costs no synchronization.
    """

    def __init__(self, voice: Voice, recorder: Recorder) -> None:
        """recorder: must come before this callback, so that its rows include the epoch that has just ended."""
        self.voice, self.recorder = voice, recorder
        self.progress: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Opens the bar, in the main process only."""
        self.next_update = 0.0
        if not self.voice.bar or self.voice.muted or not trainer.is_global_zero:
            return
        width = self.voice.terminal.width
        columns = (
            Words("{task.description}"),
            BarColumn(20 if width >= 80 else 8),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            Words("{task.fields[values]}"),
        )
        self.room = width - (64 if width >= 80 else 48)  # for the values: what the other columns leave
        progress = Progress(*columns, console=self.voice.terminal, transient=True, refresh_per_second=4)
        steps = trainer.estimated_stepping_batches
        total = int(steps) if math.isfinite(steps) else None
        self.task = progress.add_task("", total=total, completed=trainer.global_step, values="")
        progress.start()
        self.progress = progress

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The bar speaks of the epoch that begins, not of the one above it."""
        if self.progress is not None:
            epoch = f"epoch {trainer.current_epoch + 1}/{_epochs(trainer)}"
            self.progress.update(self.task, description=epoch, completed=trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Moves the bar, at most four times a second: the means have to be read from the device."""
        if self.progress is None or (now := time.perf_counter()) < self.next_update:
            return
        self.next_update = now + 0.25
        values = self._summary(vae(pl_module).epoch_means.compute(), self.room)
        self.progress.update(self.task, completed=trainer.global_step, values=values)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Says the epoch in one line, from the row that the recorder has just made."""
        if trainer.is_global_zero:
            row, seconds = self.recorder.rows[-1], self.recorder.timing[-1]["seconds"]
            self.voice.sign(f"epoch {row['epoch']}/{_epochs(trainer)}  {self._summary(row)}  ({seconds:.1f} s)")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Takes the bar away before the tables of the end are printed."""
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Takes the bar away, so that the error stands alone and the cursor comes back."""
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _summary(self, values: dict[str, float], room: float = math.inf) -> str:
        """The losses and what schedules say, as many as there is room for."""
        shown = {
            "loss": values.get("train/loss"),
            "unrelaxed": values.get("train/loss_unrelaxed"),
            "val": values.get("val/loss"),
            "test": values.get("test/loss"),
            **{one.name.removeprefix("train/"): one.value for one in self.recorder.scheduled},
        }
        text = ""
        for words in (f"{name} {value:.4g}" for name, value in shown.items() if value is not None):
            if len(longer := f"{text}  {words}" if text else words) > room:
                break
            text = longer
        return text


def _epochs(trainer: lightning.Trainer) -> int | str:
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
