"""One training run, from a checked config to a finished run folder."""

from __future__ import annotations

import shlex
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from vi_lab.adapters.lightning import complaints, signals_are_ours
from vi_lab.audit import decoder_evaluations
from vi_lab.build import build
from vi_lab.console import duration, image_bar, make_console
from vi_lab.errors import Interrupted, UserError, nearby, printable
from vi_lab.models import ExpectedCost
from vi_lab.runs.environment import differences, environment, threads_of
from vi_lab.runs.evaluations import Settings, evaluate_into
from vi_lab.runs.files import CONFIG_FILE, sweep, write_json, write_text
from vi_lab.runs.trust import read_json
from vi_lab.training import loggers
from vi_lab.training.checkpoints import rewind
from vi_lab.training.display import Voice
from vi_lab.training.fit import check_fit
from vi_lab.training.pictures import Pictures, project
from vi_lab.training.process import main_process, prepare_process
from vi_lab.training.report import report
from vi_lab.training.signals import Stop
from vi_lab.training.start import Source, center
from vi_lab.training.trainer import build_trainer

LOGGED = ("nll", "nll_error", "bits_per_dimension", "active_units", "mutual_information", "marginal_kl", "loss_relaxed")
"""What of the evaluation a run adds to its metrics, as test/NAME; the rest is in evaluation.json."""


class Session:
    """A run in its folder. `train` does all of it.

    Args:
        config: a composed and checked train config.
        folder: the run folder.
        command: recorded in the snapshot.
        workers: how many such jobs run at once on this machine (negative: one per core), to share out the cores.
        label: of a sweep: which job speaks. Then the terminal gets what matters, and train.log the rest.
        bar: shows progress where stdout is a terminal; jobs side by side have none.
        resume: go on from the folder's last checkpoint.
        stop: lets a signal stop training after a step.
        swept: in what the run differs from the others of its sweep, for TensorBoard's table.
        beside: the first session of the stack that this one is trained with.
        pruning: the arguments of `vi_lab.training.study.Pruning`, of a run that a study may end.
    """

    def __init__(
        self,
        config: DictConfig,
        folder: Path,
        command: str = "",
        workers: int = 1,
        label: str = "",
        bar: bool = True,
        resume: bool = False,
        stop: Stop | None = None,
        swept: dict[str, Any] | None = None,
        beside: Session | None = None,
        pruning: dict[str, Any] | None = None,
    ) -> None:
        self.pruning = pruning
        self.config, self.folder, self.command, self.beside = config, folder, command, beside
        self.resume, self.stop, self.swept = resume, stop or Stop(), swept or {}
        self.started = time.perf_counter()
        terminal = make_console(quiet=not main_process())
        self.voice = Voice(terminal, folder if main_process() else None, label, bar)
        self.snapshot = read_json(folder, "environment.json") if resume else {}
        self.device, self.threads = prepare_process(config, workers, threads_of(self.snapshot))

    def train(self) -> float:
        """Train, test, evaluate and draw. Returns the validation loss, or the test loss where nothing is held out.

        Raises:
            UserError: a part of the config does not fit the others, or the data are not those that the run began with.
            ViLabError: a loss that is not finite, no checkpoint to go on from, or a file that cannot be written.
            Interrupted: a signal has stopped the run; its checkpoint is written.
        """
        self.prepare()
        self.fit()
        return self.conclude()

    def prepare(self) -> None:
        """All that comes before the first step."""
        self.datamodule, self.model = build(self.config)
        if self.beside is not None:  # of a stack: the data are the same, in memory once
            self.datamodule.images, self.datamodule.digest = (
                self.beside.datamodule.load(),
                self.beside.datamodule.checksum(),
            )
        begun = self.start()
        self.record()
        self.announce()
        if begun:
            self.voice.say(printable(begun))
        watchers = []
        if self.pruning:
            from vi_lab.training.study import Pruning  # with Optuna, which nothing else needs

            watchers.append(Pruning(**self.pruning, epochs=self.config.trainer.max_epochs))
        parts = (self.config, self.folder, self.voice, self.stop, self.swept, watchers)
        self.trainer, self.recorder = build_trainer(*parts)
        self.checkpoint = self.rewind()
        self.stop.serve("before training")

    def conclude(self) -> float:
        """All that comes after the last step; returns what `train` does."""
        with complaints(), signals_are_ours(self.trainer):
            self.trainer.test(self.model, self.datamodule, verbose=False)
        self.stop.serve("after training")
        final = self.recorder.final
        if self.trainer.is_global_zero:
            final |= self.evaluate()
            self.finish(final)
        return final.get("val/loss", final["test/loss"])

    # --- before training ----------------------------------------------------------------------------------------

    def start(self) -> str:
        """Give the model the weights that it begins with; a run with a checkpoint goes on with those in it.

        Returns:
            what is to be said of it.

        Raises:
            UserError: they do not fit, or are not those with which the run began.
        """
        center(self.config, self.model, self.datamodule)
        self.source: Source | None = None
        going_on = self.resume and any((self.folder / "checkpoints").glob("*.ckpt"))
        if self.config.init_from is None or going_on:
            return ""
        self.source = Source(self.config.init_from)
        then = self.snapshot.get("init_from")
        if self.snapshot and then != self.source.record():
            raise UserError(
                f"init_from={self.config.init_from}: its last checkpoint is not the one that {self.folder} began with, "
                "and this run has none yet; begin a new run"
            )
        return self.source.fill(self.model, self.config)

    def record(self) -> None:
        """Write down what the run is made with. The first snapshot of a resumed run stays; what changed is added."""
        batches = -(-len(self.datamodule.load().test_images) // self.config.data.eval_batch_size)
        limit = self.config.trainer.limit_test_batches  # of the others Lightning says so before it trains
        if isinstance(limit, float) and limit * batches < 1:
            raise UserError(f"trainer.limit_test_batches={limit}: leaves nothing of {batches} test batches")
        data = {"source": self.config.data.source, "sha256": self.datamodule.checksum()}
        now = environment(self.command, self.device, data)
        if self.snapshot:
            if self.snapshot.get("data") != data:
                raise UserError(f"{self.folder}: the data are not those that the run began with; give data.root=FOLDER")
            changed = differences(self.snapshot, now)
            for difference in changed:
                self.voice.say(f"{printable(difference)}: the last digits may differ from an uninterrupted run")
            before = self.snapshot.get("resumed")
            now = {**self.snapshot, "resumed": [*(before if isinstance(before, list) else []), {"changed": changed}]}
        else:
            if self.source:
                now["init_from"] = self.source.record()
            now["decoder_evaluations"] = decoder_evaluations(self.model, self.datamodule.shape)  # per image and step
        if main_process():
            sweep(self.folder)
            write_text(self.folder / CONFIG_FILE, OmegaConf.to_yaml(self.config, resolve=True))
            write_json(self.folder / "environment.json", now)

    def announce(self) -> None:
        """One line that says what is trained, on what and how; in the log also when, and by which command."""
        self.voice.note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.command}")
        config, data = self.config, self.config.data
        count = self.datamodule.training_images(self.datamodule.load())
        optimizer = f"{config.optimizer._target_.rpartition('.')[2]} lr {config.optimizer.lr:g}"
        if self.model.estimator.multi_sample and self.model.estimator.samples == 1:
            self.voice.say("note: with one sample the importance-weighted bound is the ELBO")
        pixels = {"none": "gray levels", "dequantize": "dequantized"}.get(
            data.binarization, f"{data.binarization} binarization"
        )
        images = f"{data.source} ({count} images, {pixels})"
        if isinstance(self.model, ExpectedCost):
            images = f"{self.model.cost}, {data.steps} steps an epoch"
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        self.voice.detail(
            f"{config.name} seed {config.seed}: {self.model.latent.describe()} on {images}, "
            f"{optimizer}, {self.device}, {threads}"
        )

    def rewind(self) -> Path | None:
        """The checkpoint to go on from, with the folder put back to it; None where the run begins."""
        if not self.resume:
            return None
        checkpoint = rewind(self.folder, self._fits, self.voice.say, main_process())
        self.voice.say(f"goes on from {nearby(checkpoint)}" if checkpoint else "no checkpoint yet: begins anew")
        return checkpoint

    def _fits(self, checkpoint: dict[str, Any]) -> None:
        check_fit(checkpoint, self.trainer, self.model)

    # --- training and after -------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train until the end, or until a signal asks to stop.

        Raises:
            UserError: a callback or a schedule does not suit the run, as Lightning says.
        """
        # Lightning loads a checkpoint before it converts the model: float64 weights would be rounded to float32
        self.trainer.precision_plugin.convert_module(self.model)
        self.stop.patient = self.trainer.world_size == 1  # several processes would stop at different steps
        try:
            with complaints(), signals_are_ours(self.trainer):
                self.trainer.fit(self.model, self.datamodule, ckpt_path=self.checkpoint)
        finally:
            self.stop.patient = False
        self.stop.serve("after the last epoch")

    def evaluate(self) -> dict[str, float]:
        """The evaluation at the end, on the trainer's device, written into the folder and logged: test/NAME for the
        names in `LOGGED`."""
        settings = self.config.evaluation
        if settings.samples is None:
            return {}
        device, home = self.trainer.strategy.root_device, self.model.device
        try:
            report = evaluate_into(
                self.folder,
                self.model.to(device),
                self.datamodule,
                Settings("test", settings.samples, settings.images),
                partial(image_bar, self.voice.terminal, f"{self.voice.label}evaluation: test", bar=self.voice.bar),
                {"command": None, "device": device.type, "threads": torch.get_num_threads()},
                final=True,
            )
        except KeyboardInterrupt:
            raise self._interrupted() from None
        finally:
            self.model.to(home)
        if report["interrupted"]:
            raise self._interrupted()
        metrics = {f"test/{name}": report["metrics"][name] for name in LOGGED if name in report["metrics"]}
        loggers.log(self.trainer, metrics)
        return metrics

    def _interrupted(self) -> Interrupted:
        return Interrupted(self.stop.requested or signal.SIGINT, "in the evaluation after training")

    def finish(self, final: dict[str, float]) -> None:
        """The final metrics, the last pictures, and a table on the terminal."""
        trainer = self.trainer
        # of the last row: Lightning counts an epoch that max_steps has cut short only where the run is resumed
        last = {name: self.recorder.rows[-1][name] for name in ("epoch", "step")}
        write_json(self.folder / "metrics.json", {**last, **final})
        if self.config.figures or self.config.projector:
            with self.voice.wait("drawing the pictures"):
                self.draw()
        for logger in trainer.loggers:
            logger.finalize("success")
        self.report(final)

    def draw(self) -> None:
        """The pictures of the end."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it without declaring it
            if isinstance(callback, Pictures):
                callback.finish(self.trainer, self.model)
        if self.config.projector:
            project(self.trainer, self.model)

    def report(self, final: dict[str, float]) -> None:
        """What came out, and where to look."""
        self.voice.detail(lambda terminal: report(terminal, final))
        seconds = duration(time.perf_counter() - self.started)
        self.voice.detail(f"{seconds} in all. Run folder: {nearby(self.folder)}")
        self.voice.detail(f"Curves: vi-lab board {shlex.quote(str(nearby(self.folder)))}")
        if self.voice.label:
            form = ".6f" if isinstance(self.model, ExpectedCost) else ".2f"
            losses = [f"{name} {final[name]:{form}}" for name in ("val/loss", "test/loss", "test/nll") if name in final]
            self.voice.say(f"{'  '.join(losses)}  nats  ({seconds})")
