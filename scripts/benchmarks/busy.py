"""Steps per second of `vi-lab train` on a machine that has nothing else to do, and beside other work.

Threads that wait for the others of an operation may spin, which is fast on an idle machine and burns the cores that
others want; how long they do is set by the environment of the process. Each setting trains in a child process, timed
inside it between two steps, so that start-up does not count: alone, beside one and two busy loops of pure Python, and
beside another such training that goes on for longer. The settings take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.children import Training
from benchmarks.common import Options, Result, compose, ratio

ROUNDS, STEPS, ESTIMATORS = 3, 200, ()
WARM = 20
"""Steps before the clock starts."""
LONG = 1_000_000
SETTINGS: dict[str, dict[str, str | None]] = {
    "nothing set": {},
    "GOMP_SPINCOUNT=300000": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
"""How threads wait. Where nothing is set, `vi_lab.training.waiting` decides; 300,000 turns are the default."""
LOADS = ("idle", "one busy loop", "two busy loops", "another training")


def measure(options: Options) -> Result:
    compose(*options.overrides)  # a mistake is told before any child starts
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for load in LOADS:
            for setting in SETTINGS:
                seconds[setting, load].append(train(setting, load, options))
    rows = []
    for setting in SETTINGS:
        rates = [f"{options.steps / statistics.median(seconds[setting, load]):.0f}" for load in LOADS]
        kept = [ratio(seconds[setting, "idle"], seconds[setting, load]) for load in LOADS[1:]]
        rows.append([setting, *rates, *(f"{share:.2f}" for share in kept)])
    return Result(["steps per second", *LOADS, *(f"{load} / idle" for load in LOADS[1:])], rows)


def train(setting: str, load: str, options: Options) -> float:
    """Seconds of the steps that are timed."""
    variables = {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, **SETTINGS[setting]}
    with ExitStack() as stack:
        if load == "another training":
            other = Training(options.overrides, (WARM, LONG), options.scratch, variables)
            stack.callback(other.stop)
            other.wait_for(1)
        for _ in range({"one busy loop": 1, "two busy loops": 2}.get(load, 0)):
            stack.enter_context(busy_loop())
        training = Training(options.overrides, (WARM, WARM + options.steps), options.scratch, variables)
        stack.callback(training.stop)
        first, last = training.wait_for(2)
        return last - first


@contextmanager
def busy_loop() -> Iterator[None]:
    """A process that keeps a core busy meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
