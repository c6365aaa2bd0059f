"""`vi-lab evaluate`: `vi_lab.evaluation` on finished runs; writes evaluation.json and units.csv into their folders."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import vi_lab
from vi_lab.compare import labels
from vi_lab.config import CONFIG_DIR, read_arguments
from vi_lab.errors import UserError, ViLabError, one_line, printable
from vi_lab.runs import Run, find_runs, refuse_links
from vi_lab.snapshot import write_csv, write_json
from vi_lab.train import Abort, launch, prepare_process

if TYPE_CHECKING:
    import lightning
    from rich.console import Console
    from rich.table import Table

    from vi_lab.data import MNISTDataModule
    from vi_lab.models import VAE

LOGGED = ("nll", "nll_error", "bits_per_dimension", "active_units", "mutual_information", "marginal_kl", "loss_relaxed")
"""What a training run adds to its metrics, as test/NAME; the rest is in evaluation.json."""


def main(argv: list[str]) -> int:
    arguments, _ = read_arguments(argv)
    if arguments.multirun:
        raise UserError("-m is not needed: run= takes a sweep folder or a pattern such as 'outputs/*/*-rloo-*'")
    return launch("evaluate", task, argv)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="evaluate")
def task(config: DictConfig) -> None:
    try:
        run(config, list(HydraConfig.get().overrides.task))
    except BaseException as error:
        raise Abort(error) from None


def run(config: DictConfig, overrides: list[str]) -> None:
    """Evaluate every run that `config.run` names.

    Raises:
        UserError: there is none.
        KeyboardInterrupt: ended early; what was done is written.
    """
    if config.run is None:
        raise UserError("run=FOLDER is needed: a run folder, a sweep folder, or a pattern such as 'outputs/*/*-rloo-*'")
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log should not fold the table
    found = find_runs([config.run])
    single = len(found) == 1  # asked for by name, whatever its state
    chosen = [run for run in found if single or run.state == "completed"]
    for other in found:
        if other not in chosen:
            console.print(f"left out: {printable(other.folder)} ({other.state})", highlight=False, markup=False)
    if not chosen:
        raise UserError(f"none of the {len(found)} runs below {config.run} has finished")
    device, threads = prepare_process(config)
    command = {"command": shlex.join(["vi-lab", "evaluate", *overrides]), "device": device, "threads": threads}
    reports: list[dict[str, Any]] = []
    evaluated: list[Run] = []
    for stored in chosen:
        name = printable(stored.folder.resolve().name)
        try:
            refuse_links(stored.folder)
            _prepare(stored, config)
            stored.model.to(device)
            stored.datamodule.setup()
            report = evaluate_into(
                stored.folder,
                stored.model,
                stored.datamodule,
                split=config.split,
                samples=config.evaluation.samples,
                images=config.evaluation.images,
                seed=config.seed,
                console=console,
                label=name,
                record={"weights": config.weights, **command},
            )
        except ViLabError as error:  # one damaged folder does not stop the others
            if single:
                raise
            console.print(f"left out: {one_line(error)}", highlight=False, markup=False)
            continue
        reports.append(report)
        evaluated.append(stored)
        if report["interrupted"]:
            break
        if not console.is_terminal and not single:
            metric = _headline(report["metrics"])
            console.print(
                f"{name}: {metric} {report['metrics'][metric]:.2f} ({report['seconds']:.0f} s)",
                highlight=False,
                markup=False,
            )
    if not reports:
        raise ViLabError("none of the runs could be evaluated")
    console.print(one_run(reports[0]) if single else table(evaluated, reports))
    for note in dict.fromkeys(note for report in reports for note in report["notes"]):
        console.print(f"note: {note}", highlight=False, markup=False)
    where = f"in {printable(evaluated[0].folder)}" if single else f"in each of the {len(evaluated)} run folders"
    console.print(f"evaluation.json and units.csv are {where}", highlight=False, markup=False, soft_wrap=True)
    if reports[-1]["interrupted"]:
        last = reports[-1]
        raise KeyboardInterrupt(
            f"interrupted after {last['images']} of {last['images_wanted']} images"
            + ("" if single else f" of run {len(reports)} of {len(chosen)}")
            + "; they are reported and written"
        )


def _prepare(stored: Run, config: DictConfig) -> None:
    """Point a run at this machine's data; its config stays as stored otherwise.

    Raises:
        UserError: it cannot be evaluated as asked.
    """
    stored.weights = config.weights
    stored.config.data.download = config.data.download  # nothing is fetched on the word of somebody else's folder
    if config.data.root is not None and stored.config.data.source != "digits":
        stored.config.data.root = config.data.root
    if config.split == "val" and not stored.config.data.validation:
        raise UserError(f"split=val: {stored.folder} has held nothing out (data.validation=0)")


def evaluate_into(
    folder: Path,
    model: VAE,
    datamodule: MNISTDataModule,
    *,
    split: str,
    samples: int,
    images: int | None,
    seed: int = 0,
    console: Console,
    label: str,
    record: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate a model on its device and write evaluation.json and units.csv into its folder.

    Args:
        datamodule: set up; the whole split is evaluated, however many processes have trained.
        label: begins the progress display: a bar on a terminal, otherwise a line every half minute.
        record: goes into evaluation.json.

    Returns:
        what evaluation.json holds.
    """
    from vi_lab.evaluation import evaluate

    loader = datamodule.loader(split, whole=True)
    available = len(loader.images)
    wanted = min(images or available, available)
    started = time.perf_counter()
    with _Progress(console, f"{label}: {split}", wanted) as progress:
        result = evaluate(model, loader, samples, images, seed, progress)
    report = {
        "interrupted": result.interrupted,
        "split": split,
        "source": datamodule.source,
        "binarization": datamodule.binarization,
        "images": result.images,
        "images_wanted": wanted,
        "images_in_split": available,
        "samples": result.samples,
        "unit": "nats per image, lower is better, unless the name says otherwise",
        "metrics": result.metrics,
        "notes": result.notes,
        "seed": seed,
        **record,
        "data_sha256": datamodule.checksum(),
        "vi_lab": vi_lab.__version__,
        "seconds": round(time.perf_counter() - started, 3),
    }
    write_json(folder / "evaluation.json", report)
    write_csv(folder / "units.csv", result.units)
    return report


class _Progress:
    """Called with the images done so far: a bar on a terminal, elsewhere a plain line every half minute."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.console, self.label, self.total = console, label, total
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(label, total=total)
        self.spoken = time.perf_counter()

    def __enter__(self) -> Callable[[int], None]:
        self.bar.start()
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, images: int) -> None:
        if not self.bar.disable:
            self.bar.update(self.task, completed=images)
        elif time.perf_counter() - self.spoken > 30:
            self.spoken = time.perf_counter()
            text = f"{self.label}: {images} of {self.total} images"
            self.console.print(text, highlight=False, markup=False)


def evaluate_trained(
    config: DictConfig, trainer: lightning.Trainer, model: VAE, folder: Path, console: Console, label: str = ""
) -> dict[str, float]:
    """The evaluation at the end of training, with `config.evaluation`, on the trainer's device; written into `folder`
    and logged. Returns test/NAME for the names in `LOGGED`. For the main process only.

    Raises:
        KeyboardInterrupt: ended early.
    """
    if config.evaluation.samples is None:
        return {}
    import torch

    device, home = trainer.strategy.root_device, model.device
    try:
        report = evaluate_into(
            folder,
            model.to(device),
            trainer.datamodule,
            split="test",
            samples=config.evaluation.samples,
            images=config.evaluation.images,
            console=console,
            label=f"{label}evaluation",
            record={"weights": "last", "command": None, "device": device.type, "threads": torch.get_num_threads()},
        )
    finally:
        model.to(home)
    if report["interrupted"]:
        raise KeyboardInterrupt("interrupted in the evaluation after training; `vi-lab evaluate` repeats it")
    metrics = {f"test/{name}": report["metrics"][name] for name in LOGGED if name in report["metrics"]}
    trainer.logger.log_metrics(metrics, trainer.global_step)
    return metrics


# --- tables --------------------------------------------------------------------------------------------------------


def _title(reports: list[dict[str, Any]]) -> str:
    """What the numbers are of: all that must agree before they compare."""

    def shared(values: list[str]) -> str:
        return " or ".join(dict.fromkeys(values))

    samples = [str(r["samples"]) for r in reports if "nll" in r["metrics"]] or ["1"]
    images = shared([f"{r['images']:,} of {r['images_in_split']:,}" for r in reports])
    return (
        f"{reports[0]['split']} split of {shared([r['source'] for r in reports])}, {images} images, "
        f"{shared([r['binarization'] for r in reports])} binarisation, "
        f"K = {shared(samples)}, {reports[0]['weights']} weights"
        + ("; interrupted" if reports[-1]["interrupted"] else "")
        + "\nnats per image, lower is better; ± standard error over images"
    )


def _headline(metrics: dict[str, float]) -> str:
    """By which number models are ranked: the likelihood where there is one."""
    return "nll" if "nll" in metrics else "negative_elbo"


def _value(metrics: dict[str, float], name: str, digits: int = 2) -> str:
    value, error = metrics.get(name), metrics.get(f"{name}_error", math.nan)
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def one_run(report: dict[str, Any]) -> Table:
    """One evaluation as a rich table: a row per metric."""
    from rich.table import Table

    metrics = report["metrics"]
    result = Table(title=_title([report]), title_justify="left")
    result.add_column("metric", no_wrap=True)
    result.add_column("value", justify="right", no_wrap=True)
    result.add_column("", overflow="fold")
    bound = math.log(report["images"])
    rows = {
        "nll": f"-log p(x) by importance sampling; effective sample size {metrics.get('effective_samples', 0):.1f} "
        f"of {report['samples']}",
        "bits_per_dimension": "the nll per pixel, in bits",
        "negative_elbo": "reconstruction + kl, at samples of the true q",
        "reconstruction": "E_q[-log p(x|z)]",
        "kl": "KL(q(z|x) || p(z)) = mutual information + marginal KL",
        "mutual_information": f"I(x; z) of these images, at most log {report['images']} = {bound:.2f}",
        "marginal_kl": "KL(q(z) || p(z)), q(z) over these images",
        "loss_relaxed": "what the estimator optimises, at its relaxed samples",
        "relaxation_gap": "the loss at true samples - loss_relaxed",
    }
    for name, text in rows.items():
        if name in metrics:
            result.add_row(name, _value(metrics, name, 4 if name.startswith("bits") else 2), text)
    result.add_row("active_units", str(metrics["active_units"]), "variables whose posterior depends on x")
    if "code_perplexity" in metrics:
        result.add_row("code_perplexity", _plain(metrics, "code_perplexity"), "of q(z), mean over variables")
        result.add_row("codes_used", _plain(metrics, "codes_used"), "with a tenth of the uniform share, or more")
    return result


def table(runs: list[Run], reports: list[dict[str, Any]]) -> Table:
    """Several evaluations, best nll first (the negative ELBO where there is none)."""
    from rich.markup import escape
    from rich.table import Table

    columns = {
        "nll": "nll",
        "negative_elbo": "-ELBO",
        "kl": "KL",
        "mutual_information": "I(x; z)",
        "marginal_kl": "marginal KL",
        "relaxation_gap": "gap",
    }
    columns = {name: heading for name, heading in columns.items() if any(name in r["metrics"] for r in reports)}
    result = Table(title=_title(reports), title_justify="left")
    result.add_column("run", overflow="fold", min_width=17)
    result.add_column("data", no_wrap=True)
    for heading in (*columns.values(), "bits/dim", "active"):
        result.add_column(heading, justify="right", no_wrap=True)
    names = labels([run.settings for run in runs])

    def rank(row: tuple[str, Run, dict]) -> float:
        metrics = row[2]["metrics"]
        return metrics[_headline(metrics)]

    for name, run, report in sorted(zip(names, runs, reports, strict=True), key=rank):
        metrics = report["metrics"]
        with_error = ("nll", "negative_elbo")
        cells = [(_value if column in with_error else _plain)(metrics, column) for column in columns]
        result.add_row(
            escape(f"{name} s{run.settings['seed']}"),
            f"{report['source']}/{report['binarization']}",
            *cells,
            _plain(metrics, "bits_per_dimension", 4),
            str(metrics["active_units"]),
        )
    return result


def _plain(metrics: dict[str, float], name: str, digits: int = 2) -> str:
    return f"{metrics[name]:.{digits}f}" if name in metrics else ""
