"""The terminal: one way to make a console, to say something, and to show progress."""

from __future__ import annotations

import importlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vi_lab.errors import printable

PATIENCE = 30.0
"""Seconds between plain lines of progress where there is no terminal."""


class Terminal(Console):
    """A rich console on which text, in tables too, is what it says: it may hold a stranger's words. Markup is none,
    and what would steer the terminal stands as escapes; style comes from `rich.text.Text`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Where rich makes text of each `str` that it prints."""
        return super().render_str(_lines(text), **options)

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


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


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
        width: where stdout is no terminal, so that a log does not fold tables.
        options: of `rich.console.Console`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what an ASCII terminal cannot show, such as ±, ends nothing
    return Terminal(**options) if sys.stdout.isatty() else Terminal(width=width, **options)


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
def image_bar(terminal: Terminal, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress over images: gives a function to be called with how many are done. A bar on a terminal, elsewhere a
    plain line every half minute."""
    columns = (Words("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        spoken = time.perf_counter()

        def advance(images: int) -> None:
            nonlocal spoken
            if not bar.disable:
                bar.update(task, completed=images)
            elif time.perf_counter() - spoken > PATIENCE:
                spoken = time.perf_counter()
                terminal.say(f"{label}: {images} of {total} images")

        yield advance
