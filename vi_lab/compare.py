"""`vi-lab compare PATHS...`: runs grouped by what they did, over seeds; selected by validation, reported on test.

Runs that differ in the seed only are one group. Groups whose losses mean the same (same data, binarisation, likelihood)
stand in one section, best first; each is held against the section's reference group by paired differences: runs with
the same seed see the same images in the same order, so what they share cancels.

A run folder may be somebody else's: it is read as data (`vi_lab.runs`), and what is shown of it is escaped
(`vi_lab.report`).
"""

from __future__ import annotations

import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas
from rich.console import Console
from scipy.special import stdtrit

from vi_lab.errors import Parser, UserError, ViLabError, one_line, printable
from vi_lab.runs import CONFIG_FILE, NOT_SETTINGS, Run, find_runs, inside, read_json

CONFIDENCE = 0.95
METRIC = re.compile(r"(train|val|test)/\w+", re.ASCII)
SAME_LOSS = {
    "data.source": "data",
    "data.binarization": "binarisation",
    "likelihood._target_": "likelihood",
    "objective.beta": "weight of the KL (objective.beta)",
    "trainer.limit_test_batches": "part of the test images",
}
"""Where runs differ in one of these, their losses are different quantities."""
NEEDED = (
    *("name", "seed", "data.seed", "data.source", "data.binarization", "data.batch_size", "accelerator.devices"),
    *("latent._target_", "likelihood._target_"),
)


# --- statistics ----------------------------------------------------------------------------------------------------


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error of the mean, s / sqrt(n); the error of a single value is NaN, as is all of none."""
    values = list(values)
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


class Difference(NamedTuple):
    """A paired difference, group minus reference, with its confidence interval."""

    mean: float
    low: float
    high: float
    seeds: int
    """How many seeds the two have in common."""


def paired_difference(values: pandas.Series, reference: pandas.Series, confidence: float = CONFIDENCE) -> Difference:
    """Student's interval for the mean of paired differences d_s (Student 1908, The probable error of a mean).

    mean(d) -+ t((1 + confidence) / 2; n - 1) * s_d / sqrt(n) over the n seeds that both have. Exact for normal
    differences. NaN where it does not exist: all of it without a common seed, the interval with one.

    Args:
        values, reference: a metric, indexed by seed.
    """
    both = values.index.intersection(reference.index)
    mean, error = mean_and_error((values[both] - reference[both]).tolist())
    half = float(stdtrit(len(both) - 1, (1 + confidence) / 2)) * error if len(both) > 1 else math.nan
    return Difference(mean, mean - half, mean + half, len(both))


# --- what is compared ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A finished run, read and checked."""

    run: Run
    numbers: dict[str, float]
    """The final metrics, with `step`: all finite."""
    evaluation: dict[str, Any]
    """evaluation.json, where it is of the last weights and all asked-for test images; otherwise empty."""

    @property
    def seed(self) -> int | str:
        """What pairs runs. The split and the order of the data follow the seed unless data.seed says otherwise."""
        seed, data = self.run.settings["seed"], self.run.settings["data.seed"]
        return seed if seed == data else f"{seed}/{data}"

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
        return self.evaluation.get(key, self.run.settings.get(f"evaluation.{key}"))

    @property
    def images_per_step(self) -> int:
        """Training images per optimiser step."""
        settings = self.run.settings
        accumulated = settings.get("trainer.accumulate_grad_batches", 1)
        parts = (settings["data.batch_size"], settings["accelerator.devices"], accumulated)
        return math.prod(part for part in parts if isinstance(part, int))

    @cached_property
    def history(self) -> pandas.DataFrame:
        """Per epoch: losses, `seconds` and `evaluations` (of the decoder per training image, summed) since the start.

        Raises:
            ViLabError: metrics.csv cannot be read.
        """
        table = self.run.metrics.apply(pandas.to_numeric, errors="coerce")
        if not {"epoch", "step"} <= set(table):
            raise ViLabError(f"{self.run.folder / 'metrics.csv'}: it has no columns epoch and step")
        table = table.dropna(subset=["epoch", "step"]).drop_duplicates("epoch", keep="last").set_index("epoch")
        table["evaluations"] = table["step"] * self.images_per_step * self.decoder_evaluations
        try:
            timing = self.run.timing.apply(pandas.to_numeric, errors="coerce").drop_duplicates("epoch", keep="last")
            table["seconds"] = timing.set_index("epoch")["seconds"].cumsum()
        except (ViLabError, KeyError):
            table["seconds"] = math.nan
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
        return self.records[0].run.settings

    @property
    def estimator(self) -> str:
        return printable(self.settings["name"])

    @property
    def seeds(self) -> list[int | str]:
        return [record.seed for record in self.records]

    @property
    def latent(self) -> str:
        kind = str(self.settings["latent._target_"]).rpartition(".")[2]
        sizes = [str(self.settings[f"latent.{k}"]) for k in ("variables", "classes", "dim") if f"latent.{k}" in self]
        return printable(f"{kind} {'x'.join(sizes)}")

    def __contains__(self, setting: str) -> bool:
        return setting in self.settings

    def metric(self, name: str) -> pandas.Series:
        """A final metric, indexed by seed; seeds that lack it are left out."""
        values = {r.seed: r.numbers[name] for r in self.records if name in r.numbers}
        return pandas.Series(values, dtype=float)

    def mean(self, name: str) -> float:
        return mean_and_error(self.metric(name))[0]

    @property
    def epoch_seconds(self) -> float:
        """Median over runs of the median wall time of an epoch; NaN where it is not known."""
        known = [s for record in self.records if math.isfinite(s := record.run.epoch_seconds)]
        return statistics.median(known) if known else math.nan

    @property
    def decoder_evaluations(self) -> float:
        return self.records[0].decoder_evaluations


@dataclass
class Section:
    """Groups whose losses are the same quantity, best first."""

    title: str
    groups: list[Group]
    reference: Group
    selection: str
    """The metric that orders and selects: val/loss, or test/loss where nothing was held out."""

    def difference(self, group: Group, metric: str) -> Difference | None:
        """Against the reference; None for the reference itself and where the metric is not there."""
        pair = group.metric(metric), self.reference.metric(metric)
        return None if group is self.reference or any(m.empty for m in pair) else paired_difference(*pair)


@dataclass
class Comparison:
    """All that the table, the files and the figures show."""

    sections: list[Section]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(run folder, why)"""
    notes: list[str] = field(default_factory=list)
    """What to know before reading the numbers, in plain sentences."""
    selected: bool = False

    @property
    def groups(self) -> list[Group]:
        return [group for section in self.sections for group in section.groups]

    def has(self, metric: str) -> bool:
        return any(metric in record.numbers for group in self.groups for record in group.records)


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
    evaluation = read_json(run.folder, "evaluation.json")
    whole = not evaluation.get("interrupted") and isinstance(evaluation.get("metrics"), dict)
    if not whole or evaluation.get("split") != "test" or evaluation.get("weights", "last") != "last":
        evaluation = {}
    # `vi-lab evaluate` may have more samples of the likelihood; the losses stay those of the end of training
    losses = {name: run.final.get(name) for name in ("test/loss", "test/reconstruction", "test/kl")}
    later = {f"test/{name}": value for name, value in evaluation.get("metrics", {}).items()}
    stored = {**run.final, **later, **losses}
    numbers = {k: float(v) for k, v in stored.items() if (METRIC.fullmatch(k) or k == "step") and _is_number(v)}
    if "test/loss" not in numbers:
        raise ViLabError("metrics.json has no finite test/loss")
    return Record(run, numbers, evaluation)


def compare(runs: Iterable[Run], reference: str | None = None, select: bool = False) -> Comparison:
    """Group, order and annotate runs.

    Args:
        runs: finished or not; the others are left out by name.
        reference: a group's or an estimator's name; None: the best group of each section.
        select: keep the best group of each estimator, by validation.

    Raises:
        UserError: no run has finished, or no group has that name.
    """
    groups: dict[tuple, dict[int | str, Record]] = {}
    left_out, count = [], 0
    for count, run in enumerate(runs, 1):  # noqa: B007
        try:
            record = read_record(run)
            same = groups.setdefault(run.key, {})
            if record.seed in same:  # no independent measurement
                raise ViLabError(f"the same settings and seed as {same[record.seed].run.folder}")
            same[record.seed] = record
        except Exception as error:  # one damaged or hostile folder must not hide the others
            kind = "" if isinstance(error, ViLabError) else f"{type(error).__name__}: "
            left_out.append((printable(run.folder), printable(kind + one_line(error))[:500]))
    if not groups:
        reasons = "; ".join(f"{folder}: {reason}" for folder, reason in left_out[:3])
        raise UserError(f"none of the {count} runs has finished ({reasons}{'; ...' if count > 3 else ''})")
    named = [Group(sorted(g.values(), key=lambda r: (isinstance(r.seed, str), r.seed))) for g in groups.values() if g]
    for group, name in zip(named, labels([group.settings for group in named]), strict=True):
        group.name = name
    sections = _sections(named, reference, select)
    result = Comparison(sections, left_out, selected=select)
    result.notes = list(_notes(result))
    return result


def labels(settings: list[dict[str, Any]]) -> list[str]:
    """A name for each group: the estimator, and the first few settings that tell groups of that estimator apart."""
    names: list[str] = []
    for config in settings:
        rivals = [other for other in settings if other["name"] == config["name"]]
        keys = [k for k in _distinguishing(rivals) if k in config]
        parts = [config["name"], *(f"{k.removesuffix('._target_')}={_value(config[k], k)}" for k in keys)]
        name = printable(" ".join(map(str, parts)))
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def _distinguishing(rivals: list[dict[str, Any]]) -> list[str]:
    """Settings, in the order of the config, of which each splits the rivals further than those before it.

    What follows from another setting (schedule.start from temperature) is so left out.
    """
    kept: list[str] = []
    classes = [()] * len(rivals)
    for key in dict.fromkeys(k for config in rivals for k in config if k not in NOT_SETTINGS):
        split = [(*c, str(config.get(key))) for c, config in zip(classes, rivals, strict=True)]
        if len(set(split)) > len(set(classes)):
            kept.append(key)
            classes = split
    return kept


def differing(groups: list[Group]) -> dict[str, list[str]]:
    """Every setting in which groups differ, with its value in each."""
    keys = dict.fromkeys(k for group in groups for k in group.settings if k not in NOT_SETTINGS)
    table = {k: [_value(g.settings[k], k) if k in g else "" for g in groups] for k in keys}
    return {printable(k): [printable(v) for v in values] for k, values in table.items() if len(set(values)) > 1}


def _value(value: Any, key: str) -> str:
    return str(value).rpartition(".")[2] if key.endswith("_target_") else "null" if value is None else str(value)


def _sections(groups: list[Group], reference: str | None, select: bool) -> list[Section]:
    kinds: dict[tuple, list[Group]] = {}
    for group in groups:
        kinds.setdefault(tuple(str(group.settings.get(key)) for key in SAME_LOSS), []).append(group)
    sections = []
    for members in kinds.values():
        # without validation in one of them they are ordered, and selected, by what they are reported on
        held_out = all("val/loss" in record.numbers for group in members for record in group.records)
        selection = "val/loss" if held_out else "test/loss"
        members = sorted(members, key=lambda group: group.mean(selection))
        if select:
            best: dict[str, Group] = {}
            for group in members:
                if (chosen := best.setdefault(group.estimator, group)) is not group:
                    chosen.rivals.append(group)
            members = list(best.values())
        sections.append(Section(_title(members[0].settings), members, members[0], selection))
    if reference is not None:
        section, group = _find(reference, sections)
        section.reference = group
    return sections


def _title(settings: dict[str, Any]) -> str:
    binarization, beta = settings["data.binarization"], settings.get("objective.beta", 1)
    pixels = "grey pixels" if binarization == "none" else f"{binarization} binarisation"
    likelihood = _value(settings["likelihood._target_"], "_target_")
    title = f"{settings['data.source']}, {pixels}, {likelihood} likelihood"
    part = settings.get("trainer.limit_test_batches", 1)
    title += "" if beta == 1 else f", KL times {beta}"
    return printable(title + ("" if part == 1 else f", {part} of the test batches"))


def _find(name: str, sections: list[Section]) -> tuple[Section, Group]:
    pairs = [(section, group) for section in sections for group in section.groups]
    for test in (lambda g: g.name == name, lambda g: g.estimator == name):
        found = [pair for pair in pairs if test(pair[1])]
        if len(found) == 1:
            return found[0]
        if found:
            pairs = found
            break
    names = ", ".join(repr(group.name) for _, group in pairs)
    problem = "several groups have this name" if found else "no group has this name"
    raise UserError(f"--reference {name}: {problem} (groups: {names})")


# --- what to know before reading the numbers -------------------------------------------------------------------------


def names(groups: list[Group], most: int = 4) -> str:
    """The groups' names in a sentence."""
    shown = [group.name for group in groups[:most]]
    return ", ".join(shown) + (f" and {len(groups) - most} more" if len(groups) > most else "")


def _spread(groups: list[Group], value: Callable[[Record], Any]) -> str:
    """ "1000: a, b; 500: c" where groups differ in a value, otherwise nothing."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        values = dict.fromkeys(_value(value(record), "") for record in group.records)
        found.setdefault(printable(" and ".join(values)), []).append(group)
    mixed = any(" and " in value for value in found)
    return "; ".join(f"{v}: {names(g)}" for v, g in found.items()) if len(found) > 1 or mixed else ""


def _setting(key: str) -> Callable[[Record], Any]:
    return lambda record: record.run.settings.get(key)


def _environment(*keys: str) -> Callable[[Record], Any]:
    return lambda record: ", ".join(str(record.environment(key)) for key in keys)


def _notes(comparison: Comparison) -> Iterable[str]:
    groups, sections = comparison.groups, comparison.sections
    if len(sections) > 1:
        why = []
        for key, word in SAME_LOSS.items():
            if spread := _spread(groups, lambda r, k=key: _value(r.run.settings.get(k), k)):
                why.append(f"{word} ({spread})")
        yield (
            f"These runs differ in {'; in '.join(why)}. Losses do not compare between them: each kind has a table and "
            "a reference of its own."
        )
    for section in sections:
        where = f" ({section.title})" if len(sections) > 1 else ""
        yield from (f"{note[:-1]}{where}." for note in _section_notes(section, comparison))
    if comparison.has("test/nll"):
        for key, word in (("samples", "samples K per image"), ("images", "test images")):
            if spread := _spread(groups, lambda r, k=key: r.likelihood(k)):
                yield f"The NLL was estimated with different {word} ({spread}): fewer samples give a larger value."
    if spread := _spread(groups, _environment("processor", "device", "threads")):
        yield f"Wall times come from different machines or numbers of threads ({spread})."
    if unknown := [g for g in groups if math.isnan(g.decoder_evaluations)]:
        yield f"Decoder evaluations were not recorded by {names(unknown)}: not in that column or figure."


def _section_notes(section: Section, comparison: Comparison) -> Iterable[str]:
    groups = section.groups
    grey = groups[0].settings["data.binarization"] == "none"
    gaussian = str(groups[0].settings["likelihood._target_"]).endswith(".Gaussian")
    if gaussian:
        yield "A Gaussian likelihood is a density: its losses may be negative, and do not compare with a Bernoulli's."
    elif grey:
        yield "A Bernoulli likelihood of grey pixels is not normalised: its losses bound no log-likelihood."
    if section.selection != "val/loss":
        how = "selected" if comparison.selected else "ordered"
        yield (
            f"Nothing was held out in some of these runs, so they are {how} by the test loss itself, which flatters "
            "the best."
        )
    if spread := _spread(groups, lambda r: str(r.environment("data", "sha256"))[:8]):
        yield f"The data files differ (sha256 {spread}): their losses do not compare."
    budget = {
        "training steps": lambda r: int(r.numbers.get("step", 0)),
        "batch size": _setting("data.batch_size"),
        "validation images": _setting("data.validation"),
    }
    unequal = [f"{word} ({spread})" for word, value in budget.items() if (spread := _spread(groups, value))]
    if unequal:
        yield f"Unequal budgets: {'; '.join(unequal)}. Differences are not those of the methods alone."
    if uneven := [g for g in groups if any(len(rival.seeds) != len(g.seeds) for rival in g.rivals)]:
        yield f"The settings that were tried had different numbers of seeds: {names(uneven)}. Few seeds win by luck."
    single = [group for group in groups if len(group.seeds) == 1]
    if single:
        yield f"One seed only: {names(single)}. There is no standard error and no interval."
    if len({tuple(group.seeds) for group in groups}) > 1:
        spread = "; ".join(f"{g.name}: {' '.join(map(str, g.seeds[:12]))}" for g in groups[:8])
        more = "; ..." if len(groups) > 8 else ""
        yield f"Seeds differ ({printable(spread)}{more}): paired differences use common seeds only, n of them."


# --- the command -----------------------------------------------------------------------------------------------------


def default_folder(paths: list[str]) -> Path:
    """Where the files go: beside the runs where one folder of them was named, otherwise a folder of their own.

    Raises:
        ViLabError: a link leads out of that folder.
    """
    if len(paths) == 1 and (folder := Path(paths[0])).is_dir() and not (folder / CONFIG_FILE).is_file():
        return inside(folder, "comparison")
    return Path("outputs") / "comparison" / time.strftime("%Y-%m-%d_%H-%M-%S")


def publish(comparison: Comparison, folder: Path) -> None:
    """Print the table, write the files, say where they are."""
    from vi_lab import report

    # a log should not fold the table
    console = Console() if sys.stdout.isatty() else Console(width=400, color_system=None)
    report.show(comparison, console)
    report.write(comparison, folder)
    console.print(f"Tables and curves: {printable(folder / 'comparison.html')}", **report.PLAIN)


def summarize(folder: Path) -> None:
    """The comparison at the end of a sweep. Never fails: a problem is one line on stderr.

    Args:
        folder: the sweep's; the files go into its `comparison/`.
    """
    try:
        runs = find_runs([folder])
        if any(run.state == "completed" for run in runs):
            publish(compare(runs), inside(folder, "comparison"))
    except Exception as error:  # the sweep's own success or failure stands
        print(f"vi-lab train: no comparison of {printable(folder)}: {printable(one_line(error))}", file=sys.stderr)


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="vi-lab compare",
        description="Means over seeds, paired differences and curves of finished runs. Groups are ordered by "
        "val/loss and reported on the test images; unfinished runs are named.",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="run folders, sweep folders, patterns (outputs)")
    parser.add_argument("--reference", metavar="NAME", help="the group that others are held against (the best one)")
    parser.add_argument("--select", action="store_true", help="only the best setting of each estimator, by val/loss")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where the files go (PATH/comparison)")

    arguments = parser.parse_args(argv)
    comparison = compare(find_runs(arguments.paths or ["outputs"]), arguments.reference, arguments.select)
    publish(comparison, arguments.output or default_folder(arguments.paths))
    return 0
