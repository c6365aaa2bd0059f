"""The terminal: one way to make a console, to say something, and to show progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 30.0
"""Seconds between plain lines of progress where there is no terminal."""


class Terminal(Console):
    """A rich console with `say`, for text that is printed as it is."""

    def say(self, text: object, style: str | None = None) -> None:
        """Print text without highlighting or markup: it may hold a stranger's words. A log is not folded."""
        self.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=not self.is_terminal)

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


def make_console(width: int = 140, **options: Any) -> Terminal:
    """A console on stdout.

    Args:
        width: where stdout is no terminal, so that a log does not fold tables.
        options: of `rich.console.Console`.
    """
    return Terminal(**options) if sys.stdout.isatty() else Terminal(width=width, **options)


@contextmanager
def image_bar(terminal: Terminal, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress over images: gives a function to be called with how many are done. A bar on a terminal, elsewhere a
    plain line every half minute."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
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
