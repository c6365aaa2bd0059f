"""A comparison on the terminal and in its folder."""

from __future__ import annotations

from pathlib import Path

from vi_lab.comparison.compare import compare
from vi_lab.comparison.curves import figures
from vi_lab.comparison.documents import html, latex, markdown
from vi_lab.comparison.groups import Comparison, LeftOut
from vi_lab.comparison.notes import gathered, notes
from vi_lab.comparison.swept import over_numbers
from vi_lab.comparison.tables import columns, explanation, group_rows, run_rows
from vi_lab.console import Heading, Terminal, make_console, print_tables
from vi_lab.errors import complain, nearby, one_line, printable
from vi_lab.runs.files import write_text
from vi_lab.runs.run import find_runs
from vi_lab.runs.trust import inside

FEW = 3
"""How many groups, or run folders, the terminal names where the page names all."""


def show(comparison: Comparison, terminal: Terminal) -> None:
    """The tables and what to know about them, in a line for each kind."""
    chosen = columns(comparison)
    headings = [Heading(column.heading, column.numeric, column.priority) for column in chosen]
    tables = [(s.title, [[c.cell(s, group) for c in chosen] for group in s.groups]) for s in comparison.sections]
    shown = [chosen[i] for i in print_tables(terminal, headings, tables, "comparison.html and .csv have them")]
    for sentence in explanation(comparison, shown):
        terminal.say(sentence, "dim")
    about = {"", *(column.csv for column in shown)}
    for line in gathered(note for note in notes(comparison, FEW) if note.column in about):
        terminal.say(f"! {line}", "yellow")
    kinds: dict[str, list[LeftOut]] = {}
    for run in comparison.left_out:
        kinds.setdefault(run.kind, []).append(run)
    for kind, runs in kinds.items():
        few = "; ".join(f"{run.folder} ({_cut(run.reason, 240 // len(runs[:FEW]))})" for run in runs[:FEW])
        more = f"; and {len(runs) - FEW} more, which comparison.html names" if len(runs) > FEW else ""
        terminal.say(f"left out, {len(runs)} {kind}: {few}{more}")


def _cut(reason: str, most: int) -> str:
    return reason if len(reason) <= most else f"{reason[:most]} ..."


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """All files into `folder`, which is made; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [*figures(comparison), *over_numbers(comparison)]
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
    terminal.say(f"Tables and curves: {printable(nearby(folder / 'comparison.html'))}")


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
        complain(f"vi-lab train: no comparison of {printable(nearby(folder))}: {printable(one_line(error))}")
