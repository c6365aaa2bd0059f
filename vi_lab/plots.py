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


def _save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
