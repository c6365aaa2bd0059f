"""Where images come from: a published data set, or the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torchvision import datasets

from vi_lab.data.sources.amat import BINARIZED_MNIST
from vi_lab.data.sources.arrays import Arrays
from vi_lab.data.sources.chardata import OMNIGLOT
from vi_lab.data.sources.color import CIFAR10_SOURCE, SVHN_SOURCE
from vi_lab.data.sources.digits import Digits
from vi_lab.data.sources.folder import Folder
from vi_lab.data.sources.idx import idx
from vi_lab.data.sources.source import Images, Place, Shape, Source
from vi_lab.errors import UserError
from vi_lab.machine import memory

SOURCES: dict[str, Source] = {
    "mnist": idx(datasets.MNIST),
    "fashion_mnist": idx(datasets.FashionMNIST),
    "kmnist": idx(datasets.KMNIST),
    "digits": Digits(),
    "binarized_mnist": BINARIZED_MNIST,
    "omniglot": OMNIGLOT,
    "cifar10": CIFAR10_SOURCE,
    "svhn": SVHN_SOURCE,
    "folder": Folder(),
    "arrays": Arrays(),
}
"""`data.source` -> what reads it."""


def load(
    source: str,
    root: str | Path | None = None,
    download: bool = False,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
) -> Images:
    """Load `source`, one of `SOURCES`.

    Args:
        root: the folder that holds the published data sets; of "folder" and "arrays" the images themselves.
        download: fetch a published data set where it is absent.
        size, channels: of the images of a "folder".

    Raises:
        ViLabError: the files are absent and cannot be downloaded, or they are damaged.
        UserError: the images are not as wanted, or do not fit into the memory of this machine.
        ValueError: no such source.
    """
    found, place = named(source), Place(source, root, download, size, channels)
    count, shape = found.count(place), found.shape(place)
    needed, limit = count * math.prod(shape), memory()
    if needed > limit:
        raise UserError(
            f"data source {source}: {count:,} images of {'x'.join(map(str, shape))} are {needed / 2**30:,.1f} GiB as "
            f"uint8, and this machine's memory is {limit / 2**30:,.1f} GiB; use fewer images, or smaller ones"
        )
    return found.load(place)


def named(source: str) -> Source:
    """The source of that name.

    Raises:
        ValueError: there is none.
    """
    if source not in SOURCES:
        raise ValueError(f"data source must be one of {', '.join(SOURCES)}; got {source!r}")
    return SOURCES[source]


__all__ = ["SOURCES", "Images", "Place", "Shape", "Source", "load", "named"]
