"""The curves of a comparison: loss against epochs, wall time and decoder evaluations; means over seeds.

Matplotlib's figures without pyplot: no global state, and the same bytes each time.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vi_lab.comparison.compare import Comparison, Section
from vi_lab.comparison.groups import Group
from vi_lab.errors import ViLabError
from vi_lab.figures.style import look
from vi_lab.runs.files import write_bytes

INK = "#010203"  # text and axes; stands for the page's own color in SVG
AXES = {
    "epoch": ("epoch", "loss_by_epoch"),
    "seconds": ("wall time (s, evaluation included)", "loss_by_time"),
    "evaluations": ("decoder evaluations (images x evaluations per step)", "loss_by_evaluations"),
}


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
    try:
        histories = [record.history.reset_index()[["epoch", x, loss] if x != "epoch" else [x, loss]].dropna()
                     for record in group.records]  # fmt: skip
    except (ViLabError, KeyError):
        return pandas.DataFrame({x: [], "mean": [], "error": []})
    epochs = pandas.concat(histories).groupby("epoch")
    table = pandas.DataFrame({"mean": epochs[loss].mean(), "error": epochs[loss].sem(), "seeds": epochs[loss].count()})
    table[x] = table.index if x == "epoch" else epochs[x].mean()
    return table.loc[table["seeds"] == len(histories), [x, "mean", "error"]]


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
            axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
            for ax, (section, drawn) in zip(axes, panels, strict=True):
                _panel(ax, section, drawn, looks, x, label)
            result.append(Curves(name, f"Loss against {label}", figure))
    return result


def _loss(section: Section) -> str:
    return section.selection if section.selection == "val/loss" else "train/loss_unrelaxed"


def _panel(
    axes: Axes, section: Section, drawn: dict[str, pandas.DataFrame], looks: dict[str, dict], x: str, label: str
) -> None:
    lines = []
    for name, table in drawn.items():
        every = max(1, len(table) // 12)
        lines += axes.plot(table[x], table["mean"], linewidth=1.6, markersize=5, markevery=every, **looks[name])
        if table["error"].notna().any():
            low, high = table["mean"] - table["error"], table["mean"] + table["error"]
            axes.fill_between(table[x], low, high, color=looks[name]["color"], alpha=0.2, linewidth=0)
    if x == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends = [table[x].iloc[-1] for table in drawn.values()]
    if x == "evaluations" and min(ends) > 0 and max(ends) / min(ends) > 30:
        axes.set_xscale("log")
    if x == "evaluations":
        axes.xaxis.set_major_formatter(EngFormatter())  # 50 k, 1 M
    split = "validation" if _loss(section) == "val/loss" else "training, unrelaxed"
    axes.set_xlabel(label, color=INK)
    axes.set_ylabel(f"{split} loss (nats per image)", color=INK)
    axes.set_title(f"{section.title}; band: ± standard error over seeds", color=INK, fontsize=10, loc="left")
    axes.tick_params(which="both", color=INK, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(alpha=0.3)
    legend = axes.legend(lines, map(_legend_text, drawn), frameon=False, fontsize=8, labelcolor=INK,
                         loc="center left", bbox_to_anchor=(1.01, 0.5))  # fmt: skip
    for text in (*legend.get_texts(), axes.title):
        text.set_parse_math(False)  # a dollar in a name is a dollar


def _legend_text(name: str) -> str:
    # matplotlib leaves labels out that begin with an underscore
    text = f" {name}" if name.startswith("_") else name
    return text if len(text) <= 60 else f"{text[:59]}…"
