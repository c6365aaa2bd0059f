"""`compile=true`: the mathematics of the training step as one compiled graph.

The noise is drawn before the step and handed to it (`vi_lab.noise.Tape`), so that a compiled run draws what the eager
one draws. Its arithmetic is ordered otherwise, so the last digits differ; compiled runs repeat, and resume, to the last
bit.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import time

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from vi_lab.console import duration
from vi_lab.errors import UserError, one_line
from vi_lab.models import VAE
from vi_lab.noise import Tape
from vi_lab.seeding import seed_noise
from vi_lab.training.callbacks import vae
from vi_lab.training.display import Voice

COMPILERS = {"darwin": "clang++", "win32": "cl"}
"""What torch.compile looks for by system, where the environment names none as CXX; elsewhere g++."""


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
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        raise UserError("compile=true: torch.compile does not take recurrent networks, as prior=autoregressive has one")
    *_, compiler = shlex.split(os.environ.get("CXX", "")) or [COMPILERS.get(sys.platform, "g++")]
    if not shutil.which(compiler):
        raise UserError(f"compile=true: wanted a C++ compiler, found no {compiler}; install one, or leave compile= out")


class CompiledLosses:
    """`VAE.losses` of one model, compiled for each shape of batch when it first comes."""

    def __init__(self, model: VAE, backend: str = "inductor") -> None:
        self.model = model
        self.names: list[str] = []
        self.tapes: dict[torch.Size, Tape] = {}
        # one graph or none: in pieces it would be slower than without
        self.function = torch.compile(self._losses, backend=backend, dynamic=False, fullgraph=True)

    def __call__(self, x: Tensor, seeds: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """What `VAE.losses` gives for x (B, *shape) with the noise of `seeds`.

        Raises:
            UserError: the step cannot be compiled.
        """
        new = x.shape not in self.tapes
        if new:
            self.tapes[x.shape] = self._record(x, seeds)
        tape = self.tapes[x.shape]
        seed_noise(x.device, *seeds)
        tape.draw()
        try:
            loss, values = self.function(x, tape, tape.tensors)
        except Exception as error:  # whatever torch's compilers raise, at what they cannot do or find
            if not new:
                raise
            raise UserError(
                f"compile=true: torch.compile could not make one graph of the step ({type(error).__name__}: "
                f"{one_line(error)[:200]}); leave compile= out"
            ) from error
        return loss, dict(zip(self.names, values.unbind(), strict=True))

    def _losses(self, x: Tensor, tape: Tape, noise: list[Tensor]) -> tuple[Tensor, Tensor]:
        with tape.play(noise):
            loss, values = self.model.losses(x)
        return loss, torch.stack(list(values.values()))

    def _record(self, x: Tensor, seeds: tuple[int, ...]) -> Tape:
        """Find out what a step draws, and leave moving averages as they were.

        Raises:
            UserError: it draws by something else than `vi_lab.noise`.
        """
        tape = Tape()
        before = [buffer.clone() for buffer in self.model.buffers()]
        seed_noise(x.device, *seeds)
        with tape.record():
            self.names = list(self.model.losses(x)[1])
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)
        after = _generator_state(x.device)
        seed_noise(x.device, *seeds)
        tape.draw()
        if not torch.equal(after, _generator_state(x.device)):
            raise UserError(
                "compile=true: the step draws random numbers elsewhere than by vi_lab.noise, and a compiled one would "
                "draw others; leave compile= out"
            )
        return tape


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


class Compilation(Callback):
    """Has the model trained by its compiled step, and says what the compilation has taken."""

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self.started: float | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Puts the compiled step in the place of the other."""
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of a GPU that nobody asked for
        module = vae(pl_module)
        check_compilable(module)  # the rehearsal does not make classes of the user's own
        module.compiled = CompiledLosses(module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Announces the wait, and starts the clock."""
        self.voice.say("compiling the step, which Ctrl-C waits for; the last digits will differ from the eager ones")
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        """Says after the first step how long it took."""
        if self.started is not None:
            self.voice.say(f"compiled in {duration(time.perf_counter() - self.started)}")
            self.started = None
