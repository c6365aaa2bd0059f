"""The time from the shell to the end of the first training step of `vi-lab train`, against what the imports take that
nothing which trains with Lightning can do without: `python -c "import torch, lightning"`. The two take turns, the files
are in the system's cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.children import Training, surroundings
from benchmarks.common import Options, Result, compose, ratio, take_turns

ROUNDS, STEPS, ESTIMATORS = 5, 1, ()


def measure(options: Options) -> Result:
    compose(*options.overrides)

    def imports() -> float:
        start = time.time()
        subprocess.run([sys.executable, "-c", "import torch, lightning"], env=surroundings(), check=True)
        return time.time() - start

    def first_step() -> float:
        training = Training(options.overrides, (1,), options.scratch, {})
        (done,) = training.wait_for(1)
        training.end()
        return done - training.started

    times = take_turns({"imports": imports, "first step": first_step}, options.rounds)
    rows = [
        ['`python -c "import torch, lightning"`', f"{statistics.median(times['imports']):.2f}", "1"],
        [
            "`vi-lab train`, first step done",
            f"{statistics.median(times['first step']):.2f}",
            f"{ratio(times['first step'], times['imports']):.2f}",
        ],
    ]
    return Result(["", "seconds", "ratio"], rows)
