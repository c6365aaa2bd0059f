"""Folders spoiled at random, through every command; see scripts/hostile_test.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import TIME_LIMIT

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "hostile_test.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_spoiled_folders_run_nothing_and_end_in_one_line() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--tries", "30", "--flips", "500", "--seed", "7"],
                          capture_output=True, text=True, timeout=TIME_LIMIT)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "500 damaged checkpoints, 0 of them loaded" in done.stdout
    assert "30 tries" in done.stdout
