"""What all figures share: one palette, one marker per estimator, and how a figure becomes a file.

Matplotlib without pyplot, so that drawing changes nothing of a notebook's backend, state or open figures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from PIL import Image

from vi_lab.runs.files import write_bytes
from vi_lab.schema import CONFIG_DIR

# Okabe and Ito's colors, which the color-blind can tell apart
COLORS = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "gray": "#666666", "yellow": "#F0E442"}
# Petroff's ten (arXiv 2107.02270), made for scatter plots under color-vision deficiency; ordered so that digits that
# lie close together in latent space (3, 5, 8; 4, 7, 9) are far apart in color
TEN = ("#717581", "#a96b59", "#94a4a2", "#ffa90e", "#832db6", "#3f90da", "#e76300", "#b9ac70", "#bd1f01", "#92dadd")
DIVERGING = LinearSegmentedColormap.from_list(
    "less_and_more", ["#002B45", COLORS["blue"], "white", COLORS["orange"], "#541F00"]
)
CLASS_MARKERS = "os^vDPX<>p"
DPI = 150


def chart(rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 4.2, **options: Any) -> tuple:
    """A figure of `width` x `height` inches and its axes, as `pyplot.subplots` gives them."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def render(figure: Figure) -> np.ndarray:
    """The figure's pixels: (H, W, 3) uint8."""
    canvas = figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """Write (H, W, 3) uint8 pixels, whole or not at all."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    write_bytes(path, file.getvalue())
    return path


def reduced(pixels: np.ndarray, width: int = 950) -> np.ndarray:
    """(H, W, 3) for TensorBoard: where it is wider than `width`, the mean of each four pixels, rounded up."""
    return np.asarray(Image.fromarray(pixels).reduce(2)) if pixels.shape[1] > width else pixels


# --- lines and points of several estimators --------------------------------------------------------------------------


CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
"""Okabe and Ito (2008), without the yellow, which is faint on white, and without black, which is the text."""
MARKERS = "os^vDPX<>ph*8dH"
LINES = ("-", "--", "-.", ":")


@cache
def _estimators() -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / "estimator").glob("*.yaml"))


def look(index: int, estimator: str) -> dict[str, str]:
    """Color, marker and line of one of several things in a figure: told apart without color too.

    An estimator keeps its marker in every figure; colors are dealt out in the order of the figure, and the line changes
    where they begin anew.

    Args:
        index: of the thing in its figure.
        estimator: its estimator's name; one's own ones take the marker of their index.
    """
    known = _estimators()
    marker = known.index(estimator) if estimator in known else index
    return {
        "color": CYCLE[index % len(CYCLE)],
        "marker": MARKERS[marker % len(MARKERS)],
        "linestyle": LINES[index // len(CYCLE) % len(LINES)],
    }


def side_legend(figure: Figure, axes: Axes) -> Figure:
    """A grid, and the legend to the right of the axes."""
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


class Column(NamedTuple):
    """One panel of `dot_rows`."""

    label: str
    values: Sequence[float]
    log: bool = False
    errors: Sequence[float] | None = None


def dot_rows(panels: Sequence[Axes], names: Sequence[str], columns: Sequence[Column], looks: Sequence[dict]) -> None:
    """A row for each name, from the top downward, and its values side by side: nothing can cover anything.

    Args:
        panels: one for each column, of shared rows.
        looks: of the names, as `look` gives them; what else `errorbar` takes may be among them.
    """
    rows = range(len(names))
    for axes, column in zip(panels, columns, strict=True):
        errors = column.errors or [0.0] * len(names)
        for row, value, error, style in zip(rows, column.values, errors, looks, strict=True):
            bar = error if error > 0 else None  # of one seed there is none
            axes.errorbar(value, row, xerr=bar, elinewidth=1.6, zorder=3, **{**style, "linestyle": "none"})
        if column.log:
            axes.set_xscale("log")
            if max(column.values) < 100 * min(column.values):  # fewer than two decades: the powers of ten do not do
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(column.label)
        axes.set_yticks(rows, names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        for text in axes.get_yticklabels():
            text.set_visible(axes is panels[0])
        axes.grid(alpha=0.3)
