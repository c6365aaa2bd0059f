"""What all measurements share: how one is asked for, loops in turn, and how a table enters the documentation."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from vi_lab.config import check_overrides
from vi_lab.figures.style import render, write_png

Loop = Callable[[], float]
"""Does one block and returns the seconds of each of its steps."""


class Options(NamedTuple):
    """How a measurement is asked for."""

    overrides: list[str]
    rounds: int
    steps: int
    estimators: tuple[str, ...]
    scratch: Path
    """A folder that is thrown away."""


class Result(NamedTuple):
    """A table, the first column of which names its rows."""

    columns: list[str]
    rows: list[list[str]]
    figure: Figure | None = None

    def caption(self, options: Options) -> str:
        """What a number depends on besides the command."""
        rounds = f"{options.rounds} round{'s' * (options.rounds != 1)}"
        gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
        return (
            f"{rounds}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads{gpu}, "
            f"Python {platform.python_version()}, torch {torch.__version__}"
        )

    def markdown(self) -> str:
        """The table as pages have it."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in [self.columns, rule, *self.rows])


def rewrite(page: Path, name: str, argv: list[str], result: Result, options: Options) -> None:
    """Put a result between the marks of its name, under the command that printed it. A path of this machine becomes
    FOLDER.

    Raises:
        ValueError: the page lacks the marks.
    """
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (mark and end):
        raise ValueError(f"{page}: wanted the marks <!-- {name} --> and <!-- /{name} -->")
    words = ["data.root=FOLDER" if word.startswith("data.root=") else word for word in argv]
    parts = [
        f"```sh\npython scripts/benchmark.py {shlex.join(words)}\n```",
        result.markdown(),
        f"{result.caption(options)}.",
    ]
    if result.figure is not None:
        image = write_png(page.parent / "images" / f"{name}.png", render(result.figure))
        parts.append(f"![{name}](images/{image.name})")
    page.write_text(before + mark + "\n" + "\n\n".join(parts) + "\n\n" + end + after, encoding="utf-8")


def compose(*overrides: str) -> DictConfig:
    """A checked train config.

    Raises:
        UserError: a mistake in the overrides.
    """
    (values,) = check_overrides("train", list(overrides), multirun=False)
    return OmegaConf.create(values)


def take_turns(loops: Mapping[str, Loop], rounds: int) -> dict[str, list[float]]:
    """Seconds of each loop in each round, after a round that warms up."""
    for loop in loops.values():
        loop()
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            times[name].append(loop())
    return times


def ratio(times: list[float], others: list[float]) -> float:
    """The median of the ratios within a round: what drifts is in both."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def ms(seconds: float) -> str:
    """Milliseconds, for a table."""
    return f"{1e3 * seconds:.2f}"


def now() -> float:
    """Seconds of a clock, once the device has done what it was told."""
    if torch.cuda.is_initialized():  # `is_available` would open a library of the driver at each call
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def timed(owner: Any, name: str, times: dict[str, float]) -> Iterator[None]:
    """Adds up in `times` what calls of a function of a class or module take meanwhile."""
    original = getattr(owner, name)

    def measured(*arguments: Any, **options: Any) -> Any:
        start = now()
        try:
            return original(*arguments, **options)
        finally:
            times[name] = times.get(name, 0.0) + now() - start

    setattr(owner, name, measured)
    try:
        yield
    finally:
        setattr(owner, name, original)
