"""Where images come from: torchvision's MNIST family (idx files), or the digits embedded in scikit-learn."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from vi_lab.errors import ViLabError, one_line

SOURCES = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class Images(NamedTuple):
    """A data set: images (N, 1, 28, 28) uint8, labels (N,) int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(source: str, root: str | Path | None = None, download: bool = False) -> Images:
    """Load `source`: one of `SOURCES`, or "digits".

    Raises:
        ViLabError: the files are absent and cannot be downloaded, or they are damaged.
        ValueError: no such source.
    """
    if source == "digits":
        return _digits()
    if source not in SOURCES:
        raise ValueError(f"data source must be one of {', '.join(SOURCES)}, digits; got {source!r}")
    if root is None:
        raise ValueError(f"data source {source} needs data.root=FOLDER")
    folder = Path(root).expanduser() / SOURCES[source].__name__ / "raw"
    absent = [name for names in _FILES.values() for name in names if not (folder / name).is_file()]
    if absent:
        if not download:
            raise ViLabError(f"{source}: {folder} lacks {', '.join(absent)}; {_advice(source)}")
        _download(source, folder)
    return Images(*_read(folder, "train"), *_read(folder, "test"))


def _advice(source: str) -> str:
    return (
        f"give the folder that holds {SOURCES[source].__name__}/raw by data.root=FOLDER, "
        "or use data=digits, which needs no files"
    )


def _download(source: str, folder: Path) -> None:
    """Download into a folder beside the target and move it there whole, so that a broken download or two runs
    at once leave nothing half-written."""
    root = folder.parent.parent
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    except OSError as error:
        raise ViLabError(f"{source}: cannot write to {root} ({one_line(error)}); {_advice(source)}") from error
    try:
        SOURCES[source](scratch, download=True)
        folder.mkdir(parents=True, exist_ok=True)
        for file in (scratch / folder.parent.name / "raw").iterdir():
            file.replace(folder / file.name)
    except Exception as error:
        reason = one_line(error).partition(":")[0]  # torchvision's goes on with every mirror that it tried
        raise ViLabError(
            f"{source}: not in {folder} and could not be downloaded ({reason}); {_advice(source)}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for place in absent:
            with suppress(OSError):  # it holds something: the download came
                place.rmdir()


def _read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
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


def _digits() -> Images:
    """8x8 with values 0 to 16, resized to 28x28; every fifth image for testing."""
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    pixels, digits = load_digits(return_X_y=True)  # (1797, 64), (1797,)
    small = torch.as_tensor(pixels, dtype=torch.float64).view(-1, 1, 8, 8) / 16
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    images = (images * 255).round().to(torch.uint8)
    labels = torch.as_tensor(digits, dtype=torch.int64)
    test = torch.arange(len(images)) % 5 == 0
    return Images(images[~test], labels[~test], images[test], labels[test])
