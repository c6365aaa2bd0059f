"""What is compared: a record per finished run, a group per setting, a section per kind of loss.

A run folder may be somebody else's: it is read as data (`vi_lab.runs.trust`), and what is shown of it is escaped.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import pandas

from vi_lab.comparison.stats import CONFIDENCE, Difference, mean_and_error, paired_difference
from vi_lab.errors import ViLabError, one_line, printable
from vi_lab.runs.evaluations import evaluations
from vi_lab.runs.run import Run, rows_of
from vi_lab.schema import INCIDENTAL, has

METRIC = re.compile(r"(train|val|test)/\w+", re.ASCII)
NEEDED = (
    *("name", "seed", "data.seed", "data.source", "data.binarization", "data.batch_size", "accelerator.devices"),
    *("latent._target_", "likelihood._target_"),
)


@dataclass(frozen=True)
class Record:
    """A finished run, read and checked."""

    run: Run
    numbers: dict[str, float]
    """The final metrics, with `step` and `epoch`: all finite."""
    evaluation: dict[str, Any]
    """The evaluation that the likelihood is of, see `alike`: of the last weights on test images; may be empty."""
    evaluations: tuple[dict[str, Any], ...] = ()
    """Those that there are to choose from."""

    @property
    def seed(self) -> int | str:
        """What pairs runs."""
        return seed_of(self.run)

    @property
    def notes(self) -> str:
        """The user's own words, on one line, which may be a stranger's: escaped. Empty where there are none."""
        return printable(" ".join(str(self.run.settings.get("notes") or "").split()))

    def environment(self, *path: str) -> Any:
        """A value of environment.json; "unknown" where it is not there."""
        node: Any = self.run.environment
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return "unknown" if node is None else node

    @property
    def decoder_evaluations(self) -> float:
        """Decoder evaluations per image and training step; NaN where the run has not recorded them."""
        value = self.environment("decoder_evaluations")
        return float(value) if _is_number(value) and value > 0 else math.nan

    def likelihood(self, key: str) -> Any:
        """How the NLL was estimated: `samples` (K) per image, or `images`."""
        value = self.evaluation.get(key, self.run.settings.get(f"evaluation.{key}"))
        return "all" if value is None else value

    @property
    def images_per_step(self) -> int:
        """Training images per optimizer step."""
        settings = self.run.settings
        accumulated = settings.get("trainer.accumulate_grad_batches", 1)
        parts = (settings["data.batch_size"], settings["accelerator.devices"], accumulated)
        return math.prod(part for part in parts if isinstance(part, int))

    @cached_property
    def history(self) -> dict[float, dict[str, float]]:
        """Epoch -> what is known of it: losses, and `seconds` and `evaluations` (of the decoder per training image)
        since the start. Read without pandas, which takes milliseconds for each of thousands of runs.

        Raises:
            ViLabError: metrics.csv cannot be read.
        """
        table = {epoch: row for epoch, row in rows_of(self.run, "metrics.csv").items() if "step" in row}
        timing: dict[float, dict[str, float]] = {}
        with suppress(ViLabError):
            timing = rows_of(self.run, "timing.csv")
        known = all("seconds" in row for row in timing.values())
        seconds = dict(zip(timing, accumulate(row.get("seconds", 0.0) for row in timing.values()), strict=True))
        each = self.images_per_step * self.decoder_evaluations
        for epoch, row in table.items():
            row |= {"evaluations": row["step"] * each} if math.isfinite(each) else {}
            row |= {"seconds": seconds[epoch]} if known and epoch in seconds else {}
        return table


@dataclass
class Group:
    """Runs that differ in the seed only."""

    records: list[Record]
    name: str = ""
    rivals: list[Group] = field(default_factory=list)
    """Other settings of this estimator, over which it was selected."""

    @property
    def settings(self) -> dict[str, Any]:
        """The config of its runs as dotted path -> value; the seeds in it are the first run's."""
        return self.records[0].run.settings

    @property
    def estimator(self) -> str:
        """The name of the estimator's config, which may be a stranger's: escaped."""
        return printable(self.settings["name"])

    @property
    def seeds(self) -> list[int | str]:
        """What pairs its runs with another group's; see `Record.seed`."""
        return [record.seed for record in self.records]

    @property
    def latent(self) -> str:
        """Kind and sizes of the latent, such as "Categorical 20x10"."""
        kind = str(self.settings["latent._target_"]).rpartition(".")[2]
        sizes = [str(self.settings[f"latent.{k}"]) for k in ("variables", "classes", "dim") if f"latent.{k}" in self]
        layers = self.settings.get("latent.layers", 1)
        return printable(f"{kind} {'x'.join(sizes)}{f', {layers} layers' * (layers != 1)}")

    @property
    def notes(self) -> str:
        """Those of its runs, each once."""
        return "; ".join(dict.fromkeys(record.notes for record in self.records if record.notes))

    def __contains__(self, setting: str) -> bool:
        return setting in self.settings

    def metric(self, name: str) -> pandas.Series:
        """A final metric, indexed by seed; seeds that lack it are left out."""
        values = {r.seed: r.numbers[name] for r in self.records if name in r.numbers}
        return pandas.Series(values, dtype=float)

    def mean(self, name: str) -> float:
        """Mean of a final metric over seeds, in the metric's unit; NaN where no run has it."""
        return mean_and_error(self.metric(name))[0]

    @property
    def epoch_seconds(self) -> float:
        """Median over runs of the median wall time of an epoch; NaN where it is not known."""
        known = [s for record in self.records if math.isfinite(s := record.run.epoch_seconds)]
        return statistics.median(known) if known else math.nan

    @property
    def decoder_evaluations(self) -> float:
        """Per image and training step; the same for all seeds. NaN where the runs have not recorded them."""
        return self.records[0].decoder_evaluations


@dataclass
class Section:
    """Groups whose losses are the same quantity, best first."""

    title: str
    groups: list[Group]
    reference: Group
    selection: str
    """The metric that orders and selects: val/loss, or test/loss where nothing was held out."""
    named: bool = False
    """Whether the user has named the reference; else it is the group that the selection puts first."""
    adjusted: bool = False
    """Whether the intervals are to hold all at once."""

    @property
    def toy(self) -> bool:
        """Whether it is of a toy problem, whose losses are expected costs."""
        return is_toy(self.groups[0].settings)

    @property
    def unit(self) -> str:
        """Of its losses."""
        return "expected cost" if self.toy else "nats per image"

    @property
    def digits(self) -> int:
        """Decimals of a loss: toy problems are of costs near 1."""
        return 6 if self.toy else 2

    @property
    def confidence(self) -> float:
        """Of each interval. Adjusted as Bonferroni does, over all differences that might have been looked at: from the
        named reference, or between any two groups where the data have chosen it; settings that lost are groups, too."""
        groups = sum(1 + len(group.rivals) for group in self.groups)
        looked_at = groups - 1 if self.named else groups * (groups - 1) // 2
        return 1 - (1 - CONFIDENCE) / max(1, looked_at) if self.adjusted else CONFIDENCE

    def difference(self, group: Group, metric: str) -> Difference | None:
        """Against the reference; None for the reference itself and where the metric is not there."""
        pair = group.metric(metric), self.reference.metric(metric)
        return (
            None if group is self.reference or any(m.empty for m in pair) else paired_difference(*pair, self.confidence)
        )


class LeftOut(NamedTuple):
    """A run that is not compared: escaped text."""

    folder: str
    reason: str
    kind: str
    """What the terminal gathers by."""


@dataclass
class Comparison:
    """All that the table, the files and the figures show."""

    sections: list[Section]
    left_out: list[LeftOut] = field(default_factory=list)
    selected: bool = False
    columns: Sequence[str] = ()
    """Which the user wants to see; all where there are none."""

    @property
    def groups(self) -> list[Group]:
        """Of all sections, in the order of the tables."""
        return [group for section in self.sections for group in section.groups]

    def has(self, metric: str) -> bool:
        """Whether some run has a final metric; columns and notes without any are left out."""
        return any(metric in record.numbers for group in self.groups for record in group.records)


# --- reading and naming ----------------------------------------------------------------------------------------------


def is_toy(settings: dict[str, Any]) -> bool:
    """Whether a run is of a toy problem, by its settings."""
    return settings["data.source"] == "steps"


def seed_of(run: Run) -> int | str:
    """The seed of a run, which the order of the data follows unless data.seed says otherwise; of cross-validation, with
    the part that is held out."""
    seed, data = run.settings["seed"], run.settings["data.seed"]
    text = seed if seed == data else f"{seed}/{data}"
    return text if run.settings.get("data.folds") is None else f"{text} fold {run.settings['data.fold']}"


def _is_number(value: Any) -> bool:
    """Finite, and small enough for its square."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100


def read_record(run: Run) -> Record:
    """A finished run.

    Raises:
        ViLabError: it has not finished, or cannot be read; the message is the reason, without the folder.
    """
    if run.state != "completed":
        reason = str(run.status.get("reason") or "")
        state = {"running": "still running", "unknown": "no status.json"}.get(run.state, run.state)
        raise ViLabError(reason if reason.startswith(state) else f"{state}{reason and ': '}{reason}")
    try:
        missing = [key for key in NEEDED if key not in run.settings]
    except ViLabError as error:
        raise ViLabError(one_line(error).removeprefix(f"{run.folder}/").removeprefix(f"{run.folder}: ")) from error
    if missing:
        raise ViLabError(f"config_resolved.yaml lacks {missing[0]}")
    chosen = tuple(
        report
        for report in evaluations(run.folder)
        if isinstance(report.get("metrics"), dict)
        and (report.get("split"), report.get("weights", "last")) == ("test", "last")
        and all(_is_number(report.get(name)) for name in ("samples", "images"))
    )
    numbers = _numbers(run.final, {})
    if "test/loss" not in numbers:
        raise ViLabError("metrics.json has no finite test/loss")
    return Record(run, numbers, {}, chosen)


def kind_left_out(run: Run) -> str:
    """Of a run that is not compared: where it stands."""
    state = run.state
    if state == "completed":
        return "finished, but not comparable"
    if state in ("running", "pruned"):
        return "still running" if state == "running" else "pruned, as others did better"
    try:
        begun = run.checkpoint().is_file()
    except (OSError, ViLabError):
        begun = False
    if not begun:
        return "failed starts"
    return "failed while they trained" if state == "failed" else "unfinished (vi-lab train resume=FOLDER goes on)"


def _numbers(final: dict[str, float], evaluation: dict[str, Any]) -> dict[str, float]:
    """The final metrics, with those of an evaluation; the losses stay those of the end of training."""
    losses = {name: final.get(name) for name in ("test/loss", "test/reconstruction", "test/kl")}
    later = {f"test/{name}": value for name, value in evaluation.get("metrics", {}).items()}
    stored = {**final, **later, **losses}
    return {k: float(v) for k, v in stored.items() if (METRIC.fullmatch(k) or k in ("step", "epoch")) and _is_number(v)}


def alike(records: list[Record]) -> list[Record]:
    """Each record with the best of its evaluations: of those whose settings all records have, or where there are none,
    of its own. The best is of the most images, then of the most samples."""

    def settings(report: dict[str, Any]) -> tuple:
        return report["images"], report["samples"], str(report.get("seed"))

    shared = set.intersection(*({settings(e) for e in record.evaluations} for record in records))
    found = []
    for record in records:
        own = [e for e in record.evaluations if not shared or settings(e) in shared]
        best = max(own, key=settings, default={})
        found.append(replace(record, evaluation=best, numbers=_numbers(record.run.final, best)))
    return found


def labels(settings: list[dict[str, Any]]) -> list[str]:
    """A name for each group: the estimator, and the fewest settings that tell groups of that estimator apart."""
    keys = {c["name"]: distinguishing([other for other in settings if other["name"] == c["name"]]) for c in settings}
    names: list[str] = []
    for config in settings:
        parts = [
            f"{k.removesuffix('._target_')}={show_value(config[k], k)}" for k in keys[config["name"]] if k in config
        ]
        name = printable(" ".join([str(config["name"]), *parts]))
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def group_labels(runs: list[Run]) -> list[str]:
    """For each run the name of its group; see `labels`."""
    groups = {run.key: run.settings for run in runs}
    names = dict(zip(groups, labels(list(groups.values())), strict=True))
    return [names[run.key] for run in runs]


def run_labels(runs: list[Run]) -> list[str]:
    """A name for each run: its group's, with the seed where some group has several runs, and with the folder where some
    seed has."""
    names = group_labels(runs)
    for more in (lambda run: f"s{seed_of(run)}", lambda run: printable(f"({run.folder.resolve().name})")):
        if len(set(names)) < len(names):
            names = [f"{name} {more(run)}" for name, run in zip(names, runs, strict=True)]
    return names


def distinguishing(rivals: list[dict[str, Any]]) -> list[str]:
    """Settings, in the order of the config, of which none is needless to tell the rivals apart.

    What follows from another setting (schedule.start from temperature) is so left out.
    """

    def apart(keys: list[str]) -> int:
        return len({tuple(str(config.get(key)) for key in keys) for config in rivals})

    kept: list[str] = []
    for key in dict.fromkeys(k for config in rivals for k in config if not has(k, INCIDENTAL)):
        if apart([*kept, key]) > apart(kept):
            kept.append(key)
    for key in reversed(kept):  # what those after it say, too
        if apart(rest := [k for k in kept if k != key]) == apart(kept):
            kept = rest
    return kept


def differing(groups: list[Group]) -> dict[str, list[str]]:
    """Every setting in which groups differ, with its value in each."""
    keys = dict.fromkeys(k for group in groups for k in group.settings if not has(k, INCIDENTAL))
    table = {k: [show_value(g.settings[k], k) if k in g else "" for g in groups] for k in keys}
    return {printable(k): [printable(v) for v in values] for k, values in table.items() if len(set(values)) > 1}


def show_value(value: Any, key: str) -> str:
    """A setting as it stands in tables: of a `_target_` the class."""
    return str(value).rpartition(".")[2] if key.endswith("_target_") else "null" if value is None else str(value)
