"""What the end of a run takes, in shares of the whole run: a test, the evaluation, the last pictures, t-SNE in them.

The run is that of `vi-lab train`, of ten epochs unless the overrides say otherwise, with everything on. `--rounds` runs
follow each other, each in a folder of its own; medians.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from pathlib import Path

import lightning
from omegaconf import DictConfig

from benchmarks.common import Options, Result, compose, now, timed
from vi_lab.figures import model as drawing
from vi_lab.training.session import Session

ROUNDS, STEPS, ESTIMATORS = 1, 0, ("gaussian", "gumbel_softmax")
PARTS = {"fit": "training", "test": "test", "evaluate": "evaluation", "draw": "pictures", "tsne": "t-SNE of these"}


def measure(options: Options) -> Result:
    rows = []
    for name in options.estimators:
        config = compose(f"estimator={name}", *options.overrides)
        found = [run(config, options.scratch) for _ in range(options.rounds)]
        whole = statistics.median(times["whole"] for times in found)
        row = [name, f"{whole:.1f}"]
        for part in PARTS:
            seconds = statistics.median(times.get(part, 0.0) for times in found)
            row.append(f"{seconds:.1f} s, {seconds / whole:.1%}")
        rows.append(row)
    return Result(["estimator", "whole run s", *PARTS.values()], rows)


def run(config: DictConfig, scratch: Path) -> dict[str, float]:
    """Seconds of the parts of a run, without what it prints."""
    times: dict[str, float] = {}
    last: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(timed(lightning.Trainer, "test", times))
        stack.enter_context(timed(drawing, "tsne", last))
        for part in ("fit", "evaluate", "draw"):
            stack.enter_context(timed(Session, part, times))
        start = now()
        session = Session(config, Path(tempfile.mkdtemp(dir=scratch)))
        session.train()
        times["whole"] = now() - start
    return times | last
