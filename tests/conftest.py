"""Shared fixtures. One thread per test process: the tests run side by side, and thread pools would fight."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["VI_LAB_DATA"] = os.devnull + "/no-data"  # no test depends on what lies in ./data

import struct
from pathlib import Path

import pytest
import torch

REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def write_idx(folder: Path, train: int = 300, test: int = 100, name: str = "MNIST") -> Path:
    """Random images in the idx files that torchvision reads: FOLDER/NAME/raw/... Returns FOLDER."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("t10k", test)):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), dtype=torch.uint8, generator=generator)
        header = struct.pack(">IIII", 0x0803, count, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        header = struct.pack(">II", 0x0801, count)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())
    return folder


@pytest.fixture
def idx_data(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "data")


@pytest.fixture
def real_mnist() -> Path:
    if not (REAL_DATA / "MNIST" / "raw").is_dir():
        pytest.skip(f"real MNIST is not in {REAL_DATA}")
    return REAL_DATA
