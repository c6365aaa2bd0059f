"""Bars: 16x16 images in which each row and column is lit with probability 1/8 (the bars of Földiák 1990)."""

from __future__ import annotations

import torch
from torch import Tensor

from vi_lab.data import Images, MNISTDataModule

SIDE = 16


def bars(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 1, 16, 16) uint8 images, and how many bars each has, (N,) int64. A function of the arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(images, SIDE, 1, generator=generator) < 1 / 8
    columns = torch.rand(images, 1, SIDE, generator=generator) < 1 / 8
    pixels = (rows | columns).unsqueeze(1).to(torch.uint8) * 255  # (N, 1, 16, 16)
    return pixels, rows.sum((1, 2)) + columns.sum((1, 2))


class Bars(MNISTDataModule):
    """2,000 training and 500 test images, the same for every seed of a run."""

    shape = (1, SIDE, SIDE)

    def load(self) -> Images:
        if self.images is None:
            self.images = Images(*bars(2000, seed=0), *bars(500, seed=1))
        return self.images
