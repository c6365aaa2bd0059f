"""Images side by side, as a figure: each image pixel is two screen pixels wide, so that none is blurred."""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from vi_lab.figures.style import COLORS

DPI = 100
LARGEST = 64
"""Pixels of an image's longer side, above which it is shown reduced."""
SMALLEST = 28
"""Pixels across, below which it is shown some times as large, or labels would not fit below it."""


def shown(images: Tensor) -> Tensor:
    """Images (..., C, H, W) in [0, 1] as they are drawn, on the CPU: one channel as it is, dark ink on paper; three in
    color; of any other number the mean, as gray. Large ones are reduced, small ones enlarged: (..., 1 or 3, H', W')."""
    images = images.detach().float().cpu()
    if images.shape[-3] not in (1, 3):
        images = images.mean(-3, keepdim=True)
    height, width = images.shape[-2:]
    factor = math.ceil(max(height, width) / LARGEST)
    if factor == 1:
        larger = min(math.ceil(SMALLEST / width), LARGEST // max(height, width))
        return images.repeat_interleave(larger, -1).repeat_interleave(larger, -2) if larger > 1 else images
    small = F.avg_pool2d(images.flatten(0, -4), factor, ceil_mode=True)
    return small.unflatten(0, images.shape[:-3])


def paper(images: Tensor) -> float:
    """The value of an empty place in images (..., C, H, W): no ink, or white."""
    return float(images.shape[-3] == 3)


def montage(images: Tensor, pad: int = 1) -> Tensor:
    """Row r, column c as in a table, each image in a border of paper.

    Gray (R, C, 1, H, W) -> (R * (H + 2 pad), C * (W + 2 pad)), where 0 is paper; color (R, C, 3, H, W) ->
    (R * (H + 2 pad), C * (W + 2 pad), 3), where 1 is paper. float32 on the CPU.
    """
    colors = images.shape[2]
    images = images.detach().float().cpu()
    images = images.clamp(0, 1) if colors == 3 else images  # where matplotlib would complain
    images = F.pad(images, (pad,) * 4, value=paper(images))
    canvas = images.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (R, H, C, W, colors), then rows and columns
    return canvas if colors == 3 else canvas[..., 0]


def sprites(images: Tensor) -> Tensor:
    """Images (N, C, H, W) for TensorBoard's projector, whose background is white: gray ones as dark ink, (N, 3, S, S).
    Square, as it takes no other ones."""
    images = shown(images).clamp(0, 1)
    height, width = images.shape[-2:]
    side = max(height, width)
    square = F.pad(images, (0, side - width, 0, side - height), value=paper(images))
    return square if square.shape[1] == 3 else (1 - square).expand(-1, 3, -1, -1)


def changes(images: Tensor, reference: Tensor, gain: float) -> Tensor:
    """How images differ from a reference: it in gray, added ink in orange, missing ink in blue, `gain` times.

    Both (..., 1, H, W) in [0, 1], broadcast -> (..., 3, H, W).
    """
    images, reference = torch.broadcast_tensors(images.float().cpu(), reference.float().cpu())
    difference = (gain * (images - reference)).clamp(-1, 1)
    orange, blue = (torch.tensor(list(bytes.fromhex(COLORS[c][1:])))[:, None, None] / 255 for c in ("orange", "blue"))
    paper = 1 - 0.5 * reference.clamp(0, 1).expand(*reference.shape[:-3], 3, -1, -1)
    amount = difference.abs()
    return (1 - amount) * paper + amount * torch.where(difference > 0, orange, blue)


def in_rows(images: Tensor, columns: int) -> Tensor:
    """(N, C, H, W) -> (R, columns, C, H, W), row by row, the last row filled up with blanks."""
    blanks = images.new_full((-len(images) % columns, *images.shape[1:]), paper(images))
    return torch.cat([images, blanks]).unflatten(0, (-1, columns))


def image_grid(
    images: Tensor,
    title: str,
    row_labels: list[str] | None = None,
    column_labels: list[str] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    frames: list[tuple[int, int]] | None = None,
) -> Figure:
    """A table of images.

    Args:
        images: (R, C, channels, H, W) in [0, 1]; of one channel 1 is ink, see `shown`.
        row_labels, column_labels: one per row, one per column.
        frames: (row, column) of the images to be framed.
    """
    images = shown(images)
    height, width = images.shape[-2] + 2, images.shape[-1] + 2
    canvas = montage(images)
    left = 0.15 + 0.085 * max(map(len, row_labels or [""])) + 0.3 * bool(ylabel)
    figure, axes = _exact_axes(canvas, title, left, bottom=0.1 + 0.25 * bool(column_labels) + 0.3 * bool(xlabel))
    axes.imshow(canvas.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.tick_params(length=0)
    rows, columns = images.shape[:2]
    axes.set_yticks([(r + 0.5) * height - 0.5 for r in range(rows)] if row_labels else [], row_labels or [])
    axes.set_xticks([(c + 0.5) * width - 0.5 for c in range(columns)] if column_labels else [], column_labels or [])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for row, column in frames or []:
        corner = (column * width, row * height)
        axes.add_patch(Rectangle(corner, width - 1, height - 1, fill=False, edgecolor="black", linewidth=1.5))
    return figure


def manifold(images: Tensor, extent: float) -> Figure:
    """Decoded points of a square lattice in a plane of latent space, first axis to the right, second upward.

    Args:
        images: (N, N, channels, H, W), row 0 at the top: the largest second coordinate.
        extent: the lattice covers [-extent, extent] on both axes.
    """
    canvas = montage(shown(images), pad=0)
    title = f"means of p(x|z) on a {len(images)} x {len(images)} lattice over [{-extent:g}, {extent:g}]²"
    figure, axes = _exact_axes(canvas, title, left=0.75, bottom=0.65)
    edge = extent + extent / (len(images) - 1)  # the outer images are centered on the border
    limits = (-edge, edge, -edge, edge)
    axes.imshow(canvas.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto", extent=limits)
    axes.set_xlabel("z₁")
    axes.set_ylabel("z₂")
    return figure


def _exact_axes(canvas: Tensor, title: str, left: float, bottom: float) -> tuple[Figure, Axes]:
    """Axes in which each pixel of the canvas is two screen pixels wide, so that none is blurred. Margins in inches."""
    height, width = (2 * size / DPI for size in canvas.shape[:2])
    lines = title.split("\n")
    right, top = 0.15, 0.2 + 0.2 * len(lines)
    total_width = max(left + width + right, 0.078 * max(map(len, lines)))
    total_height = bottom + height + top
    figure = Figure(figsize=(total_width, total_height), dpi=DPI)
    FigureCanvasAgg(figure)
    left += (total_width - left - width - right) / 2
    axes = figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))
    figure.suptitle(title, fontsize=10, y=1 - 0.12 / total_height, va="top")
    return figure, axes
