"""`vi-lab train`: from overrides to a finished run folder. Nothing heavy is imported before the config is checked."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vi_lab.config import CONFIG_DIR, check_overrides, explain, leaves, plain, read_arguments
from vi_lab.errors import UserError, one_line
from vi_lab.snapshot import Status, environment, write_json, write_text

if TYPE_CHECKING:
    import lightning

    from vi_lab.data import MNISTDataModule
    from vi_lab.estimators import GradientEstimator
    from vi_lab.models import VAE


def main(argv: list[str]) -> int:
    """Check the overrides, then let Hydra run the job or the sweep."""
    return launch("train", task, argv)


def launch(name: str, task: Callable[[], None], argv: list[str]) -> int:
    """Check the overrides of the command `name`, then let Hydra run its `task` on the composed config.

    Raises:
        UserError: a mistake in the overrides, before anything heavy is imported.
    """
    arguments, argv = read_arguments(argv)
    asks = (arguments.help, arguments.hydra_help, arguments.cfg, arguments.info, arguments.shell_completion)
    if not any(asks):
        configs = check_overrides(name, arguments.overrides, arguments.multirun, arguments.config_dir)
        _check_accelerators(configs, arguments.multirun)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here, instead of Hydra's own report and exit
    original = sys.argv
    sys.argv = [original[0], *argv]
    _command_line[:] = [original[0], name, *argv]
    try:
        task()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except Abort as abort:
        raise abort.error from None
    finally:
        sys.argv = original
    return 0


def _check_accelerators(configs: list[dict], multirun: bool) -> None:
    kinds = {config["accelerator"]["accelerator"] for config in configs}
    if multirun and any("ddp" in str(config["accelerator"]["strategy"]) for config in configs):
        raise UserError("accelerator=ddp does not work in a sweep (-m): start its runs one by one")
    if kinds & {"gpu", "cuda", "mps"}:
        import torch  # only now: the other mistakes are answered without it

        if kinds & {"gpu", "cuda"} and not torch.cuda.is_available():
            raise UserError("accelerator=gpu: no CUDA device is visible here; use accelerator=cpu or accelerator=auto")
        if "mps" in kinds and not torch.backends.mps.is_available():
            raise UserError("accelerator=mps: there is no Apple GPU here; use accelerator=cpu or accelerator=auto")


_command_line: list[str] = []


class Abort(BaseException):
    """Carries an error past Hydra, which would print a report of its own before ours."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")
def task(config: DictConfig) -> float:
    """One job: sets up process and folder, trains, and says in `status.json` how it ended."""
    sys.argv = _command_line or sys.argv  # Hydra has read it; DDP starts its other processes from it
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    sweep = job.mode == RunMode.MULTIRUN
    parallel = sweep and "BasicLauncher" not in job.launcher._target_
    workers = job.launcher.get("n_jobs") or 1 if parallel else 1
    command = shlex.join(["vi-lab", "train", *job.overrides.task])
    status = Status(folder)
    main_process = int(os.environ.get("LOCAL_RANK", 0)) == 0
    try:
        if main_process:
            status.write("running")
        result = run(config, folder, command=command, workers=workers, label=f"{folder.name}: " if parallel else "")
        if main_process:
            status.write("completed")
        return result
    except BaseException as error:
        state = "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"
        if main_process:
            status.write(state, one_line(error))
        if sweep and isinstance(error, Exception):  # the sweep goes on; say now which job failed and why
            print(f"vi-lab train: job {job.job.num} ({folder}) failed: {one_line(error)}", file=sys.stderr)
            raise
        raise Abort(error) from None


def run(config: DictConfig, folder: Path, command: str = "", workers: int = 1, label: str = "") -> float:
    """Train one model into `folder`. Returns the validation loss, or the test loss where nothing is held out.

    Args:
        config: a composed and checked train config.
        command: recorded in the snapshot.
        workers: how many such jobs run at once on this machine (negative: one per core), to share out the cores.
        label: begins each line, where several runs write to one terminal; then there is no progress bar.
    """
    started = time.perf_counter()
    device_name, threads = prepare_process(config, workers)

    from rich.console import Console

    console = Console(soft_wrap=True, quiet=int(os.environ.get("LOCAL_RANK", 0)) > 0)
    write_text(folder / "config_resolved.yaml", OmegaConf.to_yaml(config, resolve=True))
    datamodule, model, optimizer_text = build(config)
    images = datamodule.load()
    data = {"source": config.data.source, "sha256": datamodule.checksum()}
    write_json(folder / "environment.json", environment(command, device_name, data))
    console.print(
        f"{label}{config.name} seed {config.seed}: {model.latent} on {config.data.source} "
        f"({len(images.train_images) - config.data.validation} images, {config.data.binarization} binarisation), "
        f"{optimizer_text}, {device_name}, {threads} threads",
        highlight=False,
        markup=False,
    )
    trainer, recorder = build_trainer(config, folder, console, label)
    interrupt_handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(model, datamodule)
    except SystemExit:
        # what Lightning makes of Ctrl-C, after it has told the process to ignore the next one
        signal.signal(signal.SIGINT, interrupt_handler)
        raise KeyboardInterrupt(f"interrupted at epoch {trainer.current_epoch + 1}") from None
    trainer.test(model, datamodule, verbose=False)
    final = recorder.final
    if trainer.is_global_zero:
        from vi_lab.evaluate_command import evaluate_trained

        final |= evaluate_trained(config, trainer, model, folder, console, label)
        rows = {"epoch": trainer.current_epoch, "step": trainer.global_step, **final}
        write_json(folder / "metrics.json", rows)
        trainer.logger.log_metrics(
            {f"hp/{name}": final[name] for name in recorder.HYPERPARAMETER_METRICS if name in final}
        )
        trainer.logger.finalize("success")
        if config.figures:
            from vi_lab.plots import draw_run

            draw_run(folder / "figures", model, datamodule, recorder.rows)
        _report(console, folder, final, time.perf_counter() - started)
    return final.get("val/loss", final["test/loss"])


def prepare_process(config: DictConfig, workers: int = 1) -> tuple[str, int]:
    """Threads and floating point of this process; must come before any thread pool starts."""
    import torch

    # Adam's first moments of dead units decay into denormal numbers, which cost half the speed after some 650 steps.
    # Worker threads inherit the setting from the thread that starts them, so it comes first.
    torch.set_flush_denormal(True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = cores if workers < 0 else workers
    threads = config.threads or (max(1, cores // workers) if workers > 1 else torch.get_num_threads())
    torch.set_num_threads(threads)
    kind = config.accelerator.accelerator
    if kind in ("gpu", "cuda") or (kind == "auto" and torch.cuda.is_available()):
        return "cuda", threads
    if kind == "mps" or (kind == "auto" and torch.backends.mps.is_available()):
        return "mps", threads
    return "cpu", threads


def instantiate(node: DictConfig, **arguments: Any) -> Any:
    """`hydra.utils.instantiate`, with a constructor's complaint as the user's mistake, in one line."""
    try:
        return hydra.utils.instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        raise UserError(f"{node._target_}: {one_line(cause)}" if cause else explain(error)) from error


def build_estimator(node: DictConfig | dict) -> GradientEstimator:
    """The estimator that a config node describes; its `latents` key is for the config check, not for it."""
    return instantiate(OmegaConf.create({k: v for k, v in plain(node).items() if k != "latents"}))


def build(config: DictConfig) -> tuple[MNISTDataModule, VAE, str]:
    """The data module and the model that a config describes; the last is a short text on the optimiser."""
    import torch

    from vi_lab.seeding import INIT, fold

    datamodule = instantiate(config.data)
    torch.manual_seed(fold(config.seed, INIT))
    latent = instantiate(config.latent)
    shape = datamodule.shape
    model = instantiate(
        config.model,
        latent=latent,
        encoder=instantiate(config.network.encoder, shape=shape, feature_size=latent.feature_size),
        decoder=instantiate(config.network.decoder, shape=shape, latent_size=latent.size),
        likelihood=instantiate(config.likelihood),
        objective=instantiate(config.objective),
        estimator=build_estimator(config.estimator),
        optimizer=instantiate(config.optimizer),
        seed=config.seed,
    )
    model.estimator.materialize(latent(torch.zeros(1, latent.feature_size)), torch.zeros(1, *shape))
    return datamodule, model, f"{config.optimizer._target_.rpartition('.')[2]} lr {config.optimizer.lr:g}"


def build_trainer(config: DictConfig, folder: Path, console: Any, label: str = "") -> tuple[lightning.Trainer, Any]:
    """The Lightning trainer, with the callbacks that make a run folder."""
    import logging
    import warnings

    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger

    from vi_lab.callbacks import GradientAudit, ProgressDisplay, Recorder, Temperature

    # Lightning's notices repeat what the first line of the run says already; its warnings stay.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()
    for harmless in (
        "The number of training batches",  # points in TensorBoard may span epochs
        "`isinstance\\(treespec, LeafSpec\\)`",  # Lightning's own use of torch
        "The `srun` command",
    ):
        warnings.filterwarnings("ignore", harmless)

    temperature = Temperature(instantiate(config.schedule))
    recorder = Recorder(folder, temperature, hyperparameters(config))
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        filename="best",
        monitor="val/loss" if config.data.validation else None,
        save_top_k=1 if config.data.validation else 0,
        save_last=True,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    display = ProgressDisplay(console, recorder, console.is_terminal and not label, label)
    audit = plain(config.audit)
    watch = [GradientAudit(**audit)] if audit["every_n_steps"] else []
    arguments = {**plain(config.accelerator), **plain(config.trainer)}
    try:
        trainer = lightning.Trainer(
            **arguments,
            default_root_dir=folder,
            logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
            callbacks=[temperature, recorder, display, *watch, checkpoint],
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    except lightning.fabric.utilities.exceptions.MisconfigurationException as error:
        raise UserError(f"accelerator or trainer: {one_line(error)}") from error
    return trainer, recorder


def hyperparameters(config: DictConfig) -> dict[str, Any]:
    """What distinguishes runs, under short names, for TensorBoard's hparams tab: few enough to read in one table."""
    values = plain(config)
    chosen = {"estimator": values["name"]}
    for group in ("latent", "schedule", "likelihood"):
        chosen[group] = values[group]["_target_"].rpartition(".")[2]
    shown = (
        "seed",
        "temperature",
        "samples",
        "latent",
        "schedule",
        "likelihood",
        "objective",
        "network",
        "optimizer.lr",
    )
    shown += ("data.source", "data.binarization", "data.batch_size", "trainer.max_epochs", "optimizer.weight_decay")
    for path, value in leaves(values):
        if path.startswith(shown) and "_target_" not in path and value is not None:
            chosen[path] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return chosen


def _report(console: Any, folder: Path, final: dict[str, float], seconds: float) -> None:
    """What came out, and where to look."""
    from rich.table import Table

    table = Table(title="nats per image, lower is better", title_justify="left")
    table.add_column("metric")
    for split in (splits := [s for s in ("train", "val", "test") if any(k.startswith(f"{s}/") for k in final)]):
        table.add_column(split, justify="right")
    for name in dict.fromkeys(k.partition("/")[2] for k in final if "/" in k):
        values = [final.get(f"{split}/{name}") for split in splits]
        table.add_row(name, *("" if v is None else f"{v:.4g}" if abs(v) < 10 else f"{v:.2f}" for v in values))
    console.print(table)
    console.print(f"{seconds:.0f} s in all. Run folder: {folder}", highlight=False, markup=False)
    console.print(f"Curves: tensorboard --logdir {shlex.quote(str(folder))}", highlight=False, markup=False)
