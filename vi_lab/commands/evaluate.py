"""`vi-lab evaluate`: `vi_lab.evaluation` on finished runs; writes into their folders."""

from __future__ import annotations

import math
import shlex
from functools import partial
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from vi_lab.commands.launch import Abort, launch
from vi_lab.comparison.groups import labels
from vi_lab.config import plain, read_arguments
from vi_lab.console import Terminal, image_bar, make_console
from vi_lab.errors import UserError, ViLabError, one_line, printable
from vi_lab.runs.evaluations import Settings, evaluate_into
from vi_lab.runs.run import Run, find_runs
from vi_lab.runs.trust import refuse_links
from vi_lab.training.process import prepare_process


def main(argv: list[str]) -> int:
    """Evaluate the runs that are named, each into its own folder.

    Raises:
        UserError: a sweep of evaluations was asked for.
    """
    if read_arguments(argv).multirun:
        raise UserError("-m is not needed: give folders, or a pattern such as 'outputs/*/*-rloo-*'")
    return launch("evaluate", task, argv)


def task(config: DictConfig) -> None:
    """What Hydra runs."""
    try:
        evaluate_runs(config, list(HydraConfig.get().overrides.task))
    except BaseException as error:
        raise Abort(error) from None


def evaluate_runs(config: DictConfig, overrides: list[str]) -> None:
    """Evaluate every run that `config.run` names.

    Raises:
        UserError: there is none.
        KeyboardInterrupt: ended early; what was done is written.
    """
    if config.run is None:
        raise UserError("FOLDER is needed: a run folder, a sweep folder, or a pattern such as 'outputs/*/*-rloo-*'")
    terminal = make_console()
    found = find_runs(plain(config.run))
    single = len(found) == 1  # asked for by name, whatever its state
    chosen = [run for run in found if single or run.state == "completed"]
    for other in found:
        if other not in chosen:
            terminal.say(f"left out: {printable(other.folder)} ({other.state})")
    if not chosen:
        raise UserError(f"none of the {len(found)} runs has finished")
    device, threads = prepare_process(config)
    record = {"command": shlex.join(["vi-lab", "evaluate", *overrides]), "device": device, "threads": threads}
    reports: list[dict[str, Any]] = []
    evaluated: list[Run] = []
    for run in chosen:
        try:
            report = _evaluate(run, config, terminal, record)
        except ViLabError as error:  # one damaged folder does not stop the others
            if single:
                raise
            terminal.say(f"left out: {one_line(error)}")
            continue
        reports.append(report)
        evaluated.append(run)
        if report["interrupted"]:
            break
        if not terminal.is_terminal and not single:
            metric = _headline(report["metrics"])
            value = f"{metric} {report['metrics'][metric]:.2f}"
            terminal.say(f"{_name(run)}: {value} ({report['seconds']:.0f} s)")
    if not reports:
        raise ViLabError("none of the runs could be evaluated")
    terminal.print(table_of_one(reports[0]) if single else table_of_many(evaluated, reports))
    for note in dict.fromkeys(note for report in reports for note in report["notes"]):
        terminal.say(f"note: {note}")
    files = " or ".join(dict.fromkeys(report["file"] for report in reports))
    where = f"in {printable(evaluated[0].folder)}" if single else f"in each of the {len(evaluated)} run folders"
    terminal.say(f"{files} and a table of the latent variables beside it are {where}")
    if reports[-1]["interrupted"]:
        last = reports[-1]
        raise KeyboardInterrupt(
            f"interrupted after {last['images']} of {last['images_wanted']} images"
            + ("" if single else f" of run {len(reports)} of {len(chosen)}")
            + "; they are reported and written"
        )


def _name(run: Run) -> str:
    return printable(run.folder.resolve().name)


def _evaluate(run: Run, config: DictConfig, terminal: Terminal, record: dict[str, Any]) -> dict[str, Any]:
    """Evaluate one run into its folder; returns what is written."""
    refuse_links(run.folder)
    _prepare(run, config)
    run.model.to(record["device"])
    run.datamodule.setup()
    settings = Settings(config.split, config.evaluation.samples, config.evaluation.images, config.seed, config.weights)
    bar = partial(image_bar, terminal, f"{_name(run)}: {config.split}")
    return evaluate_into(run.folder, run.model, run.datamodule, settings, bar, record)


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


# --- tables --------------------------------------------------------------------------------------------------------


def _title(reports: list[dict[str, Any]]) -> str:
    """What the numbers are of: all that must agree before they compare."""

    def shared(values: list[str]) -> str:
        return " or ".join(dict.fromkeys(values))

    samples = [str(r["samples"]) for r in reports if "nll" in r["metrics"]] or ["1"]
    images = shared([f"{r['images']:,} of {r['images_in_split']:,}" for r in reports])
    return (
        f"{reports[0]['split']} split of {shared([r['source'] for r in reports])}, {images} images, "
        f"{shared([r['binarization'] for r in reports])} binarization, "
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


def table_of_one(report: dict[str, Any]) -> Table:
    """One evaluation as a rich table: a row per metric."""
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
        "loss_relaxed": "what the estimator optimizes, at its relaxed samples",
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


def table_of_many(runs: list[Run], reports: list[dict[str, Any]]) -> Table:
    """Several evaluations, best nll first (the negative ELBO where there is none)."""
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
            f"{name} s{run.settings['seed']}",
            f"{report['source']}/{report['binarization']}",
            *cells,
            _plain(metrics, "bits_per_dimension", 4),
            str(metrics["active_units"]),
        )
    return result


def _plain(metrics: dict[str, float], name: str, digits: int = 2) -> str:
    return f"{metrics[name]:.{digits}f}" if name in metrics else ""
