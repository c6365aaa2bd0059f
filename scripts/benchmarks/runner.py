"""A training step of vi_lab by part, in microseconds, and against a bare loop that computes the same.

The bare loop has forward, unrelaxed loss, backward and optimizer on a batch that stays in place; vi_lab's is
`Trainer.fit`, evaluation and checkpoint left out. The parts come from a loop of their own (see
benchmarks/parts.py). The three take turns; "Lightning and callbacks" is vi_lab's step less all of them.
"""

from __future__ import annotations

import statistics

from benchmarks.common import Options, Result, compose, ratio, take_turns
from benchmarks.loops import Fit, bare
from benchmarks.parts import Parts

ROUNDS, STEPS, ESTIMATORS = 5, 300, ("gaussian", "gumbel_softmax", "rloo")
PARTS = ("loader", "noise", "forward", "unrelaxed loss", "metrics", "backward", "optimizer")


def measure(options: Options) -> Result:
    rows = []
    for name in options.estimators:
        config = compose(f"estimator={name}", *options.overrides)
        fit = Fit(config, options.scratch, options.steps)
        parts = Parts(config, options.steps)
        loops = {"bare": bare(config, options.steps), "vi_lab": fit.block, "parts": parts.block}
        times = take_turns(loops, options.rounds)
        median = {loop: statistics.median(found) for loop, found in times.items()}
        found = parts.seconds()
        rest = median["vi_lab"] - sum(found[part] for part in PARTS)
        seconds = [median["vi_lab"], median["bare"], *(found[part] for part in PARTS), rest]
        rows.append([name, f"{ratio(times['vi_lab'], times['bare']):.2f}", *(f"{1e6 * each:.0f}" for each in seconds)])
    return Result(["estimator", "vi_lab / bare", "vi_lab", "bare", *PARTS, "Lightning and callbacks"], rows)
