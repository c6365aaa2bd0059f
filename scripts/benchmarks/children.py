"""Trainings in processes of their own, as a shell would start them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vi_lab.errors import ViLabError

FOLDER = Path(__file__).resolve().parent.parent
PLAIN = (
    "trainer.max_epochs=1000000",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "evaluation.samples=null",
    "figures=false",
    "logger=[]",
)
"""Training and next to nothing else."""


def surroundings(**variables: str | None) -> dict[str, str]:
    """The environment of a child: this one's with other variables; None takes one away."""
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    merged = {**os.environ, "PYTHONPATH": path, **variables}
    return {name: value for name, value in merged.items() if value is not None}


class Training:
    """`vi-lab train` in a child process, up to the last of `steps`.

    Args:
        steps: when each of them is done, is written down.
    """

    def __init__(
        self, overrides: Sequence[str], steps: Sequence[int], scratch: Path, variables: Mapping[str, str | None]
    ) -> None:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        self.file, self.errors, self.wanted = folder / "clock", folder / "errors", len(steps)
        clock = [
            "+callbacks.clock._target_=benchmarks.clock.Clock",
            f"+callbacks.clock.file={self.file}",
            f"+callbacks.clock.steps=[{','.join(map(str, steps))}]",
        ]
        words = [*overrides, *PLAIN, f"trainer.max_steps={max(steps)}", f"hydra.run.dir={folder / 'run'}", *clock]
        self.started = time.time()
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vi_lab", "train", *words],
                env=surroundings(**variables),
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def times(self) -> list[float]:
        """The wall times until now."""
        return [float(line) for line in self.file.read_text().splitlines()] if self.file.is_file() else []

    def wait_for(self, count: int) -> list[float]:
        """The first `count` times, once they are there.

        Raises:
            ViLabError: the training has ended without.
        """
        while len(found := self.times()) < count:
            if self.process.poll() is not None and len(self.times()) < count:
                raise ViLabError(f"a training has ended early: {self.errors.read_text()[-500:]}")
            time.sleep(0.01)
        return found[:count]

    def end(self) -> None:
        """Wait for it to end by itself."""
        self.process.wait()

    def stop(self) -> None:
        """End it now."""
        self.process.kill()
        self.process.wait()
