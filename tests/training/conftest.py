"""What the tests of training share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import config, run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of these overrides that nothing interrupts; trained once for all that is compared with it."""

    @functools.cache
    def trained(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        run(config(*overrides), folder)
        return folder

    return trained
