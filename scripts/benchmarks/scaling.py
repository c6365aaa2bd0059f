"""How the time of a bare step grows with the samples S, the variables L, the classes C and the batch B.

One of them is varied, the others stay at the config's values; the settings take turns. A number is the slope of
log(ms) over log(value), fitted by least squares: 1 is proportional, 0 does not depend. A dash says that the estimator
has no such setting, or only one that it can take. A block ends early for slow estimators, after half a second or so.
"""

from __future__ import annotations

import statistics

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from omegaconf import DictConfig

from benchmarks.common import Loop, Options, Result, compose, now, take_turns
from benchmarks.estimators import ESTIMATORS as ALL
from benchmarks.loops import bare
from vi_lab.errors import UserError
from vi_lab.figures.style import chart, look

ROUNDS, STEPS, ESTIMATORS = 5, 20, ALL
AXES = {
    "S": ("samples", (1, 2, 4, 8)),
    "L": ("latent.variables", (10, 20, 40, 80)),
    "C": ("latent.classes", (4, 8, 16, 32)),
    "B": ("data.batch_size", (50, 100, 200, 400)),
}
GAUSSIAN = {"L": ("latent.dim", (10, 20, 40, 80))}
BLOCK = 0.5  # seconds


def measure(options: Options) -> Result:
    rows, curves = [], {}
    for name in options.estimators:
        row = [f"`{name}`"]
        for axis in AXES:
            values, seconds = growth(name, axis, options)
            curves[name, axis] = values, seconds
            slope = np.polyfit(np.log(values), np.log(seconds), 1)[0] if len(values) > 1 else None
            row.append("—" if slope is None else f"{slope:.2f}")
        rows.append(row)
    return Result(["estimator", *AXES], rows, figure(curves))


def growth(name: str, axis: str, options: Options) -> tuple[list[int], list[float]]:
    """The values of an axis that the estimator takes, and the seconds of a step at each."""
    standard = compose(f"estimator={name}", *options.overrides)
    key, values = GAUSSIAN.get(axis, AXES[axis]) if "dim" in standard.latent else AXES[axis]
    loops: dict[int, Loop] = {}
    for value in values:
        try:
            config = compose(f"estimator={name}", *options.overrides, f"{key}={value}")
            loops[value] = paced(config, options.steps)
        except (UserError, ValueError):  # no such setting, or more states than the estimator can sum over
            continue
    times = take_turns({str(value): loop for value, loop in loops.items()}, options.rounds)
    return list(loops), [statistics.median(found) for found in times.values()]


def paced(config: DictConfig, steps: int) -> Loop:
    """A bare loop of so many steps as fit into a block."""
    step = bare(config, 1)
    step()
    taken = step()
    count = max(1, min(steps, int(BLOCK / taken)))

    def block() -> float:
        start = now()
        for _ in range(count):
            step()
        return (now() - start) / count

    return block


def figure(curves: dict[tuple[str, str], tuple[list[int], list[float]]]) -> Figure:
    """Milliseconds over each of the four, both logarithmic."""
    drawn, panels = chart(1, len(AXES), width=12.8, height=4.8, sharey=True)
    names = list(dict.fromkeys(name for name, _ in curves))
    for axes, axis in zip(panels, AXES, strict=True):
        for index, name in enumerate(names):
            values, seconds = curves[name, axis]
            if len(values) > 1:
                axes.loglog(values, [1e3 * each for each in seconds], label=name, markersize=4, **look(index, name))
        shown = sorted({value for name in names for value in curves[name, axis][0]})
        axes.set_xticks(shown, map(str, shown))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(axis)
        axes.grid(alpha=0.3)
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("ms per step")
    handles = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawn.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=7)
    return drawn
