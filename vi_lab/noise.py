"""Where the random numbers of posteriors and estimators come from: three kinds, drawn here and nowhere else.

They come from torch's default generator, from one that is given, or from a `Tape`. A tape knows what a step draws, so
that the numbers can be drawn before the step, and the step itself be compiled, captured as a CUDA graph, or batched
over runs of which each has its own seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform[0, 1) in double precision, as float32 is exactly 0 once in 2^24 draws; MPS has no double."""
    return _draw("uniform", shape, like.dtype if like.device.type == "mps" else torch.float64, like, generator)


def exponential(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Exponential(1), in the type of `like`."""
    return _draw("exponential", shape, like.dtype, like, generator)


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Normal(0, 1), in the type of `like`."""
    return _draw("normal", shape, like.dtype, like, generator)


def fill(kind: str, out: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw into `out`, in place.

    On a CPU an exponential is -log u, u uniform in double: in less than half the time of torch's `exponential_`.
    """
    if kind == "uniform":
        return out.uniform_(generator=generator)
    if kind == "normal":
        return out.normal_(generator=generator)
    if out.device.type != "cpu":
        return out.exponential_(generator=generator)
    u = torch.empty(out.shape, dtype=torch.float64).uniform_(generator=generator)
    return out.copy_(u.log_().neg_())


class Tape:
    """What a computation draws from the default generator, in order: recorded, then drawn ahead and played back."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.tensors: list[Tensor] = []
        self.played: int | None = None  # how many were handed out; None while recording

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep what is drawn within."""
        self.kinds, self.tensors, self.played = [], [], None
        with _use(self):
            yield

    def draw(self, tensors: Sequence[Tensor] | None = None) -> None:
        """Draw the next numbers, in place, into `tensors`, or into its own: those that the computation would draw."""
        for kind, tensor in zip(self.kinds, self.tensors if tensors is None else tensors, strict=True):
            fill(kind, tensor)

    @contextmanager
    def play(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Hand out `tensors` where the computation draws."""
        tape = Tape()
        tape.kinds, tape.tensors, tape.played = self.kinds, list(tensors), 0
        with _use(tape):
            yield

    def take(self, kind: str, shape: Sequence[int]) -> Tensor:
        """The next tensor.

        Raises:
            RuntimeError: something else was recorded.
        """
        i = self.played or 0
        if i == len(self.kinds) or (self.kinds[i], tuple(self.tensors[i].shape)) != (kind, tuple(shape)):
            raise RuntimeError(f"draw {i + 1} of the step, {kind} of shape {tuple(shape)}, is not what was recorded")
        self.played = i + 1
        return self.tensors[i]


_tapes: list[Tape] = []  # the last one is in use; no `ContextVar`, with which torch.compile loses the gradient


@contextmanager
def _use(tape: Tape) -> Iterator[None]:
    _tapes.append(tape)
    try:
        yield
    finally:
        _tapes.pop()


def _draw(
    kind: str, shape: Sequence[int], dtype: torch.dtype, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    tape = _tapes[-1] if _tapes and generator is None else None
    if tape is not None and tape.played is not None:
        return tape.take(kind, shape)
    out = fill(kind, torch.empty(tuple(shape), dtype=dtype, device=like.device), generator)
    if tape is not None:
        tape.kinds.append(kind)
        tape.tensors.append(out)
    return out
