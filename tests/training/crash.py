"""Runs that end without a word, and what two runs that should be equal differ in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.support import config, run
from vi_lab.training.checkpoints import Checkpoints

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_test.py"


class Crash(Exception):
    """Stands for a process that is gone: nothing is saved for it."""


def crashed(folder: Path, *overrides: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends without a word after so many steps, later checkpoints included."""
    after = Checkpoints.on_train_batch_end

    def crash(self, trainer, module, *rest):
        after(self, trainer, module, *rest)
        if trainer.global_step == at:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", crash)
        with pytest.raises(Crash):
            run(config(*overrides), folder)


def unequal(a: Path, b: Path) -> list[str]:
    """What two run folders differ in; see scripts/kill_test.py."""
    spec = importlib.util.spec_from_file_location("kill_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.differences(a, b)
