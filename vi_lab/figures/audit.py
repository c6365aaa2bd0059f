"""The figures of `vi-lab audit`: bias, variance and cost of estimators, and the simplex of relaxed samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from vi_lab.distributions import one_hot_categorical, relaxed_sample
from vi_lab.figures.style import COLORS, Column, chart, dot_rows, look, render, side_legend, write_png


def write_figures(folder: Path, rows: list[dict], sweep: list[dict]) -> list[Path]:
    """The figures of `vi-lab audit`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    # the noiseless exact sum would stretch the axes over ten decades
    logits = [row for row in rows if row["group"] == "logits" and row["variance"] > 0]
    logits = [row for row in logits if not row["target"].startswith("bound")]
    figures = {"simplex": simplex()}
    if logits:
        figures |= {"bias_variance": bias_variance(logits), "error_cost": error_cost(logits)}
    if sweep:
        figures["temperature"] = temperature_sweep(sweep)
    return [write_png(folder / f"{name}.png", render(figure)) for name, figure in figures.items()]


def _point(index: int, row: dict) -> dict[str, Any]:
    """How an estimator's point looks: filled where it is unbiased by design."""
    filled = {} if row["unbiased"] else {"markerfacecolor": "white"}
    return {**look(index, row["estimator"]), "linestyle": "none", "markersize": 7, "label": row["estimator"], **filled}


def bias_variance(rows: list[dict]) -> Figure:
    """Relative bias with its interval and, beside it, the variance: an estimator to a row, the least bias on top.
    Biases within their noise sit at the left edge, where in a plane they would cover each other."""
    floor = 1e-3
    looks = {row["estimator"]: _point(index, row) for index, row in enumerate(rows)}
    rows = sorted(rows, key=lambda row: (max(row["relative_bias"], floor), row["variance"]))
    figure, panels = chart(1, 2, width=8, height=1.3 + 0.22 * len(rows), sharey=True, width_ratios=[2, 1])
    bias, low, high = ([max(row[f"relative_bias{end}"], floor) for row in rows] for end in ("", "_low", "_high"))
    columns = (
        Column(f"relative bias, with 95 % interval\n(below {floor:g}: drawn at {floor:g})", bias, True),
        Column("variance of the gradient\n(trace)", [max(row["variance"], 1e-12) for row in rows], True),
    )
    styles = [looks[row["estimator"]] for row in rows]
    panels[0].hlines(range(len(rows)), low, high, colors=[style["color"] for style in styles], linewidth=1.6)
    dot_rows(panels, [row["estimator"] for row in rows], columns, styles)
    panels[0].set_xlim(left=floor * 0.8)
    figure.suptitle("bias and variance, at q's logits; filled: unbiased by design", fontsize=10)
    return figure


def error_cost(rows: list[dict]) -> Figure:
    """Mean squared error of one draw and, beside it, what it costs: an estimator to a row, the least error on top."""
    looks = {row["estimator"]: _point(index, row) for index, row in enumerate(rows)}
    rows = sorted(rows, key=lambda row: row["mean_squared_error"])
    figure, panels = chart(1, 2, width=8, height=1.3 + 0.22 * len(rows), sharey=True, width_ratios=[2, 1])
    columns = (
        Column("mean squared error of the gradient", [max(row["mean_squared_error"], 1e-12) for row in rows], True),
        Column("decoder evaluations\nper image and step", [row["decoder_evaluations"] for row in rows], True),
    )
    dot_rows(panels, [row["estimator"] for row in rows], columns, [looks[row["estimator"]] for row in rows])
    figure.suptitle("error and cost, at q's logits; filled: unbiased by design", fontsize=10)
    return figure


def temperature_sweep(sweep: list[dict]) -> Figure:
    """Relative bias and variance over the temperature."""
    figure, (left, right) = chart(1, 2, width=11, height=4.5)
    for index, name in enumerate(dict.fromkeys(row["estimator"] for row in sweep)):
        rows = sorted((row for row in sweep if row["estimator"] == name), key=lambda row: row["temperature"])
        temperatures = [row["temperature"] for row in rows]
        left.plot(temperatures, [max(row["relative_bias"], 0.01) for row in rows], label=name, **look(index, name))
        right.plot(temperatures, [max(row["variance"], 1e-12) for row in rows], label=name, **look(index, name))
    for axes, label in ((left, "relative bias"), (right, "variance of the gradient (trace)")):
        axes.set_xscale("log")
        axes.set_xticks(
            sorted({row["temperature"] for row in sweep}), [f"{t:g}" for t in sorted({r["temperature"] for r in sweep})]
        )
        axes.minorticks_off()
        axes.set_xlabel("temperature")
        axes.set_ylabel(label)
    left.set_ylabel("relative bias (below 0.01: drawn at 0.01)")
    left.set_yscale("log")
    right.set_yscale("log")
    left.grid(alpha=0.3)
    figure.suptitle("bias and variance over the temperature, at q's logits", fontsize=10)
    return side_legend(figure, right)


def simplex(temperatures: tuple[float, ...] = (0.1, 0.5, 1.0, 5.0)) -> Figure:
    """Gumbel-softmax samples of three classes on the simplex, from nearly one-hot to nearly uniform."""
    logits = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    figure, panels = chart(1, len(temperatures), width=3 * len(temperatures), height=3.4)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    for axes, temperature in zip(panels, temperatures, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            q = torch.distributions.Independent(one_hot_categorical(logits), 1)
            points = relaxed_sample(q, temperature, 1500)[:, 0, 0] @ corners
        axes.fill(*corners.T.numpy(), facecolor="none", edgecolor=COLORS["gray"], linewidth=1)
        axes.scatter(*points.T.numpy(), s=3, color=COLORS["blue"], alpha=0.35, linewidths=0)
        for corner, name, below in zip(corners, ("p = 0.5", "p = 0.3", "p = 0.2"), (1, 1, 0), strict=True):
            offset = (0, -12 if below else 5)
            axes.annotate(name, corner.tolist(), offset, textcoords="offset points", ha="center", fontsize=8)
        axes.set_title(f"temperature {temperature:g}", fontsize=10)
        axes.set_aspect("equal")
        axes.margins(0.12)
        axes.set_axis_off()
    figure.suptitle("1500 Gumbel-softmax samples of a variable with three classes", fontsize=10)
    return figure
