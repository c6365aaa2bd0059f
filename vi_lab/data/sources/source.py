"""What all sources of images have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from vi_lab.errors import UserError

Shape = tuple[int, int, int]
"""Channels, rows, columns."""


class Images(NamedTuple):
    """A data set: images (N, C, H, W) uint8, labels (N,) int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Place(NamedTuple):
    """What the user says of where the images are and how they are wanted: `data.source`, `data.root` and so on."""

    source: str
    root: str | Path | None = None
    download: bool = False
    size: int | Sequence[int] | None = None
    """Of an image folder: what images are resized to, in pixels; one number, or rows and columns."""
    channels: int | None = None
    """Of an image folder: 1 or 3."""

    def path(self, wanted: str) -> Path:
        """`data.root`, which must be given.

        Args:
            wanted: what it should be, for the message.

        Raises:
            UserError: it is not.
        """
        if self.root is None:
            raise UserError(f"data source {self.source} needs data.root={wanted}")
        return Path(self.root).expanduser()


class Source(Protocol):
    """Where images come from."""

    def shape(self, place: Place) -> Shape:
        """Of an image. Reads no pixels: models are made, and refused, before the data are loaded."""
        ...

    def count(self, place: Place) -> int:
        """How many images there are, for training and testing together. Reads no pixels either."""
        ...

    def load(self, place: Place) -> Images:
        """All of them.

        Raises:
            ViLabError: absent or damaged files, or images that do not fit.
        """
        ...
