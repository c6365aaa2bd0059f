"""A whole epoch of vi_lab, with everything on, against a tutorial's loop in plain PyTorch over a like model.

vi_lab's epoch goes from its first batch to the end of training: loader, metrics, callbacks, TensorBoard, evaluation,
checkpoint. The tutorial's has the same evaluations, and no record. They take turns, with `compile=true` as a third
where the config has that key. `experiment=seed_gumbel`; overrides may change its sizes and data.

Below, where the milliseconds of a step of vi_lab go. Training, evaluation and checkpoint are timed in the epochs above
by a callback. The parts of a step are timed in a loop of their own, which takes turns too; matrix products are recorded
and repeated alone (see benchmarks/parts.py). "Lightning and callbacks" is what remains of the time of training.
Pictures are drawn once, and count by how often the config wants them.
"""

from __future__ import annotations

import statistics

from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.common import Options, Result, compose, ms, now, ratio, take_turns
from benchmarks.loops import Fit, tutorial
from benchmarks.parts import Parts
from vi_lab.training.pictures import Pictures

ROUNDS, STEPS, ESTIMATORS = 5, 200, ()


def measure(options: Options) -> Result:
    config = compose("experiment=seed_gumbel", *options.overrides)
    eager = Fit(config, options.scratch)
    loops = {"vi_lab": eager.epoch, "tutorial": tutorial(config)}
    if "compile" in config:
        compiled = config.copy()
        compiled.compile = True
        loops["vi_lab, compiled"] = Fit(compiled, options.scratch).epoch
    taken = Parts(config, options.steps)
    times = take_turns({**loops, "parts": taken.block}, options.rounds)
    del times["parts"]
    steps, whole = eager.steps, statistics.median(times["vi_lab"])

    def row(name: str, seconds: float) -> list[str]:
        return [name, f"{seconds:.2f}", ms(seconds / steps), f"{seconds / whole:.1%}"]

    rows = [row(name, statistics.median(found)) for name, found in times.items()]
    for name in times:
        if name != "tutorial":
            rows.append([f"tutorial / {name}", f"{ratio(times['tutorial'], times[name]):.2f}", "", ""])
    median = {name: statistics.median(part[name] for part in eager.rounds[1:]) for name in eager.rounds[0]}
    found = taken.seconds()
    products = {name: found.pop(f"{name} products", 0.0) for name in ("forward", "unrelaxed loss", "backward")}
    parts = {"matrix products": sum(products.values())}
    parts |= {f"{name}, the rest": found.pop(name) - seconds for name, seconds in products.items()} | found
    parts["Lightning and callbacks"] = median["training"] / steps - sum(parts.values())
    rows.append(row("training", median["training"]))
    rows += [row(f"· {name}", steps * seconds) for name, seconds in parts.items()]
    rows += [row(name, median[name]) for name in ("evaluation", "checkpoint", "between these")]
    if config.figures:
        rows.append(row("pictures, per epoch", pictures(eager)))
    return Result(["", "s per epoch", "ms per step", "of vi_lab's epoch"], rows)


def pictures(fit: Fit) -> float:
    """Seconds per epoch for the pictures that are drawn while training."""
    every = fit.config.figures_every_n_epochs
    if not every:
        return 0.0
    trainer = fit.trainer()
    drawn: list[float] = []

    class Draw(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: object) -> None:
            artist = next(callback for callback in trainer.callbacks if isinstance(callback, Pictures))
            start = now()
            artist.write(trainer, fit.model)
            drawn.append(now() - start)

    trainer.callbacks.insert(-1, Draw())
    trainer.fit(fit.model, fit.datamodule)
    return drawn[0] / every
