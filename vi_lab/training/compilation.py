"""`compile=true`: the mathematics of the training step as one compiled graph.

The noise is drawn before the step and handed to it (`vi_lab.noise.Tape`), so that a compiled run draws what the eager
one draws. Its arithmetic is ordered otherwise, so the last digits differ; compiled runs repeat, and resume, to the last
bit.
"""

from __future__ import annotations

import os
import shutil
import time

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vi_lab.console import duration
from vi_lab.errors import UserError
from vi_lab.models import VAE
from vi_lab.noise import Tape
from vi_lab.seeding import seed_noise
from vi_lab.training.callbacks import vae
from vi_lab.training.display import Voice

COMPILERS = ("g++", "clang++", "c++", "cl")
"""What torch.compile looks for, where the environment names none as CXX."""


def check_compilable(model: VAE) -> None:
    """Refuse what torch.compile cannot do, before there is a folder.

    Raises:
        UserError: the estimator takes a derivative itself, or there is no compiler.
    """
    if model.estimator.differentiates:
        raise UserError(
            f"compile=true: {type(model.estimator).__name__} takes a derivative within its step, which "
            "torch.compile fails on or splits up; leave compile= out"
        )
    if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))):
        raise UserError("compile=true: wanted a C++ compiler, found none; install g++ or clang, or leave compile= out")


class CompiledLosses:
    """`VAE.losses` of one model, compiled for each shape of batch when it first comes."""

    def __init__(self, model: VAE, backend: str = "inductor") -> None:
        self.model, self.names = model, [""]
        self.tapes: dict[torch.Size, Tape] = {}
        self.function = torch.compile(self._losses, backend=backend, dynamic=False)

    def __call__(self, x: Tensor, seeds: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """What `VAE.losses` gives for x (B, *shape) with the noise of `seeds`."""
        tape = self.tapes.get(x.shape) or self._record(x)
        seed_noise(x.device, *seeds)
        tape.draw()
        loss, values = self.function(x, tape, tape.tensors)
        return loss, dict(zip(self.names, values.unbind(), strict=True))

    def _losses(self, x: Tensor, tape: Tape, noise: list[Tensor]) -> tuple[Tensor, Tensor]:
        with tape.play(noise):
            loss, values = self.model.losses(x)
        return loss, torch.stack(list(values.values()))

    def _record(self, x: Tensor) -> Tape:
        """Find out what a step draws, and leave moving averages as they were."""
        tape = self.tapes[x.shape] = Tape()
        before = [buffer.clone() for buffer in self.model.buffers()]
        with tape.record():
            self.names = list(self.model.losses(x)[1])
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)
        return tape


class Compilation(Callback):
    """Has the model trained by its compiled step, and says what the compilation has taken."""

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self.started: float | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Puts the compiled step in the place of the other."""
        module = vae(pl_module)
        module.compiled = CompiledLosses(module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Announces the wait, and starts the clock."""
        self.voice.say("compiling the step; the last digits will differ from those without compile=true")
        self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Says after the first step how long it took."""
        if self.started is not None:
            self.voice.say(f"compiled in {duration(time.perf_counter() - self.started)}")
            self.started = None
