"""`vi-lab train`: from overrides to a finished run folder. Nothing heavy is imported before the config is checked."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vi_lab.config import CONFIG_DIR, check_overrides, check_targets, explain, leaves, plain, quote, read_arguments
from vi_lab.errors import Interrupted, UserError, one_line, printable
from vi_lab.resume import resume_run, resume_sweep, stored_config
from vi_lab.runs import CONFIG_FILE, check_weights, finished, read_json
from vi_lab.snapshot import Status, differences, environment, threads_of, write_json, write_text
from vi_lab.stopping import Stop, hold

if TYPE_CHECKING:
    import lightning

    from vi_lab.callbacks import Recorder
    from vi_lab.data import MNISTDataModule
    from vi_lab.estimators import GradientEstimator
    from vi_lab.models import VAE


def main(argv: list[str]) -> int:
    """Check the overrides, then let Hydra run the job or the sweep, or go on with one."""
    arguments, _ = read_arguments(argv)
    folders = [o.removeprefix("resume=") for o in arguments.overrides if o.startswith("resume=")]
    if not folders or folders[-1] in ("", "null") or _only_asks(arguments):
        return launch("train", task, argv)
    folder, others = Path(_unquote(folders[-1])), [o for o in arguments.overrides if not o.startswith("resume=")]
    if (folder / "multirun.yaml").is_file():
        own = ["--config-dir", arguments.config_dir] if arguments.config_dir else []
        return launch("train", task, [*own, *resume_sweep(folder, others)], resuming=True)
    _command_line[:] = [sys.argv[0], "train", *argv]
    resume_run(folder, others)
    return 0


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _only_asks(arguments: argparse.Namespace) -> bool:
    """Whether Hydra is asked for information instead of a run."""
    return any((arguments.help, arguments.hydra_help, arguments.cfg, arguments.info, arguments.shell_completion))


def launch(name: str, task: Callable[[], None], argv: list[str], resuming: bool = False) -> int:
    """Check the overrides of the command `name`, then let Hydra run its `task` on the composed config.

    Raises:
        UserError: a mistake in the overrides, before anything heavy is imported.
    """
    arguments, argv = read_arguments(argv)
    sweep = None
    if not _only_asks(arguments):
        configs = check_overrides(name, arguments.overrides, arguments.multirun, arguments.config_dir)
        check_accelerators(configs, arguments.multirun)
        for config in configs if resuming else []:
            check_targets(config, "resume")
        if name == "train" and not resuming and main_process():
            _check_folder(arguments.multirun)
        if name == "train" and arguments.multirun:
            sweep = HydraConfig.get().sweep.dir
            argv.append(f"hydra.sweep.dir={quote(sweep)}")  # its timestamp stays as it is resolved here
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
        if sweep is not None and Path(sweep).is_dir():
            from vi_lab.compare import summarize

            summarize(Path(sweep))
    return 0


def check_accelerators(configs: list[dict], multirun: bool) -> None:
    kinds = {config["accelerator"]["accelerator"] for config in configs}
    if multirun and any("ddp" in str(config["accelerator"]["strategy"]) for config in configs):
        raise UserError("accelerator=ddp does not work in a sweep (-m): start its runs one by one")
    if kinds & {"gpu", "cuda", "mps"}:
        import torch  # only now: the other mistakes are answered without it

        if kinds & {"gpu", "cuda"} and not torch.cuda.is_available():
            raise UserError("accelerator=gpu: no CUDA device is visible here; use accelerator=cpu or accelerator=auto")
        if "mps" in kinds and not torch.backends.mps.is_available():
            raise UserError("accelerator=mps: there is no Apple GPU here; use accelerator=cpu or accelerator=auto")


def _check_folder(multirun: bool) -> None:
    """Refuse to write over a run or a sweep. Before Hydra starts, which would write first."""
    node = HydraConfig.get()  # of the last job that was composed
    folder = Path(node.sweep.dir if multirun else node.run.dir)
    if (folder / ("multirun.yaml" if multirun else CONFIG_FILE)).is_file():
        kind = "sweep" if multirun else "run"
        raise UserError(
            f"{folder}: holds a {kind} already; go on with {shlex.quote(f'resume={folder}')}, "
            f"or choose another hydra.{kind}.dir"
        )


def main_process() -> bool:
    """Whether this process keeps the run folder, where several train together."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


_command_line: list[str] = []


class Abort(BaseException):
    """Carries an error past Hydra, which would print a report of its own before ours."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error

    def __reduce__(self) -> tuple:
        return Abort, (self.error,)  # parallel launchers send it between processes


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")
def task(config: DictConfig) -> float:
    """One job of Hydra's: what it is called and where it writes, then `execute`."""
    sys.argv = _command_line or sys.argv  # Hydra has read it; DDP starts its other processes from it
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    sweep = job.mode == RunMode.MULTIRUN
    parallel = sweep and "BasicLauncher" not in job.launcher._target_
    resume, config.resume = config.resume is not None, None
    label = f"{folder.name}: " if parallel else ""
    try:
        if resume and (done := finished(folder)) is not None:
            print(f"{label}{folder} is completed")
            return done
        return execute(
            stored_config(folder, config) if resume else config,
            folder,
            command=shlex.join(["vi-lab", "train", *(o for o in job.overrides.task if not o.startswith("resume="))]),
            workers=job.launcher.get("n_jobs") or 1 if parallel else 1,
            label=label,
            resume=resume,
            hint=Path(job.sweep.dir) if sweep else None,
        )
    except BaseException as error:
        if sweep and isinstance(error, Exception):  # the sweep goes on; say now which job failed and why
            print(f"vi-lab train: job {job.job.num} ({folder}) failed: {one_line(error)}", file=sys.stderr)
            raise
        raise Abort(error) from None


def execute(config: DictConfig, folder: Path, hint: Path | None = None, **options: Any) -> float:
    """`run`, as the only process in the folder, with `status.json` saying how it ended, even by Ctrl-C or SIGTERM.

    Args:
        hint: the folder that the message on how to go on names, where it is not `folder`.
        options: see `run`.

    Raises:
        UserError: another process works in the folder.
        Interrupted: a signal has stopped the run; its checkpoint is written.
    """
    if not main_process():  # one process keeps the books, and ends the others: Lightning kills all where one is gone
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return run(config, folder, **options)
    with hold(folder):
        status = Status(folder)
        try:
            with Stop() as stop:
                status.write("running")
                result = run(config, folder, **options, stop=stop)
                status.write("completed")
                return result
        except BaseException as error:
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            with contextlib.suppress(OSError):  # a full disk: the error at hand says so
                status.write("interrupted" if stopped else "failed", one_line(error))
            if isinstance(error, Interrupted):
                error.args = (f"{error}; go on with: vi-lab train {shlex.quote(f'resume={hint or folder}')}",)
            raise


def run(
    config: DictConfig,
    folder: Path,
    command: str = "",
    workers: int = 1,
    label: str = "",
    resume: bool = False,
    stop: Stop | None = None,
) -> float:
    """Train one model into `folder`. Returns the validation loss, or the test loss where nothing is held out.

    Args:
        config: a composed and checked train config.
        command: recorded in the snapshot.
        workers: how many such jobs run at once on this machine (negative: one per core), to share out the cores.
        label: begins each line, where several runs write to one terminal; then there is no progress bar.
        resume: go on from the folder's last checkpoint.
        stop: lets a signal stop training after a step.
    """
    started = time.perf_counter()
    snapshot = read_json(folder, "environment.json") if resume else {}
    device_name, threads = prepare_process(config, workers, threads_of(snapshot))

    from rich.console import Console

    from vi_lab.audit import decoder_evaluations
    from vi_lab.checkpoints import rewind

    console = Console(soft_wrap=True, quiet=not main_process())
    say = partial(console.print, highlight=False, markup=False)
    datamodule, model, optimizer_text = build(config)
    images = datamodule.load()
    data = {"source": config.data.source, "sha256": datamodule.checksum()}
    surroundings = environment(command, device_name, data)
    if snapshot:
        if snapshot.get("data") != data:
            raise UserError(f"{folder}: the data are not those that the run began with; give data.root=FOLDER")
        changed = differences(snapshot, surroundings)
        for difference in changed:
            say(f"{label}{printable(difference)}: the last digits may differ from an uninterrupted run")
        before = snapshot.get("resumed")
        surroundings = {**snapshot, "resumed": [*(before if isinstance(before, list) else []), {"changed": changed}]}
    else:
        surroundings["decoder_evaluations"] = decoder_evaluations(model, datamodule.shape)  # per image and step
    if main_process():
        write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
        write_json(folder / "environment.json", surroundings)
    say(
        f"{label}{config.name} seed {config.seed}: {model.latent} on {config.data.source} "
        f"({len(images.train_images) - config.data.validation} images, {config.data.binarization} binarisation), "
        f"{optimizer_text}, {device_name}, {threads} threads"
    )
    checkpoint = None
    if resume:
        checkpoint = rewind(folder, partial(check_weights, model), lambda text: say(f"{label}{text}"), main_process())
        say(f"{label}goes on from {checkpoint}" if checkpoint else f"{label}no checkpoint yet: begins anew")
    stop = stop or Stop()
    trainer, recorder = build_trainer(config, folder, console, label, stop)
    try:
        stop.patient = trainer.world_size == 1  # several processes would stop at different steps
        trainer.fit(model, datamodule, ckpt_path=checkpoint)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # what Lightning makes of it
            raise error.__context__ from None
        raise
    finally:
        stop.patient = False
    if stop.requested:
        raise Interrupted(stop.requested, "after the last epoch")
    trainer.test(model, datamodule, verbose=False)
    final = recorder.final
    if trainer.is_global_zero:
        from vi_lab.evaluate_command import evaluate_trained

        try:
            final |= evaluate_trained(config, trainer, model, folder, console, label)
        except KeyboardInterrupt:
            raise Interrupted(stop.requested or signal.SIGINT, "in the evaluation after training") from None
        rows = {"epoch": trainer.current_epoch, "step": trainer.global_step, **final}
        write_json(folder / "metrics.json", rows)
        trainer.logger.log_metrics(
            {f"hp/{name}": final[name] for name in recorder.HYPERPARAMETER_METRICS if name in final},
            trainer.global_step,
        )
        if config.figures or config.projector:
            from vi_lab.pictures import Pictures, project

            for pictures in (callback for callback in trainer.callbacks if isinstance(callback, Pictures)):
                pictures.finish(trainer, model)
            if config.projector:
                project(trainer, model)
        trainer.logger.finalize("success")
        _report(console, folder, final, time.perf_counter() - started)
    return final.get("val/loss", final["test/loss"])


def prepare_process(config: DictConfig, workers: int = 1, threads: int | None = None) -> tuple[str, int]:
    """Threads and floating point of this process; must come before any thread pool starts.

    Args:
        workers: see `run`.
        threads: of the run that is repeated, where the config leaves them open: another number gives other bits.
    """
    import torch

    # Adam's first moments of dead units decay into denormal numbers, which cost half the speed after some 650 steps.
    # Worker threads inherit the setting from the thread that starts them, so it comes first.
    torch.set_flush_denormal(True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = cores if workers < 0 else workers
    threads = config.threads or threads or (max(1, cores // workers) if workers > 1 else torch.get_num_threads())
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


def build_trainer(
    config: DictConfig, folder: Path, console: Any, label: str = "", stop: Stop | None = None
) -> tuple[lightning.Trainer, Recorder]:
    """The Lightning trainer, with the callbacks that make a run folder."""
    import logging
    import warnings

    import lightning
    from lightning.pytorch.loggers import TensorBoardLogger

    from vi_lab.callbacks import GradientAudit, ProgressDisplay, Recorder, Temperature
    from vi_lab.checkpoints import AtomicCheckpointIO, Checkpoints
    from vi_lab.pictures import Pictures

    # Lightning's notices repeat what the first line of the run says already; its warnings stay.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()
    for harmless in (
        "The number of training batches",  # points in TensorBoard may span epochs
        "`isinstance\\(treespec, LeafSpec\\)`",  # Lightning's own use of torch
        "The `srun` command",
        "Total length of `list` across ranks is zero",  # nothing is held out
    ):
        warnings.filterwarnings("ignore", harmless)

    temperature = Temperature(instantiate(config.schedule))
    recorder = Recorder(folder, temperature, hyperparameters(config))
    checkpoints = Checkpoints(folder, recorder, stop or Stop(), config.checkpoint.every_n_steps)
    display = ProgressDisplay(console, recorder, console.is_terminal and not label, label)
    if config.checkpoint.every_n_steps and "ddp" in str(config.accelerator.strategy):
        raise UserError("checkpoint.every_n_steps: processes that train together are saved at the ends of epochs only")
    audit = plain(config.audit)
    watch = [GradientAudit(**audit)] if audit["every_n_steps"] else []
    if config.figures:
        watch.append(Pictures(folder / "figures", recorder, config.figures_every_n_epochs))
    arguments = {**plain(config.accelerator), **plain(config.trainer)}
    try:
        trainer = lightning.Trainer(
            **arguments,
            default_root_dir=folder,
            logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
            callbacks=[temperature, recorder, display, *watch, checkpoints],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
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
    console.print(f"Curves: vi-lab board {shlex.quote(str(folder))}", highlight=False, markup=False)
