"""Errors that end a command in one clear line instead of a traceback."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import ClassVar


class ViLabError(Exception):
    """Something in the world went wrong (a file, the network, a diverged loss). Exit code 1."""

    exit_code = 1


class UserError(ViLabError):
    """The command cannot work as given: says what was wanted, what came and what to do. Exit code 2."""

    exit_code = 2


class Pruned(ViLabError):
    """A study has ended the run, as others do better."""


class Interrupted(KeyboardInterrupt):
    """A signal has stopped the run. Exit code 128 + its number: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        number: of the signal.
        where: in training the run was then.
        folder: with which `resume=` goes on.
    """

    of_worker: ClassVar[bool] = False
    """Whether this process is a worker of a sweep: then the signal is only how the sweep's process has told it, and not
    the one that the user has sent."""

    def __init__(self, number: int, where: str = "", folder: Path | None = None) -> None:
        self.number, self.where, self.folder = number, where, folder
        self.exit_code = 128 + number
        hint = "" if folder is None else f"; go on with: vi-lab train {shlex.quote(f'resume={nearby(folder)}')}"
        by = "with its sweep" if self.of_worker else f"by {signal.Signals(number).name}"
        super().__init__(" ".join(filter(None, ("interrupted", by, where))) + hint)

    def __reduce__(self) -> tuple:
        return Interrupted, (self.number, self.where, self.folder)  # parallel launchers send it between processes


def printable(value: object) -> str:
    """Text in which nothing moves a terminal's cursor, reverses the line, or cannot be encoded: such characters stand
    as escapes. For what comes from somebody else's folder."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(value))


def printable_lines(text: str) -> str:
    """`printable`, line by line."""
    return "\n".join(map(printable, text.split("\n")))


def nearby(path: Path) -> Path:
    """How a path is shown: from the working directory where it is inside of that, otherwise as it is."""
    try:
        return path.relative_to(Path.cwd()) if path.is_absolute() else path
    except (ValueError, OSError):  # it is elsewhere; the working directory is gone
        return path


def one_line(error: BaseException) -> str:
    """The message of `error` on a single line."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def complain(text: str) -> None:
    """A line on stderr. A terminal gets it folded between words, so that a path or a key stays whole."""
    with suppress(OSError):  # nobody reads it; the exit code remains
        print(_folded(text), file=sys.stderr, flush=True)


def _folded(text: str) -> str:
    try:
        width = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal
        return text
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if width else text


NO_MEMORY = ("allocate memory", "out of memory", "failed to map segment")
"""What errors say of which an allocation that has failed is the cause: torch's, CUDA's, and those of the loader."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an allocation has failed."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)
