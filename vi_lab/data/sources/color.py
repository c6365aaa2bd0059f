"""CIFAR-10 and SVHN by torchvision's classes, which check the files' md5 before they read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, SVHN

from vi_lab.data.sources.published import Published
from vi_lab.data.sources.source import Images
from vi_lab.errors import ViLabError, one_line

_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")


def _fetch_cifar10(scratch: Path) -> Path:
    CIFAR10(scratch, download=True)
    return scratch / CIFAR10.base_folder


def _read_cifar10(folder: Path) -> Images:
    splits = [_opened(folder, CIFAR10, folder.parent, train=train) for train in (True, False)]
    images = [torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous() for split in splits]  # rows, columns, RGB
    return _images(folder, images, [split.targets for split in splits])


def _fetch_svhn(scratch: Path) -> Path:
    for split in ("train", "test"):
        SVHN(scratch, split, download=True)
    return scratch


def _read_svhn(folder: Path) -> Images:
    splits = [_opened(folder, SVHN, folder, split=split) for split in ("train", "test")]
    return _images(folder, [torch.from_numpy(split.data) for split in splits], [split.labels for split in splits])


def _opened(folder: Path, dataset: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return dataset(*arguments, **options)
    except Exception as error:  # torchvision's of an md5, or whatever a damaged file raises
        raise ViLabError(
            f"{folder}: damaged files ({one_line(error).partition('. ')[0]}); delete them and download them again"
        ) from error


def _images(folder: Path, images: list[Tensor], labels: list[Any]) -> Images:
    for split in images:
        if split.shape[1:] != (3, 32, 32) or split.dtype != torch.uint8:
            raise ViLabError(f"{folder}: wanted uint8 images of 3x32x32, found {split.dtype} {tuple(split.shape)}")
    first, second = (torch.as_tensor(split, dtype=torch.int64) for split in labels)
    return Images(images[0], first, images[1], second)


CIFAR10_SOURCE = Published((3, 32, 32), 60_000, CIFAR10.base_folder, _BATCHES, _fetch_cifar10, _read_cifar10)
"""50,000 training and 10,000 test images of ten kinds of things."""
SVHN_SOURCE = Published((3, 32, 32), 99_289, "svhn", ("train_32x32.mat", "test_32x32.mat"), _fetch_svhn, _read_svhn)
"""73,257 training and 26,032 test images of house numbers."""
