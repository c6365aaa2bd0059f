"""What happens around training: what schedules write, the record (TensorBoard, CSV), audits."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn.utils.parametrize import is_parametrized

from vi_lab.audit import Bench
from vi_lab.errors import ViLabError
from vi_lab.estimators.base import positive, temperature_of
from vi_lab.models import VAE
from vi_lab.runs.files import LAST, write_csv
from vi_lab.schedules import Schedule
from vi_lab.seeding import AUDIT, seed_noise
from vi_lab.training import loggers


def remedy(folder: Path, module: VAE) -> str:
    """What to do about numbers that are not finite, and from where one could go on."""
    advice = ["lower optimizer.lr", "set trainer.gradient_clip_val"]
    if temperature_of(module.estimator) is not None:
        advice.append("raise temperature= or the floor of its schedule")
    kept = f"{folder / LAST}, from before, is kept" if (folder / LAST).is_file() else "there is no checkpoint yet"
    return f"{', '.join(advice[:-1])} or {advice[-1]}; {kept}"


def step_is_complete(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer has stepped with this batch, where gradients of several batches are accumulated."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def vae(module: lightning.LightningModule) -> VAE:
    """What a hook is given, as what our callbacks are for.

    Raises:
        TypeError: another module is trained.
    """
    if not isinstance(module, VAE):
        raise TypeError(f"the callbacks of vi_lab are for a VAE, not for {type(module).__name__}")
    return module


class Scheduled(Callback):
    """Writes schedule(global step) into 0-d tensors of the model before each step. Stateless.

    Args:
        schedule: optimizer steps taken -> the value.
    """

    name: ClassVar[str]
    """Under which the value is logged."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.written: float | None = None

    @property
    def value(self) -> float | None:
        """What is reported; None where the model has nothing to write to."""
        return self.written

    def targets(self, module: lightning.LightningModule) -> list[torch.Tensor]:
        """Where the value goes."""
        raise NotImplementedError

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The first value, so that what happens before the first step sees it; a resumed run takes its step's."""
        self._write(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object, **__: object
    ) -> None:
        """The value of the step that follows."""
        self._write(trainer, pl_module)

    def _write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        targets = self.targets(module)
        if targets and (value := self.schedule(trainer.global_step)) != self.written:
            for target in targets:
                target.fill_(value)
            self.written = value


class Temperature(Scheduled):
    """Writes the estimator's temperature, of several stochastic layers those of all estimators.

    One that the estimator learns is left alone, and read only when its value is asked for.

    Raises:
        ValueError: the schedule is not positive throughout.
    """

    name = "temperature"

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(lambda step: positive(schedule(step), "temperature"))
        self.learner: torch.nn.Module | None = None

    @property
    def value(self) -> float | None:
        """What is reported; None where the estimator has no temperature."""
        learned = None if self.learner is None else temperature_of(self.learner)
        return self.written if learned is None else learned.item()

    def targets(self, module: lightning.LightningModule) -> list[torch.Tensor]:
        """The temperatures, unless they are learned; then the first is what is reported."""
        estimator, deeper = module.estimator, getattr(module, "deeper", ())
        if not isinstance(estimator, torch.nn.Module):
            return []
        if is_parametrized(estimator, "temperature"):
            self.learner = estimator
            return []
        temperatures = [temperature_of(each) for each in (estimator, *deeper)]
        return [temperature for temperature in temperatures if temperature is not None]


class Beta(Scheduled):
    """Writes the weight of the KL in training."""

    name = "train/beta"

    def targets(self, module: lightning.LightningModule) -> list[torch.Tensor]:
        """See `vi_lab.objectives.ELBO.schedule_beta`."""
        scheduled = vae(module).objective.scheduled
        return [] if scheduled is None else [scheduled]


class Recorder(Callback):
    """Publishes the model's running means.

    TensorBoard: means since the last point every `trainer.log_every_n_steps` steps, evaluations per epoch.
    `metrics.csv`: one row per epoch. `timing.csv`: the wall time of each epoch, apart, so that `metrics.csv` of two
    equal runs is equal.

    Raises:
        ViLabError: a loss or a mean is not finite.
    """

    def __init__(self, folder: Path, scheduled: Sequence[Scheduled], hyperparameters: dict) -> None:
        self.folder = folder
        self.scheduled = scheduled
        self.hyperparameters = hyperparameters
        self.rows: list[dict] = []
        self.timing: list[dict] = []
        self.final: dict[str, float] = {}
        self.audited: dict[str, float] = {}  # the last audit of this epoch
        self.losses: list[tuple[int, torch.Tensor]] = []  # (step, loss), not yet looked at
        self.epoch_started = time.perf_counter()
        self.resumed_after: float | None = None  # seconds into the epoch at the checkpoint

    def state_dict(self) -> dict:
        """Rows and wall times until now, the seconds into the epoch and its last audit: a resumed run writes the same
        tables."""
        elapsed = time.perf_counter() - self.epoch_started
        return {"rows": self.rows, "timing": self.timing, "elapsed": elapsed, "audited": self.audited}

    def load_state_dict(self, state: dict) -> None:
        """Takes the rows back, and from the last one the metrics that count as final where no epoch follows."""
        self.rows, self.timing = state["rows"], state["timing"]
        self.resumed_after, self.audited = state["elapsed"], state["audited"]
        if self.rows:
            kept = self.rows[-1].items()
            self.final = {n: value for n, value in kept if n not in ("epoch", "step") and not n.startswith("audit/")}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Opens the run in the loggers, once: a resumed run is open already."""
        if self.resumed_after is None:
            loggers.log_start(trainer, self.folder, self.hyperparameters)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Sets the clock back by what the interrupted epoch had taken until its checkpoint."""
        # within an epoch Lightning does not say `on_train_epoch_start` again
        self.epoch_started = time.perf_counter() - (self.resumed_after or 0)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock of the epoch."""
        self.epoch_started = time.perf_counter()

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: torch.Tensor
    ) -> None:
        """Keeps the step's loss to be looked at; on the CPU looks at once, before it reaches the weights.

        Raises:
            ViLabError: it is not finite.
        """
        self.losses.append((trainer.global_step + 1, loss.detach()))
        if loss.device.type == "cpu":  # reading costs nothing here; elsewhere it would wait for the device
            self.check_losses(trainer, vae(pl_module))

    def check_losses(self, trainer: lightning.Trainer, module: VAE) -> None:
        """Look at the losses since the last look.

        Raises:
            ViLabError: one was not finite; names the first such step.
        """
        losses, self.losses = self.losses, []
        if not losses or bool((finite := torch.stack([loss for _, loss in losses]).isfinite()).all()):
            return
        step, loss = losses[finite.tolist().index(False)]
        # the terms at hand are those of the last step
        parts = [name for name in ("reconstruction", "kl") if name in module.latest and step == losses[-1][0]]
        terms = [f"{name} {module.latest[name]:g}" for name in parts]
        raise ViLabError(
            f"the loss became {loss.item()} at step {step} (epoch {trainer.current_epoch + 1}"
            f"{''.join(f', {term}' for term in terms)}); {remedy(self.folder, module)}"
        )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Logs the means since the last point, every `trainer.log_every_n_steps` steps of the optimizer.

        Raises:
            ViLabError: a loss or a mean is not finite.
        """
        step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        if step % every == 0 and step_is_complete(trainer, batch_idx):
            module = vae(pl_module)
            self.check_losses(trainer, module)
            means = self._checked(trainer, module.window_means.compute())
            module.window_means.reset()
            loggers.log(trainer, {**means, **self._scheduled()})

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the validation means, and those of test images evaluated along with them; keeps them for the row."""
        self._announce(pl_module, self.publish(trainer, vae(pl_module)))

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the means of the test split at the end of the run."""
        self._announce(pl_module, self.publish(trainer, vae(pl_module)))

    @staticmethod
    def _announce(module: lightning.LightningModule, means: dict[str, float]) -> None:
        """To Lightning, for early stopping and plateaus."""
        module.log_dict(means, logger=False, sync_dist=False, rank_zero_only=True)

    def publish(self, trainer: lightning.Trainer, module: VAE) -> dict[str, float]:
        """Logs what was evaluated, keeps it, and forgets it in the module.

        Raises:
            ViLabError: a mean is not finite.
        """
        means: dict[str, float] = {}
        for accumulated in module.evaluation_means.values():
            means |= accumulated.compute(self._sum_over_processes(trainer))
        module.evaluation_means.clear()
        self.evaluation = self._checked(trainer, means)
        loggers.log(trainer, means)
        self.final |= means
        return means

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Adds the epoch's row and wall time (s), and writes both tables anew.

        Raises:
            ViLabError: a mean is not finite.
        """
        module = vae(pl_module)
        means = self._checked(trainer, module.epoch_means.compute(self._sum_over_processes(trainer)))
        module.epoch_means.reset()
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        evaluation, self.evaluation = getattr(self, "evaluation", {}), {}
        audited, self.audited = self.audited, {}
        self.rows.append({"epoch": epoch, "step": step, **means, **evaluation, **self._scheduled(), **audited})
        seconds = time.perf_counter() - self.epoch_started
        self.timing.append({"epoch": epoch, "step": step, "seconds": round(seconds, 4)})
        self.epoch_started = time.perf_counter()
        self.final = {**means, **evaluation, **self._scheduled()}
        if trainer.is_global_zero:
            write_csv(self.folder / "metrics.csv", self.rows)
            write_csv(self.folder / "timing.csv", self.timing)
        loggers.log(trainer, {"time/epoch_seconds": seconds})

    def _scheduled(self) -> dict[str, float]:
        return {one.name: value for one in self.scheduled if (value := one.value) is not None}

    @staticmethod
    def _sum_over_processes(trainer: lightning.Trainer) -> Callable[[torch.Tensor], torch.Tensor] | None:
        return None if trainer.world_size == 1 else lambda sums: trainer.strategy.reduce(sums, reduce_op="sum")

    def _checked(self, trainer: lightning.Trainer, means: dict[str, float]) -> dict[str, float]:
        for name, value in means.items():
            if not math.isfinite(value):
                raise ViLabError(
                    f"{name} became {value} by step {trainer.global_step} (epoch {trainer.current_epoch + 1}); "
                    f"{remedy(self.folder, vae(trainer.lightning_module))}"
                )
        return means


class GradientAudit(Callback):
    """Measures the estimator's gradient at the current weights every so many steps; see `vi_lab.audit`. In the loggers
    each time, and in `metrics.csv` the last time of each epoch, as audit/NAME.

    Leaves training as it is: the noise of a step does not depend on what was drawn before, and moving averages are
    measured on a copy.
    """

    def __init__(
        self,
        recorder: Recorder,
        every_n_steps: int,
        samples: int,
        batch: int,
        max_states: int,
        reference_error: float,
        reference_draws: int,
    ) -> None:
        self.recorder = recorder
        self.every, self.samples, self.batch = every_n_steps, samples, batch
        self.max_states, self.reference_error, self.reference_draws = max_states, reference_error, reference_draws

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: tuple,
        batch_idx: int,
    ) -> None:
        """Measures on the first images of this batch, after a step of the optimizer, in the main process."""
        due = trainer.global_step % self.every == 0 and step_is_complete(trainer, batch_idx)
        if not due or not trainer.is_global_zero:
            return
        module = vae(pl_module)
        seed_noise(module.device, module.seed, AUDIT, trainer.global_step)
        bench = Bench(module, batch[0][: self.batch], module.objective.beta)
        estimator = copy.deepcopy(module.estimator).eval()
        samples = estimator.samples if estimator.multi_sample else 0
        reference = bench.reference(samples, self.max_states, self.reference_error, self.reference_draws)
        measured = bench.measure(estimator, module.objective, reference, self.samples, encoder=False)["logits"]
        values = {f"audit/{name}": value for name, value in measured._asdict().items() if math.isfinite(value)}
        self.recorder.audited = {**values, "audit/reference_error": reference.error}
        loggers.log(trainer, self.recorder.audited)
