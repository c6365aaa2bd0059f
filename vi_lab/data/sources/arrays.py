"""Arrays in an .npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from vi_lab.data.sources.source import Images, Place, Shape
from vi_lab.errors import UserError, ViLabError, one_line

NAMES = {
    "train": ("train", "x_train"),
    "test": ("test", "x_test"),
    "train_labels": ("train_labels", "y_train"),
    "test_labels": ("test_labels", "y_test"),
}
"""What is looked for -> how it may be called."""
MOST = (2**40, 2**16, 2**16, 2**16)
"""Images, and lengths of their axes, are fewer."""
_AT_ONCE = 2**24
"""Bytes that are read at a time: floats take four or eight times the memory of the uint8 that is kept of them."""


class _Array(NamedTuple):
    """What the file says of an array before its values."""

    name: str
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype


class Arrays:
    """Images (N, H, W) or (N, C, H, W) in `train` and `test`, as uint8, or as floats in [0, 1], of which uint8 are
    kept: rounded to 1/255. Where there are no labels, all are 0."""

    def shape(self, place: Place) -> Shape:
        """Of an image, from the headers of the arrays.

        Raises:
            UserError: no such file, arrays are missing or have other shapes or types.
        """
        file = place.path("FILE.npz")
        found = _headers(file)
        shapes = []
        for split in ("train", "test"):
            if split not in found:
                names = ", ".join(array.name for array in found.values())
                raise UserError(
                    f"{file}: wanted arrays train and test, or x_train and x_test; has no {split}"
                    + (f" (found {names})" if names else "")
                )
            shapes.append(_image_shape(file, found[split]))
            labels = found.get(f"{split}_labels")
            if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != found[split].shape[:1]):
                raise UserError(
                    f"{file}: {labels.name}: wanted {found[split].shape[0]} whole numbers, one for each image of "
                    f"{found[split].name}; found {labels.dtype} {labels.shape}"
                )
        if shapes[0] != shapes[1]:
            raise UserError(f"{file}: images are {_words(shapes[0])} to train and {_words(shapes[1])} to test")
        return shapes[0]

    def count(self, place: Place) -> int:
        """How many images the arrays have."""
        found = _headers(place.path("FILE.npz"))
        return sum(found[split].shape[0] for split in ("train", "test") if split in found)

    def load(self, place: Place) -> Images:
        """Read the arrays.

        Raises:
            ViLabError: the file is damaged, or pixels are out of range.
        """
        file, shape = place.path("FILE.npz"), self.shape(place)
        found, tensors = _headers(file), []
        for split in ("train", "test"):
            tensors.append(torch.from_numpy(_pixels(file, found[split])).view(-1, *shape))
            tensors.append(_labels(file, found.get(f"{split}_labels"), len(tensors[-1])))
        return Images(*tensors)


def _words(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _possible(size: object, most: int) -> bool:
    return type(size) is int and 0 < size < most  # a header may also hold True


def _image_shape(file: Path, array: _Array) -> Shape:
    where, shape = f"{file}: {array.name}", array.shape
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"{where}: wanted uint8, or floats in [0, 1]; found {array.dtype}")
    if len(shape) not in (3, 4) or not all(map(_possible, shape, MOST)):
        raise UserError(f"{where}: wanted images (N, H, W) or (N, C, H, W); found shape {shape}")
    if len(shape) == 4 and shape[3] <= 4 < min(shape[1:3]):
        raise UserError(f"{where}: channels come before rows, (N, C, H, W); found shape {shape}: move its last axis")
    channels, rows, columns = shape[-3:] if len(shape) == 4 else (1, *shape[1:])
    return channels, rows, columns


def _headers(file: Path) -> dict[str, _Array]:
    """The arrays of `NAMES` that the file has. No value is read, and nothing is unpickled."""
    if not file.is_file():
        raise UserError(f"data.root={file}: wanted an .npz file with arrays train and test; there is no such file")
    found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            for key, names in NAMES.items():
                for name in names:
                    if f"{name}.npy" in members and key not in found:
                        with archive.open(f"{name}.npy") as member:
                            found[key] = _Array(name, *_header(member))
    except Exception as error:  # whatever zipfile and numpy raise, by what is damaged
        raise UserError(
            f"{file}: wanted an .npz file, as numpy.savez writes it ({one_line(error) or 'damaged'})"
        ) from error
    return found


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(member)
    return npy.read_array_header_1_0(member) if version == (1, 0) else npy.read_array_header_2_0(member)


def _pixels(file: Path, array: _Array) -> np.ndarray:
    """All images of an array as uint8, in its shape, read in parts."""
    pixels = np.empty(array.shape, np.uint8)
    if array.by_columns:
        pixels[:] = _as_bytes(file, array, _whole(file, array))
    else:
        size = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        step = max(1, _AT_ONCE // size)
        try:
            with zipfile.ZipFile(file) as archive, archive.open(f"{array.name}.npy") as member:
                _header(member)
                for first in range(0, len(pixels), step):
                    part = pixels[first : first + step]
                    values = np.frombuffer(member.read(part.size * array.dtype.itemsize), array.dtype)
                    part[:] = _as_bytes(file, array, values.reshape(part.shape))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ViLabError(f"{file}: {array.name}: damaged ({one_line(error)})") from error
    if array.dtype == np.uint8 and pixels.max() == 1:
        raise UserError(f"{file}: {array.name}: uint8 pixels go from 0 to 255, and these to 1; save them as floats")
    return pixels


def _as_bytes(file: Path, array: _Array, values: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return values
    if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
        raise UserError(
            f"{file}: {array.name}: wanted floats in [0, 1], found {values.min():g} to {values.max():g}; "
            "pixels from 0 to 255 are uint8"
        )
    return np.rint(values * np.float32(255)).astype(np.uint8)


def _whole(file: Path, array: _Array) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[array.name]
    except Exception as error:  # whatever zipfile and numpy raise, by what is damaged
        raise ViLabError(f"{file}: {array.name}: damaged ({one_line(error)})") from error


def _labels(file: Path, array: _Array | None, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64) if array is None else torch.from_numpy(_whole(file, array)).long()
