"""What `vi-lab atlas` found: estimators at the settings that a search has chosen, on fresh seeds, as a table, JSON,
Markdown, HTML and pictures. Made from run folders alone."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import pandas

from vi_lab.atlas import BUDGETS, Atlas, Setting
from vi_lab.comparison.curves import INK, Curves, ink
from vi_lab.comparison.documents import render
from vi_lab.comparison.searched import Chosen, Selection, final, or_infinite
from vi_lab.comparison.stats import CONFIDENCE, Difference, mean_and_error, paired_difference
from vi_lab.console import Heading, Terminal, duration, number, print_tables
from vi_lab.errors import ViLabError
from vi_lab.figures.style import Column, chart, dot_rows, look
from vi_lab.runs.files import strict, write_json, write_text
from vi_lab.runs.run import Run

LOSS, NLL, SELECTION = "test/loss", "test/nll", "val/loss"
FAR = 3.0
"""A picture ends so many times as far above its median as the best one lies below it."""


@dataclass(frozen=True)
class Entry:
    """An estimator at one latent.

    Attributes:
        numbers: metric -> budget -> seed -> value, over the seeds that all estimators have; infinite where a run has
            failed.
    """

    name: str
    chosen: Chosen
    setting: Setting
    at_edge: tuple[bool, bool]
    steps_per_epoch: int
    numbers: Mapping[str, Mapping[str, Mapping[int, float]]]
    difference: Difference | None = None
    """From the best, at equal epochs; None of the best itself, and where a run has failed."""

    def mean(self, metric: str, budget: str = "epochs") -> tuple[float, float]:
        """Mean and standard error over seeds; infinite where one has failed, NaN where it was not measured."""
        values = [*self.numbers[metric][budget].values()]
        if any(map(math.isinf, values)):
            return math.inf, math.nan
        return mean_and_error(values)

    def cell(self, metric: str, budget: str) -> str:
        """The same as a text."""
        values = self.numbers[metric][budget].values()
        lost = sum(map(math.isinf, values))
        if lost:
            return f"failed in {lost} of {len(values)}"
        mean, error = self.mean(metric, budget)
        return "" if math.isnan(mean) else number(mean, ".2f", error)

    def epochs(self, budget: str) -> str:
        """How long it is trained."""
        return f"{self.chosen.steps[budget] / self.steps_per_epoch:.3g}"

    @property
    def rate(self) -> str:
        """The chosen one, marked at the edge of the grid."""
        return f"{self.setting.rate:.3g}{'*' * self.at_edge[0]}"

    @property
    def temperature(self) -> str:
        """The same; empty where there is none."""
        temperature = self.setting.temperature
        return "" if temperature is None else f"{temperature:.3g}{'*' * self.at_edge[1]}"

    @property
    def evaluations(self) -> str:
        """Of the decoder, per image and step."""
        return f"{self.chosen.evaluations:g}"

    @property
    def milliseconds(self) -> str:
        """Of a step."""
        return f"{1000 * self.chosen.seconds_per_step:.3g}"

    @property
    def apart(self) -> str:
        """The difference from the best."""
        if self.difference is None or not math.isfinite(self.difference.mean):
            return ""
        mean, low, high, _ = self.difference
        return f"{mean:+.2f}" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else "")

    def as_json(self) -> dict[str, Any]:
        """All there is to say."""
        budgets = {
            budget: {
                "steps": self.chosen.steps[budget],
                "epochs": self.chosen.steps[budget] / self.steps_per_epoch,
                **{
                    metric: {"mean": self.mean(metric, budget)[0], "standard_error": self.mean(metric, budget)[1],
                             "seeds": {str(seed): value for seed, value in values[budget].items()}}
                    for metric, values in self.numbers.items() if metric != SELECTION
                },
            }
            for budget in BUDGETS
        }  # fmt: skip
        return {
            "estimator": self.name,
            "setting": self.setting._asdict(),
            "at_edge": {"rate": self.at_edge[0], "temperature": self.at_edge[1]},
            "searched": [*self.chosen.losses],
            "failed_settings": self.chosen.failed,
            "decoder_evaluations": self.chosen.evaluations,
            "seconds_per_step": self.chosen.seconds_per_step,
            "validation": {str(seed): value for seed, value in self.numbers[SELECTION]["epochs"].items()},
            "budgets": budgets,
            "difference": None if self.difference is None else self.difference._asdict(),
        }


def entries(atlas: Atlas, selection: Selection, folders: Mapping[int, Mapping[str, Mapping[str, Path]]]) -> list[Entry]:
    """The estimators of a latent, best first: by the mean validation loss of the reported seeds at equal epochs.

    Args:
        folders: of the runs, seed -> estimator -> budget, of seeds that all estimators have.

    Raises:
        ViLabError: a run has trained for other than its steps.
    """
    made = []
    for name, chosen in selection.estimators.items():
        if chosen.setting is None:
            continue
        for found in folders.values():
            for budget, folder in found[name].items():
                _check_length(folder, chosen.steps[budget])
        numbers = {
            metric: {
                budget: {seed: final(found[name][budget], metric) for seed, found in folders.items()}
                for budget in BUDGETS
                if metric != SELECTION or budget == "epochs"  # what ends within an epoch is not validated
            }
            for metric in (LOSS, NLL, SELECTION)
        }
        made.append(
            Entry(name, chosen, chosen.setting, atlas.at_edge(chosen.setting), selection.steps_per_epoch, numbers)
        )
    if not folders:
        return made
    made.sort(key=lambda entry: (or_infinite(entry.mean(SELECTION)[0]), entry.name))
    best = pandas.Series(made[0].numbers[LOSS]["epochs"])
    return [
        made[0],
        *(
            replace(entry, difference=paired_difference(pandas.Series(entry.numbers[LOSS]["epochs"]), best))
            if math.isfinite(entry.mean(LOSS)[0] + made[0].mean(LOSS)[0])
            else entry
            for entry in made[1:]
        ),
    ]


def _check_length(folder: Path, steps: int) -> None:
    """Refuse a completed run that something in the atlas's settings has ended early."""
    made = final(folder, "step")
    if math.isfinite(made) and made != steps:
        raise ViLabError(f"{folder}: trained for {made:g} steps, and not for {steps}; it cannot be compared")


@dataclass(frozen=True)
class Shape:
    """What there is at one latent.

    Attributes:
        selection: None before the search is complete.
        seeds: those that all estimators have.
        left_out: estimator -> why.
        tempered: estimator -> whether it has a temperature.
        done: runs of the search that have ended.
        runs: of the search.
    """

    latent: str
    selection: Selection | None
    entries: Sequence[Entry]
    seeds: Sequence[int]
    left_out: Mapping[str, str]
    tempered: Mapping[str, bool]
    done: int
    runs: int

    @property
    def untempered(self) -> list[str]:
        """The estimators without a temperature."""
        return [name for name, tempered in self.tempered.items() if not tempered]

    @property
    def reasons(self) -> dict[str, str]:
        """Why estimators are left out -> which."""
        found: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            found.setdefault(reason.removeprefix(f"estimator {name} "), []).append(name)
        return {reason: ", ".join(names) for reason, names in found.items()}

    @property
    def hopeless(self) -> list[str]:
        """The estimators of which all settings have failed."""
        chosen = {} if self.selection is None else self.selection.estimators
        return [name for name, one in chosen.items() if one.setting is None]

    @property
    def failed(self) -> dict[str, int]:
        """Estimators -> how many of their settings have failed."""
        chosen = {} if self.selection is None else self.selection.estimators
        return {name: one.failed for name, one in chosen.items() if one.failed}

    @property
    def hindered(self) -> bool:
        """Whether the search has ended, and nothing came out."""
        return self.selection is None and 0 < self.runs == self.done

    @property
    def summary(self) -> str:
        """How far it is, in a sentence."""
        if self.hindered:
            return f"All {self.runs} runs of the search have failed; to begin again, remove the sweep's folder."
        if self.selection is None:
            return f"The search is not complete: {self.done} of {self.runs} runs have ended."
        if not self.seeds:
            return "The search is complete; no seed is there yet of all estimators."
        seeds = ", ".join(map(str, self.seeds))
        best = self.entries[0]
        return (
            f"{len(self.entries)} estimators on the fresh seeds {seeds}. The least validation loss at equal epochs has "
            f"{best.name}, with a test loss of {best.cell(LOSS, 'epochs')}."
        )

    @property
    def shown(self) -> list[Entry]:
        """The entries with numbers."""
        return [*self.entries] if self.seeds else []


@dataclass(frozen=True)
class Report:
    """An atlas with what came out.

    Attributes:
        command: that a reader may give to repeat it.
        seconds: of processor time that the runs have taken.
        made_with: what the runs say of it, see `vi_lab.comparison.repeated.made_with`.
        ended: when the last run has, as they say; "" where none has.
    """

    atlas: Atlas
    shapes: Sequence[Shape]
    command: str = ""
    seconds: float = 0.0
    made_with: Mapping[str, list[str]] = field(default_factory=dict)
    ended: str = ""

    @property
    def protocol(self) -> list[str]:
        """How it was done, in sentences that follow from the data."""
        atlas = self.atlas
        rates = ", ".join(f"{rate:g}" for rate in atlas.rates)
        temperatures = ", ".join(f"{temperature:g}" for temperature in atlas.temperatures)
        dense = ", ".join(f"{one.rate:g}" for one in atlas.grid(False))
        untempered = [*dict.fromkeys(name for shape in self.shapes for name in shape.untempered)]
        fresh = ", ".join(map(str, atlas.report.seeds))
        lines = [
            f"Latents {', '.join(atlas.latents)} (variables x classes); all runs: {', '.join(atlas.settings)}.",
            f"Search: {atlas.searched} settings of each estimator, {_many(atlas.search.epochs, 'epoch')}, seed "
            f"{', '.join(map(str, atlas.search.seeds))}: optimizer.lr {rates} with temperature {temperatures} (where "
            "an estimator learns its temperature, the first value).",
        ]
        if untempered and len(atlas.temperatures) > 1:
            lines.append(
                f"As many settings for those without a temperature ({', '.join(untempered)}): optimizer.lr {dense}."
            )
        return [
            *lines,
            "The setting of the least mean validation loss at the end of the search is chosen; a run whose loss "
            "became no number, or that has failed twice, counts as infinite. No test loss is used for it. A star marks "
            "a chosen value at the edge of its range: a better one may lie beyond. All budgets have this setting, and "
            "all estimators are compared by the same -ELBO and NLL, whatever bound they train.",
            f"Report: the chosen setting, on the fresh seeds {fresh}, on test images. Only seeds count that all "
            "estimators of a latent have.",
            f"Equal epochs: {atlas.report.epochs}. Equal decoder evaluations: as many per image as one evaluation per "
            "step makes in these epochs; backward passes are not counted. Equal time: what the fastest estimator "
            "takes for these epochs, by the fastest epoch of each in the search; that includes the validation and, of "
            "those that relax, a pass more for the unrelaxed loss, which is only logged. The speed of a machine "
            "drifts, that of a shared one by tens of percent: of the three budgets, equal time is the roughest.",
        ]

    @property
    def machine(self) -> str:
        """Hours, machine, commits, date."""
        parts = [
            f"{duration(self.seconds)} of runs",
            *(f"{name.replace('_', ' ')} {', '.join(texts)}" for name, texts in self.made_with.items() if texts),
            *([f"last run of {self.ended}"] if self.ended else []),
        ]
        return "; ".join(parts)

    def figures(self) -> list[Curves]:
        """A picture for each latent with numbers."""
        return [_dots(self.atlas, shape) for shape in self.shapes if shape.shown]

    def as_json(self) -> dict[str, Any]:
        """All there is to say."""
        shapes = {
            shape.latent: {
                "seeds": [*shape.seeds],
                "search": {"ended": shape.done, "runs": shape.runs},
                "left_out": dict(shape.left_out),
                "without_temperature": shape.untempered,
                "all_settings_failed": shape.hopeless,
                "estimators": [entry.as_json() for entry in shape.shown],
            }
            for shape in self.shapes
        }
        return {
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": self.command,
            "protocol": self.protocol,
            "seconds": self.seconds,
            "made_with": dict(self.made_with),
            "latents": shapes,
        }


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def last_ended(folders: Sequence[Path]) -> str:
    """The day on which the last of some runs has ended; "" where none says so."""
    days = (str(Run(folder).status.get("updated"))[:10] for folder in folders)
    return max((day for day in days if re.fullmatch(r"\d{4}-\d\d-\d\d", day, re.ASCII)), default="")


def show(report: Report, terminal: Terminal) -> None:
    """The table of each latent, and how far it is."""
    headings = [
        Heading("estimator", numeric=False),
        Heading("lr", priority=6),
        Heading("temperature", priority=6),
        Heading("evaluations", priority=7),
        Heading("ms", priority=7),
        Heading("-ELBO"),
        Heading("NLL", priority=1),
        Heading("- best", priority=3),
        *(
            heading
            for name in ("evaluations", "time")
            for heading in (Heading(f"-ELBO, equal {name}", priority=2), Heading(f"NLL, equal {name}", priority=5))
        ),
    ]
    tables = []
    for shape in report.shapes:
        rows = [
            [e.name, e.rate, e.temperature, e.evaluations, e.milliseconds, e.cell(LOSS, "epochs"),
             e.cell(NLL, "epochs"), e.apart,
             *(e.cell(metric, budget) for budget in ("evaluations", "time") for metric in (LOSS, NLL))]
            for e in shape.shown
        ]  # fmt: skip
        if rows:
            tables.append((f"latent {shape.latent}, {_many(report.atlas.report.epochs, 'epoch')}", rows))
    if tables:
        print_tables(terminal, headings, tables, "atlas.html has them")
    for shape in report.shapes:
        terminal.say(f"{shape.latent}: {shape.summary}")
        if shape.hopeless:
            terminal.say(f"{shape.latent}: all settings have failed of {', '.join(shape.hopeless)}", "yellow")


def write(report: Report, folder: Path) -> list[Path]:
    """atlas.json, atlas.md, atlas.html and the pictures into `folder`, which is made; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = report.figures()
    write_json(folder / "atlas.json", strict(report.as_json()))
    write_text(folder / "atlas.md", document(report, "atlas.md.j2", drawn))
    write_text(folder / "atlas.html", document(report, "atlas.html.j2", drawn))
    return [*(folder / f"atlas.{kind}" for kind in ("json", "md", "html")), *(one.write(folder) for one in drawn)]


def document(report: Report, template: str, figures: Sequence[Curves] = (), images: str = "") -> str:
    """The report as a text.

    Args:
        figures: which pictures there are.
        images: where Markdown finds them.
    """
    values = {"report": report, "budgets": BUDGETS, "loss": LOSS, "nll": NLL, "drawn": figures, "images": images}
    return render(template, **values, percent=round(100 * CONFIDENCE)).rstrip() + "\n"


def _dots(atlas: Atlas, shape: Shape) -> Curves:
    """-ELBO and NLL of each estimator at each budget."""
    shown = shape.shown
    names = [entry.name for entry in shown]
    looks = [look(index, name) for index, name in enumerate(names)]
    measured = [
        (metric, label)
        for metric, label in ((LOSS, "-ELBO"), (NLL, "NLL"))
        if any(math.isfinite(entry.mean(metric)[0]) for entry in shown)
    ]
    height = max(1, len(measured)) * (0.2 * len(shown) + 1.0)
    rows = max(1, len(measured))
    figure, panels = chart(rows, len(BUDGETS), width=10, height=height, sharex="row", squeeze=False)
    beyond = False
    for row, (metric, label) in zip(panels, measured, strict=False):
        means = {budget: [entry.mean(metric, budget) for entry in shown] for budget in BUDGETS}
        values = [mean for pairs in means.values() for mean, _ in pairs]
        finite = [mean for mean in values if math.isfinite(mean)] or [0.0]
        end = median(finite) + FAR * (median(finite) - min(finite))
        beyond |= any(mean > end for mean in values)
        columns = [
            Column(
                f"{label}, {text}",
                [min(mean, end) for mean, _ in means[budget]],
                errors=[0.0 if math.isnan(error) or mean > end else error for mean, error in means[budget]],
            )
            for budget, text in BUDGETS.items()
        ]
        dot_rows(row, names, columns, looks)
        for axes in row:
            ink(axes)
            axes.xaxis.label.set_color(INK)
            axes.xaxis.label.set_fontsize(9)
            for text in axes.get_yticklabels():
                text.set_parse_math(False)
    caption = (
        f"Latent {shape.latent}: mean over {len(shape.seeds)} fresh seeds, bar: ± standard error, nats per image; the "
        "best validation loss at equal epochs on top" + ("; what is beyond stands at the right edge" if beyond else "")
    )
    return Curves(f"atlas_{atlas.name}_{shape.latent}", caption, figure)
