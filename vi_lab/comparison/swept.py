"""A comparison's losses over the number that was swept: lines over one, such as the temperature; over two, a map."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from vi_lab.comparison.curves import INK, Curves, ink, legend_text
from vi_lab.comparison.groups import Comparison, Group, Section, distinguishing, labels, show_value
from vi_lab.comparison.stats import mean_and_error
from vi_lab.errors import printable
from vi_lab.figures.style import look

LEAST = 3
"""So many values of a number make an axis; fewer are told by the table."""
FEW = 8
"""So many values stand at the axis themselves."""
MOST = 12
"""Maps, one for each estimator or other setting."""
OUTCOMES = {"val/loss": "validation loss", "test/loss": "test loss"}


class Series(NamedTuple):
    """Groups that differ in the swept numbers only."""

    name: str
    estimator: str
    places: dict[tuple[float, ...], Group]
    """By their values of the numbers, in increasing order."""


def swept_numbers(section: Section) -> list[str]:
    """The settings that are the axes: one or two numbers of several values each. Empty where there are none, or more,
    which no picture shows."""
    settings = [group.settings for group in section.groups]
    found = []
    for key in distinguishing(settings):
        values: list[Any] = [config.get(key) for config in settings]
        numeric = all(type(value) in (int, float) and math.isfinite(value) for value in values)
        if numeric and len(set(values)) >= LEAST:
            found.append(key)
    return found if len(found) <= 2 else []


def series(section: Section, numbers: list[str]) -> list[Series]:
    """What else differs, estimators for the most part, in the order of the table."""
    others = [key for key in distinguishing([group.settings for group in section.groups]) if key not in numbers]
    found: dict[str, dict[tuple[float, ...], Group]] = {}
    for group in section.groups:
        places = found.setdefault(repr([group.settings.get(key) for key in others]), {})
        places[tuple(group.settings[key] for key in numbers)] = group
    ordered = [dict(sorted(places.items())) for places in found.values()]
    firsts = [next(iter(places.values())) for places in ordered]
    names = labels([group.settings for group in firsts])  # these have the same, least, numbers
    return [Series(name, first.estimator, p) for name, first, p in zip(names, firsts, ordered, strict=True)]


def over_numbers(comparison: Comparison) -> list[Curves]:
    """A figure for each section in which one or two numbers were swept."""
    drawn: list[Curves] = []
    for section in comparison.sections:
        if numbers := swept_numbers(section):
            found = series(section, numbers)
            figure = (_lines if len(numbers) == 1 else _maps)(section, found, numbers)
            name = "loss_over_" + re.sub(r"[^\w.-]", "_", "_".join(numbers), flags=re.ASCII)[:80]
            name += f"_{len(drawn) + 1}" * any(other.name == name for other in drawn)
            drawn.append(Curves(name, f"Loss over {printable(' and '.join(numbers))}", figure))
    return drawn


def _lines(section: Section, found: list[Series], numbers: list[str]) -> Figure:
    """The losses over one number; beside them, where some estimator relaxes, the relaxed and the unrelaxed one."""
    gaps = [group.mean("train/relaxation_gap") for one in found for group in one.places.values()]
    relaxed = any(gap != 0 and not math.isnan(gap) for gap in gaps)
    figure = Figure(figsize=(11 if relaxed else 8, max(3.8, 0.8 + 0.22 * len(found))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + relaxed, squeeze=False)[0]
    looks = [look(index, one.estimator) for index, one in enumerate(found)]
    handles = [
        _line(panels[0], one, section.selection, style | {"linestyle": "-"})
        for one, style in zip(found, looks, strict=True)
    ]
    panels[0].set_ylabel(f"{OUTCOMES[section.selection]} ({section.unit})", color=INK)
    if relaxed:
        for one, style in zip(found, looks, strict=True):
            _line(panels[1], one, "train/loss_unrelaxed", style | {"linestyle": "-"})
            if any(group.mean("train/relaxation_gap") for group in one.places.values()):
                _line(panels[1], one, "train/loss", style | {"linestyle": "--", "markerfacecolor": "none"})
        panels[1].set_ylabel(f"training loss ({section.unit})", color=INK)
        panels[1].set_title("dashed: relaxed, as optimized; solid: unrelaxed", color=INK, fontsize=9)
    places = sorted({x for one in found for (x,) in one.places})
    for axes in panels:
        if places[0] > 0 and places[-1] / places[0] >= 10:
            axes.set_xscale("log")
        if len(places) <= FEW:
            axes.set_xticks(places, [show_value(x, numbers[0]) for x in places])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(printable(numbers[0]), color=INK).set_parse_math(False)
        ink(axes)
        axes.grid(alpha=0.3)
    title = figure.suptitle(f"{section.title}; bar: ± standard error over seeds", color=INK, fontsize=10)
    names = [legend_text(one.name) for one in found]
    legend = figure.legend(
        handles=handles, labels=names, frameon=False, fontsize=8, labelcolor=INK, loc="outside right center"
    )
    for text in (*legend.get_texts(), title):
        text.set_parse_math(False)
    return figure


def _line(axes: Axes, one: Series, metric: str, style: dict) -> Any:
    points = [(x, *mean_and_error(group.metric(metric))) for (x,), group in one.places.items()]
    places, means, errors = (np.array(column, float) for column in zip(*points, strict=True))
    return axes.errorbar(places, means, yerr=np.nan_to_num(errors), linewidth=1.6, markersize=5, capsize=2, **style)


def _maps(section: Section, found: list[Series], numbers: list[str]) -> Figure:
    """The loss over two numbers, a map for each series; white: there is no such run."""
    found = found[:MOST]
    columns, rows = (sorted({place[axis] for one in found for place in one.places}) for axis in (0, 1))
    tables = [[[_mean(one, (x, y), section.selection) for x in columns] for y in rows] for one in found]
    norm = Normalize(np.nanmin(tables), np.nanmax(tables))
    across = min(len(found), 3)
    size = (max(4.5, 1.2 + 0.75 * len(columns)) * across, max(2.6, 1.2 + 0.42 * len(rows)) * -(-len(found) // across))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-len(found) // across), across, squeeze=False).flat
    for axes, one, table in zip(panels, found, tables, strict=False):
        heat = axes.imshow(table, cmap="viridis_r", norm=norm, aspect="auto", origin="lower")
        for row, values in enumerate(table):
            for column, value in enumerate(values):
                dark = norm(value) > 0.5  # viridis_r ends in its darkest color
                axes.text(column, row, "" if math.isnan(value) else f"{value:.1f}", ha="center", va="center",
                          fontsize=8, color="white" if dark else "black")  # fmt: skip
        axes.set_xticks(range(len(columns)), [show_value(x, numbers[0]) for x in columns], fontsize=8)
        axes.set_yticks(range(len(rows)), [show_value(y, numbers[1]) for y in rows], fontsize=8)
        axes.set_xlabel(printable(numbers[0]), color=INK).set_parse_math(False)
        axes.set_ylabel(printable(numbers[1]), color=INK).set_parse_math(False)
        axes.set_title(legend_text(one.name), color=INK, fontsize=10, loc="left").set_parse_math(False)
        ink(axes)
    for axes in [*panels][len(found) :]:
        axes.set_visible(False)
    bar = figure.colorbar(heat, ax=[*figure.axes])
    bar.set_label(OUTCOMES[section.selection], color=INK)
    ink(bar.ax)
    title = f"{section.title}; {section.unit}, mean over seeds"
    figure.suptitle(title, color=INK, fontsize=10).set_parse_math(False)
    return figure


def _mean(one: Series, place: tuple[float, ...], metric: str) -> float:
    return one.places[place].mean(metric) if place in one.places else math.nan
