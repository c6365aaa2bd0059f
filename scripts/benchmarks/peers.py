"""Training steps per second of other libraries with the same model and data, on the CPU.

A Gaussian VAE, 784-512-256-20 and back, ReLU, Bernoulli likelihood, gray pixels, batch 100, Adam 1e-3. Each has its own
loop and loader, as its examples use them, in a process of its own (benchmarks/peer_loops.py); the processes take turns,
a block of steps each, without evaluation and checkpoint. What is not installed is left out: `pip install -e
".[benchmark]"` brings pyro, pythae and jax. They do not compute the same; the last column says what else each does.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from typing import NamedTuple

from benchmarks.children import surroundings
from benchmarks.common import Options, Result, compose, ms, ratio, take_turns
from vi_lab.errors import ViLabError

ROUNDS, STEPS, ESTIMATORS = 5, 200, ()


class Peer(NamedTuple):
    """A row."""

    label: str
    package: str
    """Without which it cannot run."""
    besides: str


PEERS = {
    "vi_lab": Peer("vi_lab", "vi_lab", "six metrics, TensorBoard, a check for NaN, noise by (seed, epoch, batch)"),
    "pyro": Peer("pyro, `SVI.step`", "pyro", "traces; the KL by a sample; `.item()` in each step"),
    "pytorch_vae": Peer(
        "PyTorch-VAE's experiment, Lightning", "lightning", "PIL images; three losses logged in each step; TensorBoard"
    ),
    "pythae": Peer("pythae, `BaseTrainer`", "pythae", "a check for NaN; `.item()` in each step; progress bar"),
    "jax": Peer("jax, `jit` of `lax.scan`", "jax", "nothing; the losses of a block are one array"),
}


def measure(options: Options) -> Result:
    compose(*options.overrides)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(name, options))
            for name, peer in PEERS.items()
            if find_spec(peer.package) is not None
        }
        times = take_turns(workers, options.rounds)
    rows = []
    for name, peer in PEERS.items():
        if name not in times:
            rows.append([peer.label, "not installed", "", "", peer.besides])
            continue
        seconds = statistics.median(times[name])
        against = ratio(times[name], times["vi_lab"])
        rows.append([peer.label, f"{1 / seconds:.0f}", ms(seconds), f"{against:.2f}", peer.besides])
    return Result(["", "steps per second", "ms", "ms / vi_lab's", "computes besides"], rows)


class Worker:
    """A loop in a child process: called, it does a block there and gives the seconds of a step."""

    def __init__(self, name: str, options: Options) -> None:
        self.name, self.errors = name, options.scratch / f"{name}.errors"
        words = [name, str(options.steps), str(options.scratch), *options.overrides]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peer_loops", *words],
                env=surroundings(OMP_WAIT_POLICY="passive", JAX_PLATFORMS="cpu"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # at which it ends
        self.process.stdout.close()
        self.process.wait()

    def __call__(self) -> float:
        with suppress(BrokenPipeError):
            print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise ViLabError(f"{self.name} has failed: {self.errors.read_text()[-500:]}")
        return float(answer)
