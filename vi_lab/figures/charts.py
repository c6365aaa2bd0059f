"""Charts of a run: numbers in, a matplotlib figure out. What is drawn of a model is computed in `figures.model`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vi_lab.distributions import perplexity
from vi_lab.figures.style import CLASS_MARKERS, COLORS, DIVERGING, TEN, chart

# --- losses ---------------------------------------------------------------------------------------------------


def history(rows: list[dict], final: dict[str, float] | None = None) -> Figure:
    """Losses at samples of the true posterior over epochs: train, validation and, where measured, test.

    Args:
        rows: one per epoch, as in `metrics.csv`.
        final: the metrics at the end; its test loss is marked.
    """
    figure, axes = chart()
    for name, label, color, style in (
        ("train/loss_unrelaxed", "train", "blue", "-"),
        ("val/loss", "validation", "orange", "--"),
        ("test/loss", "test", "green", ":"),
    ):
        _curve(axes, rows, name, style, color=COLORS[color], label=label)
    if rows and final and "test/loss" in final and not any("test/loss" in row for row in rows):
        axes.plot(
            rows[-1]["epoch"], final["test/loss"], "*", color=COLORS["green"], markersize=11, label="test, at the end"
        )
    return _over_epochs(figure, axes, "loss at samples of the true posterior")


def gradient_variance(rows: list[dict]) -> Figure:
    """Variance of the gradient with respect to q's logits, and what it is the noise of, by step.

    Args:
        rows: as in `metrics.csv`, some with audit/variance.
    """
    figure, axes = chart()
    audited = [row for row in rows if "audit/variance" in row]
    steps = [row["step"] for row in audited]
    marker = "o" if len(audited) < 15 else None
    lines = {
        "variance (trace)": ([row["audit/variance"] for row in audited], COLORS["blue"], "-"),
        "squared norm of the exact gradient": (
            [row["audit/exact_squared_norm"] for row in audited], COLORS["gray"], ":",
        ),
    }  # fmt: skip
    for label, (values, color, style) in lines.items():
        axes.plot(steps, values, style, marker=marker, markersize=4, color=color, label=label)
    if any(value > 0 for values, *_ in lines.values() for value in values):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_title("variance of one draw of the gradient, at q's logits", fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def expected_cost(rows: list[dict]) -> Figure:
    """The exact expected cost of a toy problem by epoch, and what training saw of it."""
    figure, axes = chart()
    _curve(axes, rows, "train/loss", color=COLORS["gray"], label="mean of the costs seen in the epoch")
    _curve(axes, rows, "val/loss", color=COLORS["blue"], label="exact, at the end of the epoch")
    return _over_epochs(figure, axes, "expected cost", ylabel="cost")


def relaxation(rows: list[dict]) -> Figure:
    """What is optimized against the loss of the model itself, the gap between them shaded; the temperature beneath."""
    temperature = any("temperature" in row for row in rows)
    panels: dict[str, Any] = {"height_ratios": [3, 1]} if temperature else {}
    figure, axes = chart(1 + temperature, sharex=True, height=5.2 if temperature else 4.2, **panels)
    top = axes[0] if temperature else axes
    epochs = [row["epoch"] for row in rows]
    relaxed = [row["train/loss"] for row in rows]
    unrelaxed = [row["train/loss_unrelaxed"] for row in rows]
    if relaxed == unrelaxed:
        _curve(top, rows, "train/loss", color=COLORS["blue"], label="train (at true samples: no gap)")
    else:
        _curve(top, rows, "train/loss_unrelaxed", color=COLORS["orange"], label="train, unrelaxed: at true samples")
        gap = {"color": COLORS["blue"], "alpha": 0.12, "label": "relaxation gap"}
        if len(rows) == 1:  # an area needs two epochs
            top.vlines(epochs, relaxed, unrelaxed, linewidth=6, **gap)
        else:
            top.fill_between(epochs, relaxed, unrelaxed, **gap)
        _curve(top, rows, "train/loss", color=COLORS["blue"], label="train, relaxed: what is optimized")
    if temperature:
        _curve(axes[1], rows, "temperature", color=COLORS["gray"])
        axes[1].set_ylim(0, 1.15 * max(row.get("temperature", 0) for row in rows))
        axes[1].set_ylabel("temperature")
        axes[1].set_xlabel("epoch")
        axes[1].grid(alpha=0.3)
    return _over_epochs(figure, top, "relaxed and unrelaxed training loss", xlabel="" if temperature else "epoch")


def _curve(axes: Axes, rows: list[dict], name: str, style: str = "-", **options: Any) -> None:
    """One metric over the epochs that have it."""
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), style, marker="o" if len(rows) < 15 else None, markersize=4, **options)


def _over_epochs(
    figure: Figure, axes: Axes, title: str, xlabel: str = "epoch", ylabel: str = "nats per image"
) -> Figure:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = axes.get_xlim()
    if high - low < 1:  # a single epoch
        axes.set_xlim((low + high) / 2 - 0.5, (low + high) / 2 + 0.5)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


# --- latent space ---------------------------------------------------------------------------------------------


LEGEND = 20
"""So many classes are told apart."""


def scatter(points: np.ndarray, labels: np.ndarray, title: str, axis: str = "") -> Figure:
    """Points of a plane by class, told apart by color, by marker and by the class's number where it is densest. One
    class is as good as none, and of too many nobody could tell which is which: then the points are alike.

    Args:
        points: (N, 2).
        labels: (N,) classes from 0 on; colors and markers repeat after ten.
        axis: what the axes are ("z" becomes z₁ and z₂); without it they have no scale.
    """
    spans = np.ptp(points, axis=0)
    longest = float(spans.max()) or 1.0
    # one unit is as long on both axes, so that only a frame of the points' shape is filled by them
    across, up = 6.6 * np.maximum(spans / longest, 0.5)
    width = max(across + (0.8 if axis else 0.2), 5.6)  # the title and the legend need so much
    figure, axes = chart(width=width, height=up + (1.0 if axis else 0.6))
    figure.set_layout_engine("compressed")
    classes = np.unique(labels)
    if not 1 < len(classes) <= LEGEND:
        axes.scatter(*points.T, s=11, alpha=0.8, color=TEN[0], linewidths=0)
        classes = classes[:0]
    for k in classes:
        style = {"color": TEN[k % 10], "marker": CLASS_MARKERS[k % 10], "linewidths": 0}
        axes.scatter(*points[labels == k].T, s=11, alpha=0.8, label=str(k), **style)
    axes.set_aspect("equal", adjustable="box")
    axes.margins(0.02)
    places = label_places(points, labels, 0.065 * longest) if len(classes) else np.empty((0, 2))
    for k, place in zip(classes, places, strict=True):
        box = {"boxstyle": "circle,pad=0.25", "facecolor": TEN[k % 10], "edgecolor": "white", "linewidth": 1.2}
        ink = "white" if k in (0, 4, 8) else "black"  # whichever stands out against the class's color
        axes.annotate(str(k), place, ha="center", va="center", fontsize=12, weight="bold", color=ink, bbox=box)
    axes.set_title(title, fontsize=10)
    if axis:
        axes.set_xlabel(f"{axis}₁")
        axes.set_ylabel(f"{axis}₂")
        axes.grid(alpha=0.3)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    legend = {"frameon": False, "fontsize": 9, "markerscale": 2, "handletextpad": 0, "columnspacing": 0.8}
    if len(classes):
        figure.legend(loc="outside lower center", ncols=min(len(classes), 10), **legend)
    return figure


def label_places(points: np.ndarray, labels: np.ndarray, distance: float) -> np.ndarray:
    """A point of each class to label it by, where the class is densest: (classes, 2).

    No two are nearer than `distance` unless a class has no point farther from those of the classes before it.

    Args:
        points: (N, 2).
        labels: (N,); the classes come in their order.
        distance: also the radius in which points are counted.
    """
    near = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) < distance
    places = np.empty((0, 2))
    for k in np.unique(labels):
        own = labels == k
        density = near[own][:, own].sum(1)
        gaps = np.hypot(*(points[own][:, None] - places[None]).transpose(2, 0, 1)).min(1, initial=distance)
        best = np.where(gaps >= distance, density, -np.inf).argmax() if (gaps >= distance).any() else gaps.argmax()
        places = np.vstack([places, points[own][best]])
    return places


def code_usage(states: Tensor) -> Figure:
    """How often each code of each variable is used: a heat map, with each variable's perplexity beside it.

    A perplexity of K means that all codes are used alike, or that the variable says nothing: so it stands beside that
    of q(z|x) for single images. The ratio of the two is exp(information), what the variable says of the image.

    Args:
        states: (N, L, K) posterior probabilities for N images. With K = 2 only the second state is shown, twenty
            variables to a row: the first is its complement.
    """
    states = states.detach().float().cpu()
    images, variables, codes = states.shape
    usage = states.mean(0)
    overall, single = perplexity(usage), perplexity(states).log().mean(0).exp()
    title = f"code usage over {images} test images; mean perplexity {overall.mean():.2f} of {codes}"
    if codes == 2:
        return _binary_usage(usage[:, 1], (overall / single).log(), title)
    options = {"sharey": True, "width_ratios": [max(2.0, min(codes / 5, 4.0)), 1]}
    figure, (axes, bars) = chart(1, 2, width=8, height=min(max(3.0, 1.5 + 0.18 * variables), 12), **options)
    ratio = (usage * codes).clamp(min=1e-6).log2().numpy()
    limit = float(np.clip(np.ceil(2 * np.abs(ratio).max()) / 2, 0.5, 3))
    heat = axes.imshow(ratio, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xlabel("code")
    axes.set_ylabel("variable")
    axes.set_xticks(range(0, codes, -(-codes // 20)))
    axes.set_yticks(range(0, variables, -(-variables // 40)))
    axes.tick_params(labelsize=8)
    bar = figure.colorbar(heat, ax=axes)
    bar.set_label(f"mean of q(code | x)\nin units of 1/{codes} (uniform use)", fontsize=8)
    powers = [n for n in (-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3) if abs(n) <= limit]
    labels = [f"{2**n:.3g}" for n in powers]
    if limit == 3:  # beyond which there may be more
        labels[0], labels[-1] = f"≤ {labels[0]}", f"≥ {labels[-1]}"
    bar.set_ticks(powers, labels=labels, fontsize=8)
    bars.barh(range(variables), overall.numpy(), color=COLORS["blue"], alpha=0.3, height=0.8, label="over all images")
    bars.barh(range(variables), single.numpy(), color=COLORS["blue"], height=0.4, label="of one image's q(z|x)")
    bars.set_xlim(0, codes)
    bars.set_xlabel("perplexity")
    bars.tick_params(labelsize=8)
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _binary_usage(ones: Tensor, information: Tensor, title: str) -> Figure:
    """Two heat maps of binary variables, twenty to a row."""
    columns = min(20, len(ones))
    rows = -(-len(ones) // columns)
    figure, panels = chart(2, width=7, height=max(4.0, 2.2 + 0.36 * rows), sharex=True)
    off = max((ones - 0.5).abs().max().item(), 0.05)
    for axes, values, limits, colors, label in (
        (panels[0], ones, (0.5 - off, 0.5 + off), DIVERGING, "mean of q(z = 1 | x)"),
        (panels[1], information, (0, max(information.max().item(), 0.01)), "viridis", "information (nats)"),
    ):
        folded = torch.full((rows * columns,), torch.nan)
        folded[: len(values)] = values
        heat = axes.imshow(
            folded.view(rows, columns).numpy(), cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto"
        )
        shown = range(0, rows, -(-rows // 12))
        axes.set_yticks(list(shown), [str(row * columns) for row in shown])
        axes.set_ylabel("first of the row")
        figure.colorbar(heat, ax=axes, label=label)
    panels[1].set_xticks(range(columns))
    panels[1].set_xlabel("variable (add the first of its row)")
    figure.suptitle(title, fontsize=10)
    return figure
