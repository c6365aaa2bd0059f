"""Shared fixtures. One thread per test process: the tests run side by side, and thread pools would fight."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # xdist sets it; what is printed would be folded
os.environ["VI_LAB_DATA"] = os.devnull + "/no-data"  # no test depends on what lies in ./data

from pathlib import Path

import pytest

from tests.support import REAL_DATA, config, run, write_idx


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, or the others would wait for it at the end."""
    items.sort(key=lambda item: "test_kill_test_script[10" not in item.name)


def pytest_collection_finish() -> None:
    """The collector need not go through all that was imported again and again: it takes a fifth of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Or libraries that count what is left at the end take it for leaked."""
    gc.unfreeze()


@pytest.fixture
def idx_data(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "data")


@pytest.fixture
def real_mnist() -> Path:
    if not (REAL_DATA / "MNIST" / "raw").is_dir():
        pytest.skip(f"real MNIST is not in {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of these overrides that nothing interrupts; trained once for all that is compared with it."""

    @functools.cache
    def trained(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        run(config(*overrides), folder)
        return folder

    return trained
