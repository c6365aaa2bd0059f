"""A folder of image files, of any size, brought to one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vi_lab.data.sources.source import Images, Place, Shape
from vi_lab.errors import UserError, ViLabError, one_line

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
"""What counts as an image; other files are passed over."""

Labeled = list[tuple[Path, int]]


class Folder:
    """ROOT/train and ROOT/test, or ROOT alone, of which every tenth image by path is for testing. Each may have a
    folder for each class, in whose alphabetical order classes are numbered."""

    def shape(self, place: Place) -> Shape:
        """As asked for by `size` and `channels`.

        Raises:
            UserError: no size, no folder or no images.
        """
        if place.size is None:
            raise UserError("data source folder needs data.size=N, or data.size=[ROWS,COLUMNS]")
        rows, columns = (place.size, place.size) if isinstance(place.size, int) else place.size
        _splits(place)
        return place.channels or 3, rows, columns

    def count(self, place: Place) -> int:
        """How many image files there are."""
        return sum(map(len, _splits(place)))

    def load(self, place: Place) -> Images:
        """Read all images, in several threads.

        Raises:
            ViLabError: one of them cannot be read.
        """
        shape = self.shape(place)
        train, test = _splits(place)
        return Images(*_read(train, shape), *_read(test, shape))


def _splits(place: Place) -> tuple[Labeled, Labeled]:
    """The files for training and for testing, with their labels.

    Raises:
        UserError: there is no such folder, there are no images, or a class has none.
    """
    root = place.path("FOLDER")
    if not root.is_dir():
        raise UserError(f"data.root={root}: wanted a folder of images; there is no such folder")
    halves = root / "train", root / "test"
    if all(half.is_dir() for half in halves):
        names = sorted({path.name for half in halves for path in _classes(half)})
        return _labeled(halves[0], names), _labeled(halves[1], names)
    if [path.name for path in _classes(root)] in (["train"], ["test"]):
        raise UserError(f"data.root={root}: wanted both train and test in it, or images, or a folder for each class")
    files = _labeled(root, [path.name for path in _classes(root)])
    if len(files) < 2:
        raise UserError(f"data.root={root}: one image cannot be divided into training and test images")
    return [file for index, file in enumerate(files) if index % 10], files[::10]


def _classes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _labeled(folder: Path, names: list[str]) -> Labeled:
    """All images below a folder, sorted by path, with the place of their class in `names`."""
    files = sorted(_images(folder))
    counts = dict.fromkeys((path.name for path in _classes(folder)), 0)
    labeled = []
    for file in files:
        name = file.relative_to(folder).parts[0]
        if name in counts:  # the others lie in no folder
            counts[name] += 1
        labeled.append((file, names.index(name) if name in counts else 0))
    if not files:
        raise UserError(f"{folder}: there are no images ({', '.join(sorted(SUFFIXES))})")
    if empty := [name for name, count in counts.items() if not count]:
        raise UserError(f"{folder / empty[0]}: a class without images; put some into the folder, or remove it")
    return labeled


def _images(folder: Path) -> Iterator[Path]:
    """Image files at any depth; links are followed, and a folder is entered once."""
    entered = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if (real := os.path.realpath(path)) in entered:
            folders.clear()
            continue
        entered.add(real)
        for name in files:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield Path(path, name)


def _read(files: Labeled, shape: Shape) -> tuple[Tensor, Tensor]:
    pixels = np.empty((len(files), *shape), np.uint8)

    def fill(index: int) -> None:
        pixels[index] = _pixels(files[index][0], shape)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(len(files))):
            pass
    return torch.from_numpy(pixels), torch.tensor([label for _, label in files])


def _pixels(file: Path, shape: Shape) -> np.ndarray:
    """The middle of an image that has the wanted proportions, resized: (C, H, W)."""
    channels, rows, columns = shape
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits per pixel and channel")
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        fitted = np.asarray(ImageOps.fit(upright, (columns, rows)))
    except Exception as error:  # each format has its own, at whatever is damaged
        raise ViLabError(f"{file}: cannot be read as an image ({one_line(error)})") from error
    return fitted.reshape(rows, columns, channels).transpose(2, 0, 1)
