"""What `vi-lab verify` found: a table of published numbers against ours, as JSON, Markdown, HTML and a picture. Made
from run folders alone."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from vi_lab.comparison.curves import Curves
from vi_lab.comparison.documents import render
from vi_lab.comparison.verdicts import FALSE_ALARM, Verdict
from vi_lab.console import Heading, Terminal, duration, print_tables
from vi_lab.figures.style import CYCLE
from vi_lab.published import PROVENANCES, Cell, Row, Source
from vi_lab.runs.files import strict, write_json, write_text

WORDS = ("pass", "fail", "not decided")


class Judged(NamedTuple):
    """A cell with what came out."""

    row: Row
    cell: Cell
    verdict: Verdict
    folders: tuple[str, ...] = ()
    """Of our runs."""

    @property
    def published(self) -> str:
        """As "208.743 ± 1.751 (10 runs)"."""
        return self._number(self.cell.value, self.cell.sd, self.row.seeds, "<= " if self.cell.upper else "")

    @property
    def ours(self) -> str:
        """The same of ours: mean and standard error, with the number of runs."""
        return self._number(self.verdict.ours, self.verdict.error, self.verdict.runs) if self.verdict.runs else ""

    @property
    def difference(self) -> str:
        """Ours less the published one."""
        return f"{self.verdict.ours - self.cell.value:+.3g}" if self.verdict.runs else ""

    @property
    def band(self) -> str:
        """How far apart the two may be."""
        return f"{self.verdict.band:.3g}" if math.isfinite(self.verdict.band) else ""

    def _number(self, value: float, error: float | None, runs: int | None, sign: str = "") -> str:
        text = f"{sign}{value:.6g}"
        if error is not None and math.isfinite(error):
            text += f" ± {error:.2g}"
        return text if runs is None else f"{text} ({runs})"

    def as_json(self) -> dict[str, Any]:
        """All there is to say."""
        row, cell, verdict = self.row, self.cell, self.verdict
        return {
            "source": row.source,
            "row": row.name,
            "metric": cell.metric,
            "epoch": cell.epoch,
            "estimator": cell.estimator,
            "minus": cell.minus,
            "temperature": cell.temperature,
            "published": {
                "value": cell.value,
                "half": cell.half,
                "sd": cell.sd,
                "runs": row.seeds,
                "upper": cell.upper,
                "searched": row.searched,
            },
            "ours": {"value": verdict.ours, "standard_error": verdict.error, "runs": verdict.runs},
            "band": verdict.band,
            "verdict": verdict.word,
            "reason": verdict.reason,
            "settings": list(row.settings),
            "folders": list(self.folders),
        }


@dataclass
class Report:
    """All cells that were asked for.

    Attributes:
        command: that a reader may give to repeat it.
        seconds: of processor time that the runs have taken.
        made_with: what the runs say of it: "processor", "cpu_count", "git_commit", "vi_lab", "torch" -> texts, several
            where they differ.
    """

    sources: Sequence[Source]
    cells: Sequence[Judged]
    command: str = ""
    seconds: float = 0.0
    made_with: dict[str, list[str]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Verdict -> cells."""
        counts = Counter(judged.verdict.word for judged in self.cells)
        return {word: counts[word] for word in WORDS}

    @property
    def decided(self) -> int:
        """Cells that passed or failed."""
        return self.counts["pass"] + self.counts["fail"]

    @property
    def summary(self) -> str:
        """In a sentence or two."""
        counts = self.counts
        words = ", ".join(f"{counts[word]} {word}" for word in WORDS)
        return (
            f"{len(self.cells)} published numbers: {words}. If all {self.decided} that are decided agreed, some would "
            f"fail by chance with probability {FALSE_ALARM:g} at the most."
        )

    @property
    def machine(self) -> str:
        """Machine, hours, commit."""
        parts = [
            f"{duration(self.seconds)} of runs",
            *(f"{name.replace('_', ' ')} {', '.join(texts)}" for name, texts in self.made_with.items() if texts),
        ]
        return "; ".join(parts)

    def of(self, source: Source) -> list[Judged]:
        """The cells of a source."""
        return [judged for judged in self.cells if judged.row.source == source.name]

    def noted(self, source: Source) -> list[Row]:
        """The rows of a source that there is something to say of."""
        rows = {judged.row.name: judged.row for judged in self.of(source)}
        return [row for row in rows.values() if row.note]

    def asked(self) -> list[Source]:
        """The sources of which there are cells."""
        names = {judged.row.source for judged in self.cells}
        return [source for source in self.sources if source.name in names]


def show(report: Report, terminal: Terminal) -> None:
    """The cells that are decided, or that we have a number for; of the others how many there are, and why."""
    headings = [
        Heading("row", numeric=False),
        Heading("number", numeric=False),
        Heading("published", priority=1),
        Heading("ours", priority=1),
        Heading("band", priority=2),
        Heading("verdict", numeric=False),
    ]
    tables = []
    for source in report.asked():
        known = [judged for judged in report.of(source) if judged.verdict.runs]
        rows = [[j.row.name, j.cell.label, j.published, j.ours, j.band, j.verdict.word] for j in known]
        for one, before in reversed([*zip(rows[1:], rows, strict=False)]):
            one[0] = "" if one[0] == before[0] else one[0]  # a row's name stands once
        if rows:
            tables.append((source.paper, rows))
    if tables:
        print_tables(terminal, headings, tables, "verify.html has them")
    reasons = Counter(judged.verdict.reason for judged in report.cells if judged.verdict.word == "not decided")
    for reason, number in reasons.most_common(8):
        terminal.say(f"not decided, {number}: {reason}", "dim")
    if len(reasons) > 8:
        terminal.say(f"and for {len(reasons) - 8} more reasons, which verify.html names", "dim")
    for judged in report.cells:
        if judged.verdict.word == "fail":
            words = f"fail: {judged.row.label}, {judged.cell.label}: published {judged.published}, ours {judged.ours}"
            terminal.say(f"{words}{'; ' if judged.verdict.reason else ''}{judged.verdict.reason}", "yellow")
    terminal.say(report.summary)


def write(report: Report, folder: Path) -> list[Path]:
    """verify.json, verify.md, verify.html and agreement.png into `folder`, which is made; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [picture] if (picture := agreement(report)) else []
    content = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": report.command,
        "false_alarm": FALSE_ALARM,
        "counts": report.counts,
        "seconds": report.seconds,
        "made_with": report.made_with,
        "cells": [judged.as_json() for judged in report.cells],
    }
    write_json(folder / "verify.json", strict(content))
    write_text(folder / "verify.md", document(report, "verified.md.j2"))
    write_text(folder / "verify.html", document(report, "verified.html.j2", figures=drawn))
    return [*(folder / f"verify.{kind}" for kind in ("json", "md", "html")), *(one.write(folder) for one in drawn)]


def document(report: Report, template: str, figures: Sequence[Curves] = ()) -> str:
    """The report as a text."""
    values = {"report": report, "provenances": PROVENANCES, "rate": FALSE_ALARM, "drawn": figures}
    return render(template, **values).rstrip() + "\n"


def agreement(report: Report) -> Curves | None:
    """Each decided cell's difference from what was published, in units of its band: from -1 to 1 agrees."""
    sources = [(s, [j for j in report.of(s) if math.isfinite(j.verdict.band) and j.verdict.band > 0])
               for s in report.asked()]  # fmt: skip
    sources = [(source, cells) for source, cells in sources if cells]
    if not sources:
        return None
    figure = Figure(figsize=(7.0, 1.0 + 0.45 * len(sources)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-1, 1, color="0.5", alpha=0.15, linewidth=0)
    axes.axvline(0, color="0.5", linewidth=0.8)
    for place, (_, cells) in enumerate(sources):
        for word, color, marker in (("pass", CYCLE[0], "o"), ("fail", CYCLE[1], "X")):
            chosen = [(k, j) for k, j in enumerate(cells) if j.verdict.word == word]
            shares = [(j.verdict.ours - j.cell.value) / j.verdict.band for _, j in chosen]
            places = [place + 0.3 * math.sin(2.4 * k) for k, _ in chosen]  # so that points do not hide others
            axes.scatter([max(-2.0, min(2.0, s)) for s in shares], places, s=16, color=color, marker=marker, alpha=0.8)
    axes.set_yticks(range(len(sources)), [f"{source.name} ({len(cells)})" for source, cells in sources])
    axes.set_ylim(len(sources) - 0.4, -0.6)
    axes.set_xlim(-2.1, 2.1)
    axes.set_xlabel("(ours - published) / band; what is beyond 2 stands at 2")
    caption = "Published numbers against ours: within the gray band they agree"
    return Curves("agreement", caption, figure)
