"""Figures of a search: what each trial came to, and how the loss depends on each setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vi_lab.figures.style import COLORS, chart, render, write_png

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Trials = Sequence["FrozenTrial"]
WIDEST = 3
"""Panels in a row."""
FAR = 4.0
"""A loss that is farther from the best than so many times the median is, is drawn at the edge: a scale for it would
hide all others."""


def write_figures(folder: Path, trials: Trials, keys: Sequence[str], importances: Mapping[str, float]) -> list[Path]:
    """`history.png` and `slices.png`, of the trials that have a loss."""
    figures = {"history": history(trials), "slices": slices(trials, keys, importances)}
    return [write_png(folder / f"{name}.png", render(figure)) for name, figure in figures.items()]


def _losses(trials: Trials) -> list[tuple[FrozenTrial, float, bool]]:
    """(trial, loss, whether it was pruned, when the loss is that of its last epoch)."""
    found = []
    for trial in trials:
        if trial.state.name == "COMPLETE" and trial.value is not None:
            found.append((trial, trial.value, False))
        elif trial.state.name == "PRUNED" and trial.intermediate_values:
            found.append((trial, trial.intermediate_values[max(trial.intermediate_values)], True))
    return [one for one in found if math.isfinite(one[1])]


def _limit(losses: Sequence[float]) -> float:
    best, median = min(losses), float(np.median(losses))
    return best + FAR * (median - best) if median > best else max(losses)


def history(trials: Trials) -> Figure:
    """The loss of each trial, and the best until then."""
    figure, axes = chart()
    found = _losses(trials)
    limit = _limit([loss for _, loss, _ in found])
    for pruned, marker, color, label in ((False, "o", "blue", "completed"), (True, "x", "gray", "pruned: at its end")):
        points = [(trial.number, min(loss, limit)) for trial, loss, was in found if was == pruned]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=COLORS[color], markersize=5, label=label)
    failed = [trial.number for trial in trials if trial.state.name == "FAIL"]
    if failed:
        axes.plot(failed, [limit] * len(failed), "v", color=COLORS["orange"], markersize=6, label="failed")
    completed = [(trial.number, loss) for trial, loss, pruned in found if not pruned]
    if completed:
        numbers, losses = zip(*sorted(completed), strict=True)
        axes.step(numbers, np.minimum.accumulate(losses), where="post", color=COLORS["green"], label="best so far")
    axes.set(title="validation loss of the trials", xlabel="trial", ylabel=_label(found, limit))
    axes.title.set_fontsize(10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def slices(trials: Trials, keys: Sequence[str], importances: Mapping[str, float]) -> Figure:
    """The loss over each key; the color is the trial's number, so that one sees where the search has gone."""
    found = _losses(trials)
    limit = _limit([loss for _, loss, _ in found])
    columns = min(WIDEST, len(keys))
    rows = -(-len(keys) // columns)
    figure, grid = chart(rows, columns, width=3.4 * columns + 0.8, height=3.0 * rows, sharey=True, squeeze=False)
    shown: Any = None
    for axes, key in zip(grid.flat, keys, strict=False):
        points = [(trial.params[key], min(loss, limit), trial, pruned) for trial, loss, pruned in found]
        kind = found[0][0].distributions[key]
        places = _places(axes, kind, [value for value, *_ in points])
        numbers = [trial.number for _, _, trial, _ in points]
        losses = [loss for _, loss, *_ in points]
        for was, marker in ((False, "o"), (True, "x")):
            chosen = [i for i, point in enumerate(points) if point[3] == was]
            if chosen:
                shown = axes.scatter(
                    [places[i] for i in chosen],
                    [losses[i] for i in chosen],
                    c=[numbers[i] for i in chosen],
                    vmin=0,
                    vmax=max(numbers),
                    marker=marker,
                    s=22,
                    cmap="viridis_r",
                )
        share = f" ({importances[key]:.0%} of the variance)" if key in importances else ""
        axes.set_title(f"{key}{share}", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(_label(found, limit))
    for axes in grid.flat[len(keys) :]:
        axes.set_axis_off()
    figure.colorbar(shown, ax=grid, label="trial", shrink=0.8)
    return figure


def _label(found: Sequence[tuple[FrozenTrial, float, bool]], limit: float) -> str:
    beyond = sum(loss > limit for _, loss, _ in found)
    return "val/loss, nats per image" + (f"\n({beyond} beyond the edge)" if beyond else "")


def _places(axes: Axes, kind: Any, values: Sequence[Any]) -> list[float]:
    """Where values stand on an axis: choices side by side."""
    choices = getattr(kind, "choices", None)
    if choices is not None:
        axes.set_xticks(
            range(len(choices)), [str(one) for one in choices], fontsize=8, rotation=30 * (len(choices) > 4)
        )
        axes.set_xlim(-0.5, len(choices) - 0.5)
        return [float(choices.index(value)) for value in values]
    if kind.log:
        axes.set_xscale("log")
    return [float(value) for value in values]
