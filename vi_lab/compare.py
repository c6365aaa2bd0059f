"""`vi-lab compare PATHS...`: a table of runs, with mean and standard error over runs that differ in the seed only."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from vi_lab.errors import UserError
from vi_lab.runs import NOT_SETTINGS, Run, find_runs

COLUMNS = {
    "train/loss": "train",
    "train/loss_unrelaxed": "unrelaxed",
    "train/relaxation_gap": "gap",
    "val/loss": "val",
    "test/loss": "test",
}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error of the mean; the error of a single value is NaN."""
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def labels(groups: list[list[Run]]) -> list[str]:
    """A name for each group: the estimator, and those settings in which groups of that estimator differ."""
    names = []
    for group in groups:
        config = group[0].settings
        rivals = [other[0].settings for other in groups if other[0].settings["name"] == config["name"]]
        differing = [k for k in config if k not in NOT_SETTINGS and len({str(r.get(k)) for r in rivals}) > 1]
        names.append(" ".join([str(config["name"]), *(f"{k}={config[k]}" for k in differing)]))
    return names


def table(runs: list[Run]) -> Table:
    """The comparison as a rich table, best test loss first."""
    grouped: dict[tuple, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.key, []).append(run)
    groups = sorted(grouped.values(), key=lambda g: statistics.fmean(r.final.get("test/loss", math.inf) for r in g))
    columns = {c: heading for c, heading in COLUMNS.items() if any(c in run.final for run in runs)}
    result = Table(title="nats per image, lower is better; mean ± standard error over seeds", title_justify="left")
    for heading in ("run", "latent", "seeds"):
        result.add_column(heading, overflow="fold", min_width=len(heading) if heading == "seeds" else 17)
    for heading in columns.values():
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("s/epoch", justify="right", no_wrap=True)
    for name, group in zip(labels(groups), groups, strict=True):
        cells = []
        for column in columns:
            values = [run.final[column] for run in group if run.final.get(column) is not None]
            cells.append(_cell(*mean_and_error(values)) if values else "")
        seconds = statistics.median(run.epoch_seconds for run in group)
        cells.append("" if math.isnan(seconds) else f"{seconds:.1f}")
        result.add_row(name, _latent(group[0].settings), str(len(group)), *cells)
    return result


def _cell(mean: float, error: float) -> str:
    return f"{mean:.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def _latent(config: dict[str, Any]) -> str:
    kind = str(config["latent._target_"]).rpartition(".")[2]
    sizes = [str(config[f"latent.{k}"]) for k in ("variables", "classes", "dim") if f"latent.{k}" in config]
    return f"{kind} {'x'.join(sizes)}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vi-lab compare",
        description="A table of finished runs, best test loss first. Unfinished ones are named.",
    )
    parser.add_argument("paths", nargs="*", default=["outputs"], help="run folders or folders of them (outputs)")
    paths = parser.parse_args(argv).paths
    runs = find_runs(paths)
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log should not fold the table
    finished = [run for run in runs if run.state == "completed" and run.final]
    for run in runs:
        if run not in finished:
            console.print(f"left out: {run.folder} ({run.state})", highlight=False, markup=False)
    if not finished:
        raise UserError(f"none of the {len(runs)} runs below {', '.join(paths)} has finished")
    console.print(table(finished))
    splits = {(r.settings["data.source"], r.settings["data.binarization"]) for r in finished}
    if len(splits) > 1:
        kinds = ", ".join(sorted(f"{source}/{binarization}" for source, binarization in splits))
        console.print(f"[yellow]These runs differ in their data ({kinds}): losses do not compare between them.[/]")
    return 0
