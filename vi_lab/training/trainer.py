"""The Lightning trainer of a run, with the callbacks that make its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from vi_lab.adapters.lightning import IdleHooks, NoProfiler, complaints, resume_behind_epochs, silence
from vi_lab.build import instantiate
from vi_lab.config import plain
from vi_lab.errors import UserError
from vi_lab.schema import SHOWN, has, leaves
from vi_lab.training.callbacks import Beta, GradientAudit, Recorder, Scheduled, Temperature
from vi_lab.training.checkpoints import AtomicCheckpointIO, Checkpoints
from vi_lab.training.compilation import Compilation
from vi_lab.training.display import ProgressDisplay, Voice
from vi_lab.training.loggers import make_loggers
from vi_lab.training.pictures import Pictures
from vi_lab.training.process import trains_together
from vi_lab.training.signals import Stop


def build_trainer(
    config: DictConfig,
    folder: Path,
    voice: Voice,
    stop: Stop | None = None,
    swept: Mapping[str, Any] = {},
    watchers: Sequence[Callback] = (),
) -> tuple[lightning.Trainer, Recorder]:
    """The trainer and, of its callbacks, the one that keeps the record.

    Args:
        voice: for the progress display.
        stop: lets a signal stop training after a step.
        swept: see `hyperparameters`.
        watchers: more callbacks.

    Raises:
        UserError: Lightning does not take an argument, or this machine lacks the device.
    """
    scheduled: list[Scheduled] = [Temperature(instantiate(config.schedule))]
    if config.beta_schedule._target_:
        scheduled.append(Beta(instantiate(config.beta_schedule)))
    recorder = Recorder(folder, scheduled, hyperparameters(config, swept))
    callbacks = [
        IdleHooks(),
        *scheduled,
        recorder,
        ProgressDisplay(voice, recorder),
        *[Compilation(voice)] * bool(config.compile),
        *_watchers(config, folder, recorder),
        *[instantiate(node) for node in (config.get("callbacks") or {}).values()],
        *watchers,
        _checkpoints(config, folder, recorder, stop or Stop()),
    ]
    trainer = make_trainer(
        config,
        default_root_dir=folder,
        logger=make_loggers(config, folder),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )
    resume_behind_epochs(trainer)
    return trainer, recorder


def make_trainer(config: DictConfig, **arguments: Any) -> lightning.Trainer:
    """Lightning's trainer with the arguments that the config has for it, and others.

    Raises:
        UserError: Lightning does not take an argument, or this machine lacks the device.
    """
    silence()
    with complaints("accelerator or trainer: "):
        return lightning.Trainer(
            **plain(config.accelerator),
            **{"profiler": NoProfiler(), **plain(config.trainer)},
            **{"logger": False, **arguments},
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def _watchers(config: DictConfig, folder: Path, recorder: Recorder) -> list[Callback]:
    """What looks at the model while it trains. After the recorder, whose rows then include the epoch that has ended."""
    audit = plain(config.audit)
    watchers: list[Callback] = [GradientAudit(recorder, **audit)] if audit["every_n_steps"] else []
    if config.figures:
        watchers.append(Pictures(folder / "figures", recorder, config.figures_every_n_epochs))
    return watchers


def _checkpoints(config: DictConfig, folder: Path, recorder: Recorder, stop: Stop) -> Checkpoints:
    if config.checkpoint.every_n_steps and trains_together(config):
        raise UserError("checkpoint.every_n_steps: processes that train together are saved at the ends of epochs only")
    return Checkpoints(folder, recorder, stop, config.checkpoint.every_n_steps)


def hyperparameters(config: DictConfig, swept: Mapping[str, Any]) -> dict[str, Any]:
    """What distinguishes runs, under short names, for TensorBoard's hparams tab: few enough to read in one table, and
    what matters most first.

    Args:
        swept: in what the run differs from the others of its sweep.
    """
    values = plain(config)
    chosen = {"estimator": values["name"], "seed": values["seed"]}
    for group in ("latent", "schedule", "likelihood"):
        chosen[group] = values[group]["_target_"].rpartition(".")[2]
    if values["beta_schedule"]["_target_"]:
        chosen["beta_schedule"] = values["beta_schedule"]["_target_"].rpartition(".")[2]
    first = ("estimator", "seed", "latent", "temperature", "optimizer.lr")
    shown = {path: value for path, value in leaves(values) if has(path, SHOWN) and value is not None}
    found = {**chosen, **shown, **swept}
    order = dict.fromkeys((*swept, *(key for key in first if key in found), *found))
    return {key: v if isinstance(v := found[key], (bool, int, float, str)) else str(v) for key in order}
