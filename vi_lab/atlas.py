"""Comparisons of estimators as data: the files `configs/atlas/*.yaml`, read and checked. Needs no torch.

An atlas says which estimators are compared at which latents, over which settings each is searched on which seeds, and
on which fresh seeds the chosen setting is reported. What the keys mean stands in configs/atlas/categorical.yaml.
`vi-lab atlas` trains and reports it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vi_lab.errors import UserError, one_line
from vi_lab.schema import CONFIG_DIR, check_keys, nearest

FOLDER = "atlas"
"""Below a folder of configs."""
RATE, TEMPERATURE = "optimizer.lr", "temperature"
"""The keys of a grid."""
OWN = (RATE, TEMPERATURE, "seed", "estimator", "latent", "trainer.max_epochs", "trainer.max_steps")
"""What an atlas says in keys of its own."""
OF_LENGTH = ("trainer.max_time", "trainer.min_epochs", "trainer.min_steps")
"""What changes how long a run trains, besides."""
KEYS = ("title", "latents", "estimators", "settings", "grid", "search", "report", "most_evaluations", "seconds")
BUDGETS = {
    "epochs": "at equal epochs",
    "evaluations": "at equal decoder evaluations",
    "time": "at equal time",
}
"""What is equal between estimators when they are compared."""
SECONDS = 10.0
"""Of an epoch, where an atlas does not say."""
MOST = 1000
"""Of settings, seeds, latents and the rest."""


class Setting(NamedTuple):
    """What is searched."""

    rate: float
    temperature: float | None
    """None: the estimator has none."""

    @property
    def words(self) -> list[str]:
        """As overrides."""
        own = [] if self.temperature is None else [f"{TEMPERATURE}={self.temperature!r}"]
        return [f"{RATE}={self.rate!r}", *own]


class Stage(NamedTuple):
    """How long is trained, and on which seeds."""

    epochs: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Atlas:
    """One comparison.

    Attributes:
        name: of its file.
        estimators: None: every shipped one that takes such a latent.
        settings: overrides of all runs.
        most_evaluations: decoder evaluations per image and step; None: any number.
        seconds: of an epoch of an estimator of one decoder evaluation, as a guess for the plan.
    """

    name: str
    title: str
    latents: tuple[str, ...]
    estimators: tuple[str, ...] | None
    settings: tuple[str, ...]
    rates: tuple[float, ...]
    temperatures: tuple[float, ...]
    search: Stage
    report: Stage
    most_evaluations: float | None = None
    seconds: float = SECONDS

    @property
    def searched(self) -> int:
        """How many settings of each estimator."""
        return len(self.rates) * len(self.temperatures)

    def grid(self, tempered: bool) -> list[Setting]:
        """The settings of an estimator: as many where it has no temperature, of rates that lie closer in the same
        range, on a logarithmic scale."""
        if tempered:
            return [Setting(rate, temperature) for rate in self.rates for temperature in self.temperatures]
        low, ratio = self.rates[0], self.rates[-1] / self.rates[0]
        steps = max(1, self.searched - 1)
        return [Setting(float(f"{low * ratio ** (i / steps):.3g}"), None) for i in range(self.searched)]

    def at_edge(self, setting: Setting) -> tuple[bool, bool]:
        """Whether the rate and the temperature of a setting are the least or the largest of several."""

        def edge(value: float | None, values: Collection[float]) -> bool:
            return value is not None and len(values) > 1 and not min(values) < value < max(values)

        rates = {one.rate for one in self.grid(setting.temperature is not None)}  # as they are rounded
        return edge(setting.rate, rates), edge(setting.temperature, self.temperatures)


def steps_of(
    epochs: int, steps_per_epoch: int, evaluations: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, dict[str, int]]:
    """How many steps each estimator trains, for each of `BUDGETS`.

    Args:
        epochs: that are compared.
        evaluations: of the decoder, per image and step, of each estimator. Equal evaluations are those that one
            evaluation per step makes in the epochs.
        seconds: of a step of each. Equal time is what the fastest takes for the epochs.

    Returns:
        estimator -> budget -> steps, from 1 to those of the epochs.
    """
    whole = epochs * steps_per_epoch
    time = whole * min(seconds.values())
    return {
        name: {
            "epochs": whole,
            "evaluations": _between(whole / evaluations[name], whole),
            "time": _between(time / seconds[name], whole),
        }
        for name in seconds
    }


def _between(steps: float, most: int) -> int:
    """The nearest whole number from 1 to `most`."""
    return max(1, math.floor(min(steps, most) + 0.5))  # an infinite one has none


# --- reading ---------------------------------------------------------------------------------------------------------


def find(name: str, config_dir: str | None = None) -> Atlas:
    """The atlas of a name.

    Args:
        config_dir: of the user's own, which may have a folder `atlas` too; a file there stands for the shipped one of
            its name.

    Raises:
        UserError: there is none, or it is damaged.
    """
    files = {file.stem: file for file in sorted((CONFIG_DIR / FOLDER).glob("*.yaml"))}
    if config_dir is not None:
        files |= {file.stem: file for file in sorted((Path(config_dir) / FOLDER).glob("*.yaml"))}
    if name not in files:
        raise UserError(f"{name}: there is no such atlas{nearest(name, [*files])} (atlases: {', '.join(files)})")
    return read(files[name])


def estimators(config_dir: str | None = None) -> tuple[list[str], list[str]]:
    """The names of the shipped estimators, and of those and the user's own."""
    shipped = sorted(file.stem for file in (CONFIG_DIR / "estimator").glob("*.yaml"))
    own = sorted(file.stem for file in (Path(config_dir) / "estimator").glob("*.yaml")) if config_dir else []
    return shipped, [*dict.fromkeys([*shipped, *own])]


def read(file: Path) -> Atlas:
    """Read an atlas.

    Raises:
        UserError: it is damaged, or says something that nobody understands; says where.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)})") from error
    where = f"{FOLDER}/{file.name}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,60}", file.stem, re.ASCII):
        raise UserError(f"{where}: wanted a name of letters, digits and ._-")
    check_keys(values, KEYS, where)
    grid = values.get("grid")
    check_keys(grid, (RATE, TEMPERATURE), f"{where}: grid")
    rates, temperatures = (_axis(grid.get(key), f"{where}: grid: {key}") for key in (RATE, TEMPERATURE))
    if len(rates) == 1 < len(temperatures):
        raise UserError(f"{where}: grid: {RATE}: wanted two rates or more, for the estimators without a temperature")
    search, report = (_stage(values.get(key), f"{where}: {key}") for key in ("search", "report"))
    if again := sorted({*search.seeds} & {*report.seeds}):
        raise UserError(
            f"{where}: report: seeds: {again[0]} is a seed of the search; what is reported needs fresh ones"
        )
    most = values.get("most_evaluations")
    seconds = values.get("seconds", SECONDS)
    for key, number in (("most_evaluations", most), ("seconds", seconds)):
        if number is not None and not _positive(number):
            raise UserError(f"{where}: {key}: wanted a number above 0, got {number}")
    chosen = values.get("estimators")
    atlas = Atlas(
        file.stem,
        " ".join(str(values.get("title") or file.stem).split()),
        tuple(_names(values.get("latents"), f"{where}: latents", "[8x4, 10x30]")),
        None if chosen is None else tuple(_names(chosen, f"{where}: estimators", "[rloo, reinmax]")),
        tuple(_settings(values.get("settings"), f"{where}: settings")),
        rates,
        temperatures,
        search,
        report,
        most,
        SECONDS if seconds is None else seconds,
    )
    if len({*atlas.grid(False)}) < atlas.searched:
        raise UserError(
            f"{where}: grid: {RATE}: the range is too narrow for {atlas.searched} rates of three digits, which "
            "estimators without a temperature are searched over"
        )
    return atlas


def _settings(value: Any, where: str) -> list[str]:
    words = [] if value is None else value
    if not isinstance(words, list) or not all(isinstance(word, str) and "=" in word for word in words):
        raise UserError(f"{where}: wanted a list of overrides, such as [data=mnist]")
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in OWN:
            raise UserError(f"{where}: {word}: the atlas has a key of its own for it; leave it out")
        if key in OF_LENGTH or "early_stopping" in word:
            raise UserError(f"{where}: {word}: a run might end sooner or later than is compared; leave it out")
    return words


def _names(value: Any, where: str, example: str) -> list[str]:
    good = isinstance(value, list) and 0 < len(value) <= MOST
    if not good or not all(isinstance(name, str) and re.fullmatch(r"[\w-]{1,60}", name, re.ASCII) for name in value):
        raise UserError(f"{where}: wanted a list of names, such as {example}; got {value}")
    return [*dict.fromkeys(value)]


def _axis(value: Any, where: str) -> tuple[float, ...]:
    if not (isinstance(value, list) and 0 < len(value) <= MOST and all(map(_positive, value))):
        raise UserError(f"{where}: wanted a list of numbers above 0, such as 1.0e-3 (with a point), got {value}")
    if len({f"{number:g}" for number in value}) < len(value):  # by which runs are named
        raise UserError(f"{where}: wanted numbers that differ in their first six digits, got {value}")
    return tuple(sorted(map(float, value)))


def _stage(value: Any, where: str) -> Stage:
    check_keys(value, ("epochs", "seeds"), where)
    epochs, seeds = value.get("epochs"), value.get("seeds")
    if not (_whole(epochs) and epochs >= 1):
        raise UserError(f"{where}: epochs: wanted a whole number from 1 on, got {epochs}")
    if not (isinstance(seeds, list) and 0 < len(seeds) <= MOST and all(_whole(seed) and seed >= 0 for seed in seeds)):
        raise UserError(f"{where}: seeds: wanted a list of whole numbers from 0 on, got {seeds}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds: wanted each once, got {seeds}")
    return Stage(epochs, tuple(seeds))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30
