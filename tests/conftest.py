"""Shared fixtures. One thread per test process: the tests run side by side, and thread pools would fight."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["VI_LAB_DATA"] = os.devnull + "/no-data"  # no test depends on what lies in ./data

from pathlib import Path

import pytest

from tests.support import write_idx

REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture
def idx_data(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "data")


@pytest.fixture
def real_mnist() -> Path:
    if not (REAL_DATA / "MNIST" / "raw").is_dir():
        pytest.skip(f"real MNIST is not in {REAL_DATA}")
    return REAL_DATA
