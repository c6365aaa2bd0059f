"""The fixed binarization of MNIST by Larochelle: text files of 784 zeros and ones a line."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.utils import download_url

from vi_lab.data.sources.published import Published
from vi_lab.data.sources.source import Images
from vi_lab.errors import ViLabError, one_line

_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_FILES = tuple(f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test"))


def _fetch(scratch: Path) -> Path:
    for name in _FILES:
        download_url(_URL + name, scratch)
    return scratch


def _read(folder: Path) -> Images:
    """The lines of train, then those of valid: the last ones, which are held out, are the set's own validation."""
    train, valid, test = (_read_lines(folder / name) for name in _FILES)
    training = torch.cat([train, valid])
    none = [torch.zeros(len(split), dtype=torch.int64) for split in (training, test)]
    return Images(training, none[0], test, none[1])


def _read_lines(file: Path) -> Tensor:
    """(N, 1, 28, 28) uint8, 0 and 255. Looks at all bytes at once: parsing 47 million numbers would take a minute."""
    file = file if file.is_file() else file.with_name(f"{file.name}.gz")
    try:
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ViLabError(f"{file}: cannot be read ({one_line(error)}); delete it and download it again") from error
    dense = text.translate(None, b" \t\r").rstrip(b"\n") + b"\n"
    lines = np.frombuffer(dense, np.uint8, len(dense) // 785 * 785).reshape(-1, 785)
    bits = lines[:, :-1] - np.uint8(ord("0"))
    if len(dense) != lines.size or (lines[:, -1] != ord("\n")).any() or (bits > 1).any():
        raise ViLabError(f"{file}: wanted lines of 784 zeros and ones; delete it and download it again")
    return torch.from_numpy(bits * np.uint8(255)).view(-1, 1, 28, 28)


BINARIZED_MNIST = Published((1, 28, 28), 70_000, "binarized_mnist", _FILES, _fetch, _read, packed=".gz")
"""50,000 training, 10,000 validation and 10,000 test images (Larochelle and Murray 2011), without labels."""
