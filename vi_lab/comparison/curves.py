"""The curves of a comparison: loss against epochs, wall time and decoder evaluations, and the variance of the gradient
by step where runs were audited while they trained; means over seeds.

Matplotlib's figures without pyplot: no global state, and the same bytes each time.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib
import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vi_lab.comparison.compare import Comparison, Section
from vi_lab.comparison.groups import Group
from vi_lab.comparison.stats import mean_and_error
from vi_lab.errors import ViLabError
from vi_lab.figures.style import Column, dot_rows, look
from vi_lab.runs.files import write_bytes

INK = "#010203"  # text and axes; stands for the page's own color in SVG
AXES = {
    "epoch": ("epoch", "loss_by_epoch"),
    "seconds": ("wall time (s, evaluation included)", "loss_by_time"),
    "evaluations": ("decoder evaluations (images x evaluations per step)", "loss_by_evaluations"),
}
VARIANCE = "audit/variance"


@dataclass(frozen=True)
class Curves:
    """One figure, with a panel for each section."""

    name: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """An `<svg>` element for a page; texts follow the page's color. Matplotlib escapes them."""
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's fonts may have it
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        text = buffer.getvalue()
        return text[text.index("<svg") :].replace(INK, "currentColor")

    def write(self, folder: Path) -> Path:
        """`folder/NAME.png`, whole or not at all."""
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            self.figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
        path = folder / f"{self.name}.png"
        write_bytes(path, file.getvalue())
        return path


def curve(group: Group, loss: str, x: str) -> pandas.DataFrame:
    """Mean and standard error of a loss over seeds: columns x, mean, error; one row per epoch that all seeds have.

    Empty where the runs did not record it.
    """
    points: dict[float, list[tuple[float, float]]] = {}
    with suppress(ViLabError):
        for record in group.records:
            for epoch, row in record.history.items():
                if x in row and loss in row:
                    points.setdefault(epoch, []).append((row[x], row[loss]))
    whole = [zip(*points[epoch], strict=True) for epoch in sorted(points) if len(points[epoch]) == len(group.records)]
    rows = [(fmean(xs), *mean_and_error(losses)) for xs, losses in whole]
    return pandas.DataFrame(rows, columns=[x, "mean", "error"])


def figures(comparison: Comparison) -> list[Curves]:
    """The figures for which some run has the numbers."""
    groups = comparison.groups
    looks = {group.name: look(index, group.estimator) for index, group in enumerate(groups)}
    result = []
    for x, (label, name) in AXES.items():
        panels = []
        for section in comparison.sections:
            drawn = {g.name: table for g in section.groups if len(table := curve(g, _loss(section), x))}
            if drawn:
                panels.append((section, drawn))
        if panels:
            # a legend of many lines beside the axes needs the height
            heights = [max(3.8, 0.8 + 0.22 * len(drawn)) for _, drawn in panels]
            figure = Figure(figsize=(9, sum(heights)), layout="constrained")
            FigureCanvasAgg(figure)
            grid = figure.add_gridspec(len(panels), 2, height_ratios=heights, width_ratios=[2, 1])
            for place, (section, drawn) in enumerate(panels):
                if any(len(table) > 1 for table in drawn.values()):
                    _panel(figure.add_subplot(grid[place, :]), section, drawn, looks, x, label)
                elif x == "epoch":
                    _dots([figure.add_subplot(grid[place, :])], section, drawn, looks, x, label)
                else:
                    left = figure.add_subplot(grid[place, 0])
                    right = figure.add_subplot(grid[place, 1], sharey=left)
                    _dots([left, right], section, drawn, looks, x, label)
            result.append(Curves(name, f"Loss against {label}", figure))
    return [*result, *_variances(comparison, looks)]


def _variances(comparison: Comparison, looks: dict[str, dict]) -> list[Curves]:
    """The variance of the gradient over training, as `audit.every_n_steps` has measured it; none where no run has."""
    panels = []
    for section in comparison.sections:
        found = {g.name: curve(g, VARIANCE, "step") for g in section.groups}
        # an exact sum has none, and a logarithm neither
        if drawn := {name: table for name, table in found.items() if (table["mean"] > 0).any()}:
            panels.append((section, drawn))
    if not panels:
        return []
    heights = [max(3.8, 0.8 + 0.22 * len(drawn)) for _, drawn in panels]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for place, (section, drawn) in enumerate(panels):
        axes = figure.add_subplot(grid[place])
        axes.set_yscale("log")
        _lines(axes, section, drawn, looks, "step", "step")
        axes.set_ylabel("variance of the gradient (trace)", color=INK)
    return [Curves("gradient_variance", "Variance of the gradient, at q's logits, against steps", figure)]


def _loss(section: Section) -> str:
    return section.selection if section.selection == "val/loss" else "train/loss_unrelaxed"


def _panel(
    axes: Axes, section: Section, drawn: dict[str, pandas.DataFrame], looks: dict[str, dict], x: str, label: str
) -> None:
    _lines(axes, section, drawn, looks, x, label)
    if x == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ends = [table[x].iloc[-1] for table in drawn.values()]
    if x == "evaluations" and min(ends) > 0 and max(ends) / min(ends) > 30:
        axes.set_xscale("log")
    if x == "evaluations":
        axes.xaxis.set_major_formatter(EngFormatter())  # 50 k, 1 M
    axes.set_ylabel(_loss_label(section), color=INK)


def _lines(
    axes: Axes, section: Section, drawn: dict[str, pandas.DataFrame], looks: dict[str, dict], x: str, label: str
) -> None:
    """A line with a band for each group, and their legend."""
    lines = []
    shade = 0.2 if len(drawn) <= 10 else 0.08  # many bands lie above one another
    for name, table in drawn.items():
        every = max(1, len(table) // 12)
        lines += axes.plot(table[x], table["mean"], linewidth=1.6, markersize=5, markevery=every, **looks[name])
        if table["error"].notna().any():
            low, high = table["mean"] - table["error"], table["mean"] + table["error"]
            axes.fill_between(table[x], low, high, color=looks[name]["color"], alpha=shade, linewidth=0)
    axes.set_xlabel(label, color=INK)
    axes.set_title(f"{section.title}; band: ± standard error over seeds", color=INK, fontsize=10, loc="left")
    ink(axes)
    axes.grid(alpha=0.3)
    legend = axes.legend(lines, map(legend_text, drawn), frameon=False, fontsize=8, labelcolor=INK,
                         loc="center left", bbox_to_anchor=(1.01, 0.5))  # fmt: skip
    for text in (*legend.get_texts(), axes.title):
        text.set_parse_math(False)  # a dollar in a name is a dollar


def _dots(
    panels: list[Axes], section: Section, drawn: dict[str, pandas.DataFrame], looks: dict[str, dict], x: str, label: str
) -> None:
    """Groups of one epoch, of which lines would be points above one another: a row for each, the best on top.

    Args:
        panels: the first one for the loss, a second one, where there is, for x.
    """
    groups = sorted(drawn, key=lambda name: drawn[name]["mean"].iloc[0])
    losses, errors, places = ([float(drawn[name][key].iloc[0]) for name in groups] for key in ("mean", "error", x))
    wide = min(places) > 0 and max(places) / min(places) > 30
    columns = [
        Column(_loss_label(section), losses, errors=errors),
        Column(label.replace(" (", "\n("), places, log=wide),
    ]
    dot_rows(panels, [legend_text(name) for name in groups], columns[: len(panels)], [looks[g] for g in groups])
    for axes in panels:
        ink(axes)
        axes.xaxis.label.set_color(INK)
        for text in axes.get_yticklabels():
            text.set_parse_math(False)
    if x == "evaluations":
        panels[-1].xaxis.set_major_formatter(EngFormatter())
    title = f"{section.title}; one epoch, bar: ± standard error over seeds"
    panels[0].set_title(title, color=INK, fontsize=10, loc="left").set_parse_math(False)


def _loss_label(section: Section) -> str:
    if section.toy:
        return "expected cost, exact" if _loss(section) == "val/loss" else "cost in training"
    return f"{'validation' if _loss(section) == 'val/loss' else 'training, unrelaxed'} loss ({section.unit})"


def ink(axes: Axes) -> None:
    """Axes in the ink of the page."""
    axes.tick_params(which="both", color=INK, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))


def legend_text(name: str) -> str:
    """The name of a group as a label."""
    # matplotlib leaves labels out that begin with an underscore
    text = f" {name}" if name.startswith("_") else name
    return text if len(text) <= 60 else f"{text[:59]}…"
