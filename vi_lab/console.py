"""The terminal: one way to make a console, to say something, to print tables that fit, and to show progress."""

from __future__ import annotations

import importlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vi_lab.errors import printable, printable_lines

PATIENCE = 30.0
"""Seconds between plain lines of progress where there is no terminal."""


class Terminal(Console):
    """A rich console on which text, in tables too, is what it says: it may hold a stranger's words. Markup is none,
    and what would steer the terminal stands as escapes; style comes from `rich.text.Text`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Where rich makes text of each `str` that it prints."""
        return super().render_str(printable_lines(text), **options)

    def say(self, text: object, style: str | None = None) -> None:
        """Print a line, or several. A log is not folded."""
        self.print(str(text), style=style, soft_wrap=not self.is_terminal)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does.

        Raises:
            OSError: stdout cannot be written; it is named, as a file would be.
        """
        try:
            super().print(*objects, **options)
        except OSError as error:
            error.filename = error.filename or "stdout"
            raise

    def on_broken_pipe(self) -> NoReturn:
        """Raises the BrokenPipeError at hand, where rich would end the process in its own way."""
        raise  # rich calls this where it handles the error


class Words(TextColumn):
    """Text of a progress display, as `Terminal` shows it.

    Args:
        template: such as "{task.description}".
    """

    def __init__(self, template: str) -> None:
        super().__init__(template, markup=False)

    def render(self, task: Task) -> Text:
        """The words of a task."""
        return Text(printable(super().render(task).plain))


def make_console(width: int = 140, **options: Any) -> Terminal:
    """A console on stdout.

    Args:
        width: where stdout is no terminal and COLUMNS says nothing, so that a log does not fold tables.
        options: of `rich.console.Console`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what an ASCII terminal cannot show, such as ±, ends nothing
    columns = os.environ.get("COLUMNS", "")
    if columns and not (columns.isdecimal() and int(columns)):
        del os.environ["COLUMNS"]  # rich would take it for a number
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Terminal(**options) if known else Terminal(width=width, **options)


# --- tables ----------------------------------------------------------------------------------------------------------


def number(value: float, form: str, error: float = math.nan) -> str:
    """A number as it stands in a table: what is rounded to zero has no sign of its own.

    Args:
        form: such as ".2f".
        error: its standard error, put behind it; NaN where there is none.
    """
    text = format(value, form)
    text = text if float(text) else format(0.0, form)
    return text if math.isnan(error) else f"{text} ± {format(error, form)}"


class Heading(NamedTuple):
    """Of a column of `print_tables`."""

    text: str
    numeric: bool = True
    """Flush right, and never folded. Text is folded where the terminal is narrow, between words where it can be."""
    priority: int = 0
    """What a narrow terminal does without first: the largest. Columns of 0 stay."""


LEAST = 22
"""To this width text may be folded before a column of numbers is left out for it."""


def print_tables(
    terminal: Terminal,
    headings: Sequence[Heading],
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]],
    elsewhere: str = "",
) -> list[int]:
    """Print tables that have the same columns, so that they fit the terminal: text is folded, then columns are left out
    by priority, the same in all tables, and named. No number is ever cut.

    Args:
        headings: of each table's columns; at least one with priority 0.
        tables: a title, and rows with a cell for each heading.
        elsewhere: who has what is left out, such as "audit.csv has them".

    Returns:
        which of the headings are shown, so that what is said below speaks of nothing else.
    """
    cells = [[printable(row[i]) for _, rows in tables for row in rows] for i in range(len(headings))]
    least = [_least(heading, texts) for heading, texts in zip(headings, cells, strict=True)]
    shown: list[int] = []

    def spare(more: int = 0) -> int:
        return terminal.width - 1 - more - sum(3 + least[i] for i in shown)  # each has a border and two blanks

    for i in sorted(range(len(headings)), key=lambda i: headings[i].priority):
        if not headings[i].priority or spare(3 + least[i]) >= 0:
            shown.append(i)
    shown.sort()
    rest = spare()
    widths = {}
    for i in sorted(shown, key=lambda i: headings[i].numeric):  # text is unfolded before the headings of numbers
        more = min(rest, max(map(cell_len, [headings[i].text, *cells[i]])) - least[i])
        if headings[i].numeric:
            more = max(more, 0)  # where nothing is left to leave out, only text gets narrower
        widths[i] = max(1, least[i] + more)
        rest -= more
    for title, rows in tables:
        table = Table(title=title, title_justify="left")
        for i in shown:
            table.add_column(headings[i].text, overflow="fold", width=widths[i])
            table.columns[-1].justify = "right" if headings[i].numeric else "left"
        for row in rows:
            table.add_row(*(row[i] for i in shown))
        terminal.print(table)
    if left_out := ", ".join(heading.text for i, heading in enumerate(headings) if i not in shown):
        terminal.say(f"too narrow for: {left_out}" + (f" ({elsewhere})" if elsewhere else ""), "dim")
    return shown


def _least(heading: Heading, texts: list[str]) -> int:
    """The width at which no number, no word of its heading, and no word of a text that is not long is broken."""
    words = heading.text.split() if heading.numeric else " ".join([heading.text, *texts]).split()
    longest = max(map(cell_len, words), default=1)
    return max([longest, *map(cell_len, texts)]) if heading.numeric else min(longest, LEAST)


# --- progress --------------------------------------------------------------------------------------------------------


@contextmanager
def busy(terminal: Terminal, what: str) -> Iterator[None]:
    """What takes seconds and cannot say how far it is: a spinner on a terminal, elsewhere a plain line."""
    if terminal.is_terminal:
        with terminal.status(Text(printable(what))):
            yield
    else:
        terminal.say(what)
        yield


def load(*modules: str) -> None:
    """Import what takes seconds, with a word on stdout; none where it is there already."""
    if missing := [name for name in modules if name not in sys.modules]:
        with busy(make_console(), f"loading {' and '.join(missing)}"):
            for name in missing:
                importlib.import_module(name)


def duration(seconds: float) -> str:
    """In words, as long as one waits: "40 s", "7 min", "2 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def image_bar(terminal: Terminal, label: str, total: int, bar: bool = True) -> Iterator[Callable[[int], None]]:
    """Progress over images: gives a function to be called with how many are done. A bar on a terminal, elsewhere a
    plain line every half minute, and where other processes write there too (without `bar`)."""
    columns = (Words("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not (bar and terminal.is_terminal)) as shown:
        task = shown.add_task(label, total=total)
        spoken = time.perf_counter()

        def advance(images: int) -> None:
            nonlocal spoken
            if not shown.disable:
                shown.update(task, completed=images)
            elif time.perf_counter() - spoken > PATIENCE:
                spoken = time.perf_counter()
                terminal.say(f"{label}: {images} of {total} images")

        yield advance
