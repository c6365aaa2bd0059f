"""`stack=N`: jobs of a sweep that are trained as one stack, each with the folder, record and checkpoints of its own.

One Lightning trainer runs the stack's loop. What happens around the training of a run (temperature, record, pictures,
checkpoints) is its own callbacks', to which this trainer looks like that of their run. A run's checkpoint is the one
that the run would write alone, so it is resumed, evaluated and repeated like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from omegaconf import DictConfig
from torch import Tensor

from vi_lab.adapters.lightning import complaints, resume_behind_epochs, signals_are_ours
from vi_lab.config import plain
from vi_lab.errors import Interrupted, UserError
from vi_lab.models import VAE, Means
from vi_lab.runs.trust import load_checkpoint
from vi_lab.schema import leaves
from vi_lab.seeding import NOISE
from vi_lab.training.checkpoints import AtomicCheckpointIO
from vi_lab.training.display import ProgressDisplay
from vi_lab.training.stacked import Stack, StackedAdam
from vi_lab.training.trainer import make_trainer

if TYPE_CHECKING:
    from vi_lab.training.session import Session


def check_stackable(config: DictConfig, model: VAE | None) -> None:
    """Refuse what a stack does not do, before there is a folder.

    Args:
        model: None where it is not known yet.

    Raises:
        UserError: names it.
    """
    optimizer, precision = config.optimizer._target_, str(config.trainer.precision)
    estimator = None if model is None else model.estimator
    refused = {
        f"{type(estimator).__name__}, which takes a derivative within its step": estimator and estimator.differentiates,
        f"{optimizer}, but Adam and AdamW": optimizer not in ("torch.optim.Adam", "torch.optim.AdamW"),
        "an amsgrad or maximize of the optimizer": config.optimizer.get("amsgrad") or config.optimizer.get("maximize"),
        "a lr_scheduler": config.lr_scheduler.scheduler is not None,
        "callbacks": bool(config.get("callbacks")),
        "optimizer_groups": any(value is not None for _, value in leaves(plain(config.optimizer_groups))),
        "compile=true": config.compile,
        "a gradient_clip_val": config.trainer.get("gradient_clip_val") is not None,
        "a max_time": config.trainer.get("max_time") is not None,  # they would go on alone
        f"trainer.precision={precision}, but 32-true and 64-true": precision not in ("32", "64", "32-true", "64-true"),
        "several devices": config.accelerator.devices != 1,
    }
    for what, is_so in refused.items():
        if is_so:
            raise UserError(f"stack={config.stack}: runs of a stack cannot have {what}; leave stack= out")


class Run:
    """A run of a stack.

    Args:
        session: prepared to train.
        trainer: of the stack.
    """

    def __init__(self, session: Session, trainer: lightning.Trainer) -> None:
        self.session, self.model = session, session.model
        configured = session.model.configure_optimizers()
        assert isinstance(configured, torch.optim.Adam)  # see `check_stackable`
        self.optimizer: torch.optim.Adam = configured
        self.trainer: Any = _OwnTrainer(trainer, session)
        self.callbacks = [one for one in self.trainer.callbacks if type(one).__module__.startswith("vi_lab.")]
        self.error: Exception | None = None
        """What has ended this run; the others go on."""
        self._hearing: dict[str, list[Callback]] = {}

    def hearing(self, hook: str) -> list[Callback]:
        """The callbacks that do something at a hook: found out once, as some hooks come at each step."""
        if hook not in self._hearing:
            nothing = getattr(Callback, hook, None)
            self._hearing[hook] = [one for one in self.callbacks if getattr(type(one), hook, None) is not nothing]
        return self._hearing[hook]

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.on_load_checkpoint(checkpoint)
        self.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        for callback in self.callbacks:
            if callback.state_key in checkpoint["callbacks"]:
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])

    def parts(self, optimizer: torch.optim.Adam) -> dict[str, Any]:
        """What its checkpoint has of its own, copied: a slice would be saved with all of the stack."""
        found: dict[str, Any] = {
            "state_dict": {name: tensor.clone() for name, tensor in self.model.state_dict().items()},
            "optimizer_states": [optimizer.state_dict()],
            "callbacks": {one.state_key: state for one in self.callbacks if (state := one.state_dict())},
        }
        self.model.on_save_checkpoint(found)
        return found


class _OwnTrainer:
    """The stack's trainer, as the callbacks of one of its runs see it."""

    def __init__(self, trainer: lightning.Trainer, session: Session) -> None:
        self._of_stack = trainer
        own: Any = session.trainer
        self.loggers, self.callbacks = own.loggers, own.callbacks
        self.datamodule, self.lightning_module = session.datamodule, session.model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of_stack, name)


class StackLoader:
    """The batches of all runs side by side: x (N, B, *shape), labels (N, B).

    Args:
        loaders: a `BatchLoader` of each run.
    """

    batch_sampler = None  # as in `BatchLoader`

    def __init__(self, loaders: Sequence[Any]) -> None:
        self.loaders = loaders

    @property
    def sampler(self) -> StackLoader:
        """Lightning calls `loader.sampler.set_epoch(epoch)` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """For all runs."""
        for loader in self.loaders:
            loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batches in zip(*self.loaders, strict=True):
            x, labels = zip(*batches, strict=True)
            yield torch.stack(x), torch.stack(labels)

    def state_dict(self) -> dict[str, int]:
        """The position within the epoch, which all runs share."""
        return self.loaders[0].state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the last batch that was handed out."""
        for loader in self.loaders:
            loader.load_state_dict(state)


class StackedVAE(lightning.LightningModule):
    """What Lightning trains in place of the N models. It has no parameters of its own: its optimizer has them.

    Args:
        runs: on the device where they train.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__()
        self.runs = runs
        self.stack = Stack([run.model for run in runs], runs[0].session.config.stack)
        self.adam = StackedAdam([*self.stack.parameters.values()], [run.optimizer for run in runs])
        self.losses: Sequence[Tensor] = ()
        self.means = {"epoch_means": Means(), "window_means": Means()}
        for kind, means in self.means.items():
            own = [getattr(run.model, kind) for run in runs]
            means.names, means.weight = own[0].names, own[0].weight
            if own[0].total is not None:
                means.total = torch.stack([one.total for one in own]).to(runs[0].model.device)

    def train(self, mode: bool = True) -> StackedVAE:
        """Lightning says when the models are evaluated."""
        for run in self.runs:
            run.model.train(mode)
        return super().train(mode)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The stacked Adam."""
        return self.adam

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """() the sum of the runs' losses, whose gradient is that of each run for its own weights."""
        x, _ = batch
        self.stack.draw(x, NOISE, self.current_epoch, batch_idx, self.global_rank)
        losses, values = self.stack.losses(x)
        self.losses = losses.detach().unbind()
        for run, *own in zip(self.runs, *(value.unbind() for value in values.values()), strict=True):
            run.model.latest = dict(zip(values, own, strict=True))
        stacked = torch.stack([*values.values()], 1)  # (runs, metrics)
        for means in self.means.values():
            means.names = [f"train/{name}" for name in values]
            means.add(stacked, x.shape[1])
        return losses.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Each run as it is alone."""
        split = self.runs[0].session.datamodule.validation_splits[dataloader_idx]
        for run, x, labels in zip(self.runs, *batch, strict=True):
            run.model.evaluation_step(split, (x, labels), batch_idx)

    def share(self) -> None:
        """Let each run see its own means."""
        for kind, means in self.means.items():
            rows = [None] * len(self.runs) if means.total is None else means.total.unbind()
            for run, total in zip(self.runs, rows, strict=True):
                own = getattr(run.model, kind)
                own.names, own.total, own.weight = means.names, total, means.weight

    def forget(self) -> None:
        """Take over what the runs have reset."""
        for kind, means in self.means.items():
            if all(run.error or not getattr(run.model, kind).weight for run in self.runs):
                means.reset()


class Callbacks(Checkpoint):
    """The callbacks of all runs. Lightning calls a `Checkpoint` last, and makes none of its own beside it.

    Args:
        failed: told at once of a run that has failed, and why.
    """

    def __init__(self, failed: Callable[[Session, Exception], None]) -> None:
        self.failed = failed
        self.runs: Sequence[Run] = ()  # once there are some: they need the trainer, which needs this

    def _tell(self, hook: str, arguments: Callable[[int], tuple] = lambda run: ()) -> None:
        """Call a hook of all runs that have not failed.

        Args:
            arguments: of each run, besides trainer and module.

        Raises:
            Exception: that of the last run: all have failed.
            Interrupted: a signal has asked to stop; all runs have been told.
        """
        interrupted: Interrupted | None = None
        for index, run in enumerate(self.runs):
            try:
                for callback in run.hearing(hook) if run.error is None else ():
                    getattr(callback, hook)(run.trainer, run.model, *arguments(index))
            except Exception as error:  # a loss that is not finite, a file that cannot be written: the others go on
                self._end(run, error)
            except Interrupted as error:
                interrupted = error
        if interrupted:
            raise interrupted
        errors = [run.error for run in self.runs if run.error is not None]
        if len(errors) == len(self.runs):
            raise errors[-1]

    def _end(self, run: Run, error: Exception) -> None:
        """Leave a run out from now on; where it has spoken for all, another one does."""
        run.error = error
        self._show(run, "on_exception", error)
        self.failed(run.session, error)
        left = next((other for other in self.runs if other.error is None), None)
        if left is not None and not run.session.voice.muted:
            left.session.voice.muted = False
            self._show(left, "on_train_start")

    @staticmethod
    def _show(run: Run, hook: str, *arguments: Any) -> None:
        for callback in run.callbacks:
            if isinstance(callback, ProgressDisplay):
                getattr(callback, hook)(run.trainer, run.model, *arguments)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Of all runs."""
        self._tell("on_fit_start")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Of all runs."""
        self._tell("on_train_start")

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Of all runs."""
        self._tell("on_train_epoch_start")

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Of all runs."""
        self._tell("on_train_batch_start", lambda run: (None, batch_idx))

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Of all runs, each with its own loss."""
        losses = stacked(pl_module).losses
        self._tell("on_before_backward", lambda run: (losses[run],))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
    ) -> None:
        """Of all runs, each with its own batch."""
        module, (x, labels) = stacked(pl_module), batch
        module.share()
        self._tell("on_train_batch_end", lambda run: (None, (x[run], labels[run]), batch_idx))
        module.forget()

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Of all runs, which announce nothing to Lightning: nobody waits for it."""
        self._tell("publish")

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Of all runs."""
        stacked(pl_module).share()
        self._tell("on_train_epoch_end")
        stacked(pl_module).forget()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Of all runs."""
        self._tell("on_train_end")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Of all runs."""
        self._tell("on_exception", lambda run: (exception,))


def stacked(module: lightning.LightningModule) -> StackedVAE:
    """What a hook is given."""
    assert isinstance(module, StackedVAE)
    return module


class StackCheckpointIO(AtomicCheckpointIO):
    """Makes of the stack's checkpoint that of the run whose file is asked for, and the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.module: StackedVAE | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one run's."""
        assert self.module is not None
        for index, run in enumerate(self.module.runs):
            if run.session.folder in Path(path).parents:
                own = run.parts(self.module.adam.share(index))
                super().save_checkpoint({**checkpoint, **own}, path, storage_options)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Where the loops stand, which is the same for all runs; their tensors are loaded already."""
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        return {**checkpoint, "state_dict": {}, "optimizer_states": [], "callbacks": {}}


def fit_stacks(sessions: Sequence[Session], failed: Callable[[Session, Exception], object]) -> None:
    """Train prepared sessions as stacks: one, but where those that go on stand at different steps one for each step.

    Args:
        failed: told at once what has ended a session before its last step; its checkpoint is that from before.

    Raises:
        Interrupted: a signal has stopped them; their checkpoints are written.
    """
    waiting: dict[int, list[tuple[Session, dict[str, Any] | None]]] = {}
    for session in sessions:
        checkpoint = None if session.checkpoint is None else load_checkpoint(session.checkpoint)
        waiting.setdefault(checkpoint["global_step"] if checkpoint else 0, []).append((session, checkpoint))
    for _, together in sorted(waiting.items()):
        stopped: set[Session] = set()

        def end(session: Session, error: Exception, stopped: set[Session] = stopped) -> None:
            stopped.add(session)
            failed(session, error)

        members, checkpoints = zip(*together, strict=True)
        try:
            with members[0].stop:
                _fit(members, checkpoints, end)
        except Exception as error:
            for session in members:
                if session not in stopped:
                    failed(session, error)


def _fit(
    sessions: Sequence[Session],
    checkpoints: Sequence[dict[str, Any] | None],
    failed: Callable[[Session, Exception], None],
) -> None:
    first, *others = sessions
    check_stackable(first.config, first.model)
    if others:
        first.voice.say(f"{len(sessions)} runs train as one stack, of which this one speaks")
    for one in others:
        one.voice.muted = True
    callbacks, files = Callbacks(failed), StackCheckpointIO()
    trainer = make_trainer(first.config, default_root_dir=first.folder, callbacks=[callbacks], plugins=[files])
    resume_behind_epochs(trainer)
    first.datamodule.trainer = trainer  # whose device the data go to
    first.datamodule.setup()
    callbacks.runs = [Run(session, trainer) for session in sessions]
    for run, checkpoint in zip(callbacks.runs, checkpoints, strict=True):
        run.session.datamodule.splits = first.datamodule.splits
        trainer.precision_plugin.convert_module(run.model)
        run.model.to(trainer.strategy.root_device)
        if checkpoint is not None:
            run.load(checkpoint)
    module = files.module = StackedVAE(callbacks.runs)
    modules = [session.datamodule for session in sessions]
    training = StackLoader([one.train_dataloader() for one in modules])
    splits = zip(*(one.val_dataloader() for one in modules), strict=True)
    validation = [StackLoader(loaders) for loaders in splits]
    first.stop.patient = True
    try:
        with complaints(), signals_are_ours(trainer):
            trainer.fit(module, training, validation, ckpt_path=first.checkpoint)
    finally:
        first.stop.patient = False
        for one in others:
            one.voice.muted = False
    first.stop.serve("after the last epoch")
