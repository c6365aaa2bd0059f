"""MNIST and its relatives: torchvision's idx files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from vi_lab.data.sources.published import Published
from vi_lab.data.sources.source import Images
from vi_lab.errors import ViLabError

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx(dataset: type[MNIST]) -> Published:
    """60,000 and 10,000 images of 28x28 in ROOT/NAME/raw, where NAME is that of torchvision's class."""

    def fetch(scratch: Path) -> Path:
        dataset(scratch, download=True)
        return scratch / dataset.__name__ / "raw"

    files = tuple(name for names in _FILES.values() for name in names)
    return Published((1, 28, 28), 70_000, f"{dataset.__name__}/raw", files, fetch, _read)


def _read(folder: Path) -> Images:
    return Images(*_read_split(folder, "train"), *_read_split(folder, "test"))


def _read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    images_file, labels_file = (folder / name for name in _FILES[split])
    images, labels = _read_idx(images_file, read_image_file), _read_idx(labels_file, read_label_file)
    if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
        raise ViLabError(f"{images_file}: wanted images of 28x28, found shape {tuple(images.shape)}")
    if len(images) != len(labels):
        raise ViLabError(f"{folder}: {len(images)} {split} images but {len(labels)} labels; download them again")
    return images.unsqueeze(1), labels


def _read_idx(file: Path, read: Callable[[str], Tensor]) -> Tensor:
    try:
        return read(str(file))
    except Exception as error:  # torchvision asserts, indexes or unpacks, by what is damaged
        raise ViLabError(
            f"{file}: damaged or no idx file ({type(error).__name__}, {file.stat().st_size} bytes); "
            "delete it and download it again"
        ) from error
