"""Pictures of a run, drawn at its end into `figures/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import torch
from torch import Tensor

from vi_lab.seeding import PICTURES, seed_noise

if TYPE_CHECKING:
    from vi_lab.data import MNISTDataModule
    from vi_lab.models import VAE

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which the colour-blind can tell apart
COLOURS = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "grey": "#666666"}


@torch.no_grad()
def draw_run(folder: Path, model: VAE, datamodule: MNISTDataModule, rows: list[dict]) -> list[Path]:
    """Data, reconstructions, prior samples and the loss history of a finished run; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    seed_noise(model.device, model.seed, PICTURES)
    x, _ = next(iter(datamodule.loader("test")))
    x = x[:32].to(model.device)
    q = model.posterior(x)
    reconstruction = model.likelihood.mean(model.decode(q.sample((1,))))[0]
    pairs = torch.stack([x, reconstruction], 1).flatten(0, 1)  # image, reconstruction, image, ...
    pictures = {
        "data": (x, 8, "test images as the model sees them"),
        "reconstructions": (pairs, 8, "test images and, right of each, its reconstruction"),
        "samples": (model.sample(64), 8, "means of p(x|z), z from the prior"),
    }
    files = [image_grid(folder / f"{name}.png", *picture) for name, picture in pictures.items()]
    return [*files, history(folder / "history.png", rows)]


def image_grid(path: Path, images: Tensor, columns: int, title: str) -> Path:
    """(N, 1, H, W) in [0, 1], row by row."""
    count, _, height, width = images.shape
    lines = -(-count // columns)
    canvas = images.new_zeros(lines * columns, height + 2, width + 2)
    canvas[:count, 1:-1, 1:-1] = images[:, 0]
    canvas = canvas.unflatten(0, (lines, columns)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    figure, axes = plt.subplots(figsize=(columns * 0.6, lines * 0.6 + 0.4), layout="constrained")
    axes.imshow(canvas.float().cpu().numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    return _save(figure, path)


def history(path: Path, rows: list[dict]) -> Path:
    """Losses over epochs: relaxed and unrelaxed training loss with the gap between them, validation and test."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    relaxed = [row["train/loss"] for row in rows]
    unrelaxed = [row["train/loss_unrelaxed"] for row in rows]
    marker = "o" if len(rows) < 15 else None
    if relaxed != unrelaxed:
        axes.plot(epochs, relaxed, color=COLOURS["blue"], marker=marker, markersize=4, label="train, relaxed")
        axes.fill_between(epochs, relaxed, unrelaxed, color=COLOURS["blue"], alpha=0.12, label="relaxation gap")
    axes.plot(epochs, unrelaxed, color=COLOURS["orange"], marker=marker, markersize=4, label="train, unrelaxed")
    for split, colour, style in (("val", "green", "--"), ("test", "grey", ":")):
        if all(f"{split}/loss" in row for row in rows):
            values = [row[f"{split}/loss"] for row in rows]
            axes.plot(
                epochs,
                values,
                style,
                color=COLOURS[colour],
                marker=marker,
                markersize=4,
                label=f"{split}, unrelaxed",
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (nats per image)")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def draw_audit(folder: Path, rows: list[dict], sweep: list[dict]) -> list[Path]:
    """The figures of `vi-lab audit`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    # the noiseless exact sum would stretch the axes over ten decades
    logits = [row for row in rows if row["group"] == "logits" and row["target"] == "ELBO" and row["variance"] > 0]
    files = [simplex(folder / "simplex.png")]
    if logits:
        files += [bias_variance(folder / "bias_variance.png", logits), error_cost(folder / "error_cost.png", logits)]
    if sweep:
        files.append(temperature_sweep(folder / "temperature.png", sweep))
    return files


def _styles(names: list[str]) -> dict[str, dict]:
    """A colour and a marker for each name: told apart without colour too."""
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B5A2B", "#7F7F7F"]
    markers = "os^vDPX<>ph*"
    return {
        name: {"color": palette[i % len(palette)], "marker": markers[i % len(markers)]} for i, name in enumerate(names)
    }


def bias_variance(path: Path, rows: list[dict]) -> Path:
    """Relative bias with its interval against variance. Biases within their noise sit at the left edge."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
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
    return _with_side_legend(figure, axes, path)


def error_cost(path: Path, rows: list[dict]) -> Path:
    """Mean squared error of one draw against what it costs."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
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
    return _with_side_legend(figure, axes, path)


def temperature_sweep(path: Path, sweep: list[dict]) -> Path:
    """Relative bias and variance over the temperature."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
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
    return _with_side_legend(figure, right, path)


def simplex(path: Path, temperatures: tuple[float, ...] = (0.1, 0.5, 1.0, 5.0)) -> Path:
    """Gumbel-softmax samples of three classes on the simplex, from nearly one-hot to nearly uniform."""
    from vi_lab.distributions import one_hot_categorical, relaxed_sample

    logits = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    figure, panels = plt.subplots(1, len(temperatures), figsize=(3 * len(temperatures), 3.1), layout="constrained")
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
    return _save(figure, path)


def _with_side_legend(figure: plt.Figure, axes: plt.Axes, path: Path) -> Path:
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
