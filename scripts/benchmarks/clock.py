"""A callback for `vi-lab train` in a process of its own: writes down when steps are done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.callbacks import Callback


class Clock(Callback):
    """Appends the wall time to a file when a step of `steps` is done."""

    def __init__(self, file: str, steps: Sequence[int]) -> None:
        self.file, self.steps = Path(file), set(steps)

    def on_train_batch_end(self, trainer: Trainer, *_: object, **__: object) -> None:
        if trainer.global_step in self.steps:
            with self.file.open("a") as file:
                file.write(f"{time.time()}\n")
