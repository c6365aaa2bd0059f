"""`vi-lab evaluate`: `vi_lab.evaluation` on finished runs; writes into their folders."""

from __future__ import annotations

import math
import shlex
import statistics
from functools import partial
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vi_lab.commands.launch import Abort, launch
from vi_lab.comparison.groups import group_labels, run_labels, seed_of
from vi_lab.comparison.stats import mean_and_error
from vi_lab.config import plain, read_arguments
from vi_lab.console import Heading, Terminal, image_bar, make_console, number, print_tables
from vi_lab.errors import UserError, ViLabError, one_line, printable
from vi_lab.runs.evaluations import Settings, evaluate_into
from vi_lab.runs.run import Run, find_runs
from vi_lab.runs.trust import refuse_links
from vi_lab.schema import holds_out
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
    show(terminal, evaluated, reports)
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
    if stored.settings.get("data.source") == "steps":
        raise UserError(f"{stored.folder}: a toy problem; its test/loss in metrics.json is exact already")
    if config.split == "val" and not holds_out(stored.config.data):
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
    return "" if value is None else number(value, f".{digits}f", error)


def show(terminal: Terminal, runs: list[Run], reports: list[dict[str, Any]]) -> None:
    """One evaluation with a row per metric; several with a row per run, and where settings were repeated with other
    seeds, with a row for their means."""
    files = "the files named below have them"
    if len(reports) == 1:
        print_tables(terminal, METRIC, [(_title(reports), rows_of_one(reports[0]))])
        return
    print_tables(terminal, *table_of_many(runs, reports), files)
    if not reports[-1]["interrupted"] and (means := table_of_means(runs, reports)):
        print_tables(terminal, *means, "the files below have those of each run")


METRIC = (Heading("metric", numeric=False), Heading("value"), Heading("", numeric=False, priority=1))


def rows_of_one(report: dict[str, Any]) -> list[list[str]]:
    """One evaluation as cells below `METRIC`."""
    metrics = report["metrics"]
    bound = math.log(report["images"])
    texts = {
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
    rows = [[name, _value(metrics, name, DIGITS.get(name, 2)), text] for name, text in texts.items() if name in metrics]
    rows.append(["active_units", str(metrics["active_units"]), "variables whose posterior depends on x"])
    if "code_perplexity" in metrics:
        rows.append(["code_perplexity", _plain(metrics, "code_perplexity"), "of q(z), mean over variables"])
        rows.append(["codes_used", _plain(metrics, "codes_used"), "with a tenth of the uniform share, or more"])
    return rows


DIGITS = {"bits_per_dimension": 4, "active_units": 0}
SHOWN = {
    "nll": Heading("nll"),
    "negative_elbo": Heading("-ELBO", priority=1),
    "kl": Heading("KL", priority=2),
    "mutual_information": Heading("I(x; z)", priority=4),
    "marginal_kl": Heading("marginal KL", priority=5),
    "relaxation_gap": Heading("gap", priority=6),
    "bits_per_dimension": Heading("bits/dim", priority=7),
    "active_units": Heading("active", priority=3),
}
"""The metrics of tables over several runs."""
Table = tuple[list[Heading], list[tuple[str, list[list[str]]]]]


def _shown(reports: list[dict[str, Any]]) -> dict[str, Heading]:
    """The metrics that some run has; the likelihood, or else the negative ELBO, stays on any terminal."""
    found = {name: heading for name, heading in SHOWN.items() if any(name in r["metrics"] for r in reports)}
    return found | {(first := next(iter(found))): found[first]._replace(priority=0)}


def table_of_many(runs: list[Run], reports: list[dict[str, Any]]) -> Table:
    """Several evaluations, best nll first (the negative ELBO where there is none)."""
    shown = _shown(reports)
    headings = [Heading("run", numeric=False), Heading("data", numeric=False, priority=8), *shown.values()]

    def rank(row: tuple[str, dict]) -> float:
        return row[1]["metrics"][_headline(row[1]["metrics"])]

    rows = []
    for name, report in sorted(zip(run_labels(runs), reports, strict=True), key=rank):
        metrics = report["metrics"]
        cells = [
            (_value if metric in ("nll", "negative_elbo") else _plain)(metrics, metric, DIGITS.get(metric, 2))
            for metric in shown
        ]
        rows.append([name, f"{report['source']}/{report['binarization']}", *cells])
    return headings, [(_title(reports) + " of each run", rows)]


def table_of_means(runs: list[Run], reports: list[dict[str, Any]]) -> Table | None:
    """Means over the seeds of the same settings; None where each has one seed."""
    shown = _shown(reports)
    groups: dict[str, dict[int | str, dict[str, float]]] = {}
    for name, run, report in zip(group_labels(runs), runs, reports, strict=True):
        groups.setdefault(name, {}).setdefault(seed_of(run), report["metrics"])  # a repetition counts once
    if all(len(group) == 1 for group in groups.values()):
        return None
    rows = []
    for name, group in groups.items():
        found = {metric: [m[metric] for m in group.values() if metric in m] for metric in shown}
        cells = [_mean(values, DIGITS.get(metric, 2) or 1) for metric, values in found.items()]
        rows.append((statistics.fmean(found[_headline(next(iter(group.values())))]), [name, str(len(group)), *cells]))
    headings = [Heading("settings", numeric=False), Heading("seeds", priority=1), *shown.values()]
    return headings, [("means over seeds; ± standard error over seeds", [cells for _, cells in sorted(rows)])]


def _mean(values: list[float], digits: int) -> str:
    mean, error = mean_and_error(values)
    return _value({"mean": mean, "mean_error": error}, "mean", digits) if values else ""


def _plain(metrics: dict[str, float], name: str, digits: int = 2) -> str:
    return number(metrics[name], f".{digits}f") if name in metrics else ""
