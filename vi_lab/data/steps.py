"""The data of a toy problem: none. An epoch is so many steps, and a batch so many independent draws."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from vi_lab.data.module import MNISTDataModule
from vi_lab.data.sources import Images
from vi_lab.data.sources.source import Shape


class Steps(MNISTDataModule):
    """Images of one black pixel, which say nothing: `steps` batches to train on and one image in each other split.

    Args:
        steps: in an epoch.
        others: as of `MNISTDataModule`.
    """

    def __init__(self, steps: int = 200, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.steps = steps

    @cached_property
    def shape(self) -> Shape:
        """One pixel."""
        return 1, 1, 1

    def load(self) -> Images:
        """As many as the steps need."""
        if self.images is None:
            count = self.steps * self.batch_size + self.validation
            pixels, labels = torch.zeros(count, *self.shape, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
            self.images = Images(pixels, labels, pixels[:1], labels[:1])
        return self.images
