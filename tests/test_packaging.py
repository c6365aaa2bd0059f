"""The wheel, unpacked away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vi_lab
from tests.support import SMALL, TIME_LIMIT


@pytest.mark.slow
def test_wheel_runs_elsewhere(tmp_path: Path) -> None:
    """The wheel carries `configs`: unpacked away from the checkout it composes and trains."""
    pytest.importorskip("hatchling")
    checkout = Path(vi_lab.__file__).resolve().parent.parent
    if not (checkout / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    build_wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build_wheel, cwd=checkout, check=True, capture_output=True, timeout=TIME_LIMIT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = [sys.executable, "-m", "vi_lab", "train", *SMALL, "trainer.max_epochs=1", "hydra.run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stderr
    recorded = (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()
    assert str(tmp_path / "site" / "vi_lab" / "configs") in recorded
