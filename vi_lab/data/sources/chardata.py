"""Omniglot as the autoencoder literature uses it: the file of Burda et al. 2016 (arXiv 1509.00519)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.utils import download_url

from vi_lab.data.sources.published import Published
from vi_lab.data.sources.source import Images
from vi_lab.errors import ViLabError, one_line

_URL = "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat"
_FILE = "chardata.mat"


def _fetch(scratch: Path) -> Path:
    download_url(_URL, scratch, _FILE)
    return scratch


def _read(folder: Path) -> Images:
    """The training images in the authors' order, so that the last 1,345 are the ones that they held out."""
    from scipy.io import loadmat  # needed here only

    file = folder / _FILE
    try:
        values = loadmat(file)
    except Exception as error:  # whatever scipy raises, by what is damaged
        raise ViLabError(f"{file}: damaged or no MATLAB file ({one_line(error)}); download it again") from error
    images, labels = _split(file, values, "data", "target")
    order = np.random.RandomState(123).permutation(len(images))
    return Images(images[order], labels[order], *_split(file, values, "testdata", "testtarget"))


def _split(file: Path, values: dict[str, Any], data: str, target: str) -> tuple[Tensor, Tensor]:
    """The images, which are columns of gray values in [0, 1], and the indices of their alphabets."""
    if absent := [key for key in (data, target) if key not in values]:
        raise ViLabError(f"{file}: wanted the arrays data, target, testdata and testtarget; lacks {', '.join(absent)}")
    columns, alphabets = np.asarray(values[data]), np.asarray(values[target])
    if columns.ndim != 2 or columns.shape[0] != 784 or alphabets.shape[1:] != columns.shape[1:]:
        found = f"{columns.shape} and {alphabets.shape}"
        raise ViLabError(f"{file}: wanted {data} (784, N) and {target} (alphabets, N), found {found}")
    if not (columns.size and columns.min() >= 0 and columns.max() <= 1 + 1e-6):  # NaN is neither
        raise ViLabError(f"{file}: wanted gray values in [0, 1] in {data}")
    gray = (columns.T.reshape(-1, 1, 28, 28) * 255).round().astype(np.uint8)
    upright = gray.swapaxes(2, 3)  # MATLAB's order of rows and columns
    return torch.from_numpy(np.ascontiguousarray(upright)), torch.from_numpy(alphabets.argmax(0).astype(np.int64))


OMNIGLOT = Published((1, 28, 28), 32_415, "omniglot", (_FILE,), _fetch, _read)
"""24,345 training and 8,070 test images of characters; labels are the 50 alphabets."""
