"""Charts: numbers in, a matplotlib figure out. What is drawn of a model is computed in `vi_lab.pictures`.

matplotlib is imported where it is used (it costs 0.3 s) and without pyplot, so that drawing changes nothing of a
notebook's backend, state or open figures.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vi_lab.distributions import perplexity
from vi_lab.snapshot import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart
COLOURS = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "grey": "#666666", "yellow": "#F0E442"}
# Petroff's ten (arXiv 2107.02270), made for scatter plots under colour-vision deficiency; ordered so that digits that
# lie close together in latent space (3, 5, 8; 4, 7, 9) are far apart in colour
TEN = ("#717581", "#a96b59", "#94a4a2", "#ffa90e", "#832db6", "#3f90da", "#e76300", "#b9ac70", "#bd1f01", "#92dadd")
MARKERS = "os^vDPX<>p"
DPI = 150


def chart(rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 4.2, **options: Any) -> tuple:
    """A figure of `width` x `height` inches and its axes, as `pyplot.subplots` gives them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def render(figure: Figure) -> np.ndarray:
    """The figure's pixels: (H, W, 3) uint8."""
    figure.canvas.draw()
    return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """Write (H, W, 3) uint8 pixels, whole or not at all."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    write_bytes(path, file.getvalue())
    return path


def reduced(pixels: np.ndarray, width: int = 950) -> np.ndarray:
    """(H, W, 3) for TensorBoard: where it is wider than `width`, the mean of each four pixels, rounded up."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).reduce(2)) if pixels.shape[1] > width else pixels


# --- losses ---------------------------------------------------------------------------------------------------


def history(rows: list[dict], final: dict[str, float] | None = None) -> Figure:
    """Losses at samples of the true posterior over epochs: train, validation and, where measured, test.

    Args:
        rows: one per epoch, as in `metrics.csv`.
        final: the metrics at the end; its test loss is marked.
    """
    figure, axes = chart()
    for name, label, colour, style in (
        ("train/loss_unrelaxed", "train", "blue", "-"),
        ("val/loss", "validation", "orange", "--"),
        ("test/loss", "test", "green", ":"),
    ):
        _curve(axes, rows, name, style, color=COLOURS[colour], label=label)
    if rows and final and "test/loss" in final and not any("test/loss" in row for row in rows):
        axes.plot(
            rows[-1]["epoch"], final["test/loss"], "*", color=COLOURS["green"], markersize=11, label="test, at the end"
        )
    return _over_epochs(figure, axes, "loss at samples of the true posterior")


def relaxation(rows: list[dict]) -> Figure:
    """What is optimised against the loss of the model itself, the gap between them shaded; the temperature beneath."""
    temperature = any("temperature" in row for row in rows)
    panels = {"height_ratios": [3, 1]} if temperature else {}
    figure, axes = chart(1 + temperature, sharex=True, height=5.2 if temperature else 4.2, **panels)
    top = axes[0] if temperature else axes
    epochs = [row["epoch"] for row in rows]
    relaxed = [row["train/loss"] for row in rows]
    unrelaxed = [row["train/loss_unrelaxed"] for row in rows]
    if relaxed == unrelaxed:
        _curve(top, rows, "train/loss", color=COLOURS["blue"], label="train (at true samples: no gap)")
    else:
        _curve(top, rows, "train/loss_unrelaxed", color=COLOURS["orange"], label="train, unrelaxed: at true samples")
        top.fill_between(epochs, relaxed, unrelaxed, color=COLOURS["blue"], alpha=0.12, label="relaxation gap")
        _curve(top, rows, "train/loss", color=COLOURS["blue"], label="train, relaxed: what is optimised")
    if temperature:
        _curve(axes[1], rows, "temperature", color=COLOURS["grey"])
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


def _over_epochs(figure: Figure, axes: Axes, title: str, xlabel: str = "epoch") -> Figure:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("nats per image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


# --- latent space ---------------------------------------------------------------------------------------------


def scatter(points: np.ndarray, labels: np.ndarray, title: str, axis: str = "") -> Figure:
    """Points of a plane by class, told apart by colour, by marker and by the class's digit at its median.

    Args:
        points: (N, 2).
        labels: (N,) classes from 0 to 9.
        axis: what the axes are ("z" becomes z₁ and z₂); without it they have no scale.
    """
    figure, axes = chart(width=6.6, height=6)
    classes = np.unique(labels)
    for k in classes:
        style = {"color": TEN[k % 10], "marker": MARKERS[k % 10], "linewidths": 0}
        axes.scatter(*points[labels == k].T, s=11, alpha=0.8, label=str(k), **style)
    axes.set_aspect("equal", adjustable="datalim")
    span = float(np.ptp(points, axis=0).max()) or 1.0
    middles = spread_apart(np.stack([np.median(points[labels == k], axis=0) for k in classes]), 0.065 * span)
    for k, middle in zip(classes, middles, strict=True):
        box = {"boxstyle": "circle,pad=0.25", "facecolor": TEN[k % 10], "edgecolor": "white", "linewidth": 1.2}
        ink = "white" if k in (0, 4, 8) else "black"  # whichever stands out against the class's colour
        axes.annotate(str(k), middle, ha="center", va="center", fontsize=12, weight="bold", color=ink, bbox=box)
    axes.set_title(title, fontsize=10)
    if axis:
        axes.set_xlabel(f"{axis}₁")
        axes.set_ylabel(f"{axis}₂")
        axes.grid(alpha=0.3)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    legend = {"frameon": False, "fontsize": 9, "markerscale": 2, "handletextpad": 0.2}
    axes.legend(title="class", loc="center left", bbox_to_anchor=(1.0, 0.5), **legend)
    return figure


def spread_apart(points: np.ndarray, distance: float) -> np.ndarray:
    """Points (N, 2) moved, as little as a few steps allow, until no two are nearer than `distance`."""
    points = points.astype(float)
    for _ in range(200):
        difference = points[:, None] - points[None]
        length = np.hypot(*difference.transpose(2, 0, 1))
        i, j = np.nonzero(np.triu(length < distance * 0.999, 1))
        if not len(i):
            break
        # coincident points part along directions of their own
        angle = 2.4 * (i + j)
        fallback = np.stack([np.cos(angle), np.sin(angle)], -1)
        gap = length[i, j, None]
        push = np.where(gap > 1e-9 * distance, difference[i, j] / np.maximum(gap, 1e-9 * distance), fallback)
        np.add.at(points, i, 0.5 * (distance - gap) * push)
        np.add.at(points, j, -0.5 * (distance - gap) * push)
    return points


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
    title = f"code usage over {images} test images (uniform: {1 / codes:.2g}); "
    title += f"mean perplexity {overall.mean():.2f} of {codes}"
    if codes == 2:
        return _binary_usage(usage[:, 1], (overall / single).log(), title)
    options = {"sharey": True, "width_ratios": [max(2.0, min(codes / 5, 4.0)), 1]}
    figure, (axes, bars) = chart(1, 2, width=8, height=min(max(3.0, 1.5 + 0.18 * variables), 12), **options)
    heat = axes.imshow(usage.numpy(), cmap="cividis", vmin=0, vmax=usage.max().item(), aspect="auto")
    axes.set_xlabel("code")
    axes.set_ylabel("variable")
    axes.set_xticks(range(0, codes, -(-codes // 20)))
    axes.set_yticks(range(0, variables, -(-variables // 40)))
    axes.tick_params(labelsize=8)
    figure.colorbar(heat, ax=axes, label="mean of q(code | x)")
    bars.barh(range(variables), overall.numpy(), color=COLOURS["blue"], height=0.8, label="over all images")
    bars.barh(range(variables), single.numpy(), color=COLOURS["yellow"], height=0.4, label="of one image's q(z|x)")
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
    off = max((ones - 0.5).abs().max().item(), 0.01)
    for axes, values, limits, label in (
        (panels[0], ones, (0.5 - off, 0.5 + off), "mean of q(z = 1 | x)"),
        (panels[1], information, (0, max(information.max().item(), 0.01)), "information (nats)"),
    ):
        folded = torch.full((rows * columns,), torch.nan)
        folded[: len(values)] = values
        heat = axes.imshow(
            folded.view(rows, columns).numpy(), cmap="cividis", vmin=limits[0], vmax=limits[1], aspect="auto"
        )
        shown = range(0, rows, -(-rows // 12))
        axes.set_yticks(list(shown), [str(row * columns) for row in shown])
        axes.set_ylabel("first of the row")
        figure.colorbar(heat, ax=axes, label=label)
    panels[1].set_xticks(range(columns))
    panels[1].set_xlabel("variable (add the first of its row)")
    figure.suptitle(title, fontsize=10)
    return figure


# --- audit ----------------------------------------------------------------------------------------------------


def draw_audit(folder: Path, rows: list[dict], sweep: list[dict]) -> list[Path]:
    """The figures of `vi-lab audit`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    # the noiseless exact sum would stretch the axes over ten decades
    logits = [row for row in rows if row["group"] == "logits" and row["target"] == "ELBO" and row["variance"] > 0]
    figures = {"simplex": simplex()}
    if logits:
        figures |= {"bias_variance": bias_variance(logits), "error_cost": error_cost(logits)}
    if sweep:
        figures["temperature"] = temperature_sweep(sweep)
    return [write_png(folder / f"{name}.png", render(figure)) for name, figure in figures.items()]


def _styles(names: list[str]) -> dict[str, dict]:
    """A colour and a marker for each name: told apart without colour too."""
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B5A2B", "#7F7F7F"]
    markers = "os^vDPX<>ph*"
    return {
        name: {"color": palette[i % len(palette)], "marker": markers[i % len(markers)]} for i, name in enumerate(names)
    }


def bias_variance(rows: list[dict]) -> Figure:
    """Relative bias with its interval against variance. Biases within their noise sit at the left edge."""
    figure, axes = chart(width=8, height=5)
    styles = _styles([row["estimator"] for row in rows])
    floor = 1e-3
    for row in rows:
        bias, low, high = (max(row[f"relative_bias{end}"], floor) for end in ("", "_low", "_high"))
        axes.errorbar(
            bias,
            max(row["variance"], 1e-12),
            xerr=[[bias - low], [high - bias]],
            linestyle="none",
            markersize=7,
            elinewidth=1,
            label=row["estimator"],
            markerfacecolor=None if row["unbiased"] else "white",
            **styles[row["estimator"]],
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left=floor * 0.8)
    axes.set_xlabel(f"relative bias, with 95 % interval (below {floor:g}: drawn at {floor:g})")
    axes.set_ylabel("variance of the gradient (trace)")
    axes.set_title("bias against variance, at q's logits; filled: unbiased by design", fontsize=10)
    return _with_side_legend(figure, axes)


def error_cost(rows: list[dict]) -> Figure:
    """Mean squared error of one draw against what it costs."""
    figure, axes = chart(width=8, height=5)
    styles = _styles([row["estimator"] for row in rows])
    for row in rows:
        axes.plot(
            row["decoder_evaluations"],
            max(row["mean_squared_error"], 1e-12),
            linestyle="none",
            markersize=7,
            label=row["estimator"],
            markerfacecolor=None if row["unbiased"] else "white",
            **styles[row["estimator"]],
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("decoder evaluations per image and step")
    axes.set_ylabel("mean squared error of the gradient")
    axes.set_title("error against cost, at q's logits; filled: unbiased by design", fontsize=10)
    return _with_side_legend(figure, axes)


def temperature_sweep(sweep: list[dict]) -> Figure:
    """Relative bias and variance over the temperature."""
    figure, (left, right) = chart(1, 2, width=11, height=4.5)
    names = list(dict.fromkeys(row["estimator"] for row in sweep))
    styles = _styles(names)
    for name in names:
        rows = sorted((row for row in sweep if row["estimator"] == name), key=lambda row: row["temperature"])
        temperatures = [row["temperature"] for row in rows]
        left.plot(temperatures, [max(row["relative_bias"], 0.01) for row in rows], label=name, **styles[name])
        right.plot(temperatures, [max(row["variance"], 1e-12) for row in rows], label=name, **styles[name])
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
    return _with_side_legend(figure, right)


def simplex(temperatures: tuple[float, ...] = (0.1, 0.5, 1.0, 5.0)) -> Figure:
    """Gumbel-softmax samples of three classes on the simplex, from nearly one-hot to nearly uniform."""
    from vi_lab.distributions import one_hot_categorical, relaxed_sample

    logits = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    figure, panels = chart(1, len(temperatures), width=3 * len(temperatures), height=3.1)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    for axes, temperature in zip(panels, temperatures, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            q = torch.distributions.Independent(one_hot_categorical(logits), 1)
            points = relaxed_sample(q, temperature, 1500)[:, 0, 0] @ corners
        axes.fill(*corners.T.numpy(), facecolor="none", edgecolor=COLOURS["grey"], linewidth=1)
        axes.scatter(*points.T.numpy(), s=3, color=COLOURS["blue"], alpha=0.35, linewidths=0)
        for corner, name, below in zip(corners, ("p = 0.5", "p = 0.3", "p = 0.2"), (1, 1, 0), strict=True):
            offset = (0, -12 if below else 5)
            axes.annotate(name, corner.tolist(), offset, textcoords="offset points", ha="center", fontsize=8)
        axes.set_title(f"temperature {temperature:g}", fontsize=10)
        axes.set_aspect("equal")
        axes.margins(0.12)
        axes.set_axis_off()
    return figure


def _with_side_legend(figure: Figure, axes: Axes) -> Figure:
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
