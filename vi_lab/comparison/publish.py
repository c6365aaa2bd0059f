"""A comparison on the terminal and in its folder."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.table import Table
from rich.text import Text

from vi_lab.comparison.compare import compare
from vi_lab.comparison.curves import figures
from vi_lab.comparison.documents import html, latex, markdown
from vi_lab.comparison.groups import Comparison, Section
from vi_lab.comparison.tables import Column, columns, explanation, group_rows, run_rows
from vi_lab.console import Terminal, make_console
from vi_lab.errors import one_line, printable
from vi_lab.runs.files import write_text
from vi_lab.runs.run import find_runs
from vi_lab.runs.trust import inside

DISPENSABLE = (
    *("active units", "bits/dim", "train", "gap", "unrelaxed", "evaluations", "s/epoch", "latent"),
    *("NLL - reference", "NLL", "tried", "test - reference"),
)
"""Columns that a narrow terminal does without, first to last."""


def show(comparison: Comparison, terminal: Terminal) -> None:
    """The tables and what to know about them. On a narrow terminal the least needed columns are left out."""
    chosen = columns(comparison)
    for heading in DISPENSABLE:
        wide = terminal.options.update(width=10_000)
        widest = max(terminal.measure(_table(s, chosen), options=wide).minimum for s in comparison.sections)
        if widest <= terminal.width:
            break
        chosen = [column for column in chosen if column.heading != heading]
    for section in comparison.sections:
        terminal.print(_table(section, chosen))
    for sentence in explanation(comparison):
        terminal.say(sentence, "dim")
    for note in comparison.notes:
        terminal.say(f"! {note}", "yellow")
    for folder, reason in comparison.left_out:
        terminal.say(f"left out: {folder} ({reason})")


def _table(section: Section, chosen: list[Column]) -> Table:
    table = Table(title=Text(section.title), title_justify="left")
    for column in chosen:
        cells = [column.heading, *(column.cell(section, group) for group in section.groups)]
        if column.numeric:
            table.add_column(column.heading, justify="right", no_wrap=True, min_width=max(map(len, cells)))
        else:
            table.add_column(column.heading, overflow="fold", min_width=12)
    for group in section.groups:
        table.add_row(*(Text(column.cell(section, group)) for column in chosen))
    return table


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """All files into `folder`, which is made; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(comparison)
    texts = {
        "comparison.csv": group_rows(comparison).to_csv(index=False, lineterminator="\n"),
        "comparison_runs.csv": run_rows(comparison).to_csv(index=False, lineterminator="\n"),
        "comparison.md": markdown(comparison),
        "comparison.tex": latex(comparison),
        "comparison.html": html(comparison, drawn),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [*(folder / name for name in texts), *(figure.write(folder) for figure in drawn)]


def publish(comparison: Comparison, folder: Path) -> None:
    """Print the table, write the files, say where they are."""
    terminal = make_console(width=400)
    show(comparison, terminal)
    write(comparison, folder)
    terminal.say(f"Tables and curves: {printable(folder / 'comparison.html')}")


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
