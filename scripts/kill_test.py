"""Kill training runs at random moments, resume them, and compare with runs that nobody touched: equal to the last bit?

    python scripts/kill_test.py                                     # 30 kills, a few minutes
    python scripts/kill_test.py --kills 300 --seed 1                # all settings several times, most of an hour
    python scripts/kill_test.py --kills 100 --estimators rloo,rebar trainer.max_epochs=20

Settings: estimators of every family, every precision, runs that end within an epoch, with pictures, sweeps in worker
processes, and a sweep as one stack, whose runs are compared with stacks of one. Moments: any (start-up included), and
chosen ones, at which the process kills itself: a step, validation, the tables, before and after a checkpoint is
written, reaches the disk, or is renamed, the evaluation, the pictures, the last word. Signals: SIGINT, SIGTERM,
SIGKILL, alone or two soon after each other; of a sweep only the process that has started it is killed, and it is
resumed at once.

Compared are metrics.json, metrics.csv, the weights, the optimizer's state, and TensorBoard's curves (no step twice);
nothing may be left beside them. The exit code is 0 where all are equal.
"""

from __future__ import annotations

import argparse
import collections
import glob
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from vi_lab import cli

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SMALL = ["data=digits", "trainer.max_epochs=12", "network.encoder.hidden=[64]", "network.decoder.hidden=[64]",
         "accelerator=cpu", "threads=1", "trainer.log_every_n_steps=5", "checkpoint.every_n_steps=3",
         "evaluation.samples=10", "figures_every_n_epochs=null"]  # fmt: skip
SETTINGS = {  # estimators of each family, each with something else that has a state or an end of its own
    "gumbel_softmax": ["schedule=exponential", "schedule.floor=0.5", "figures=true"],
    "gaussian": ["trainer.precision=64-true"],
    "rebar": ["trainer.precision=bf16-mixed"],
    "nvil": ["trainer.max_steps=31"],
    "reinforce_moving_average": ["figures=true", "figures_every_n_epochs=5"],
    "vq": [],
    "straight_through": ["trainer.precision=bf16-true"],
    "muprop": ["latent=4x8", "trainer.precision=64-true", "trainer.max_steps=100"],
    "concrete": ["lr_scheduler=plateau"],
    "disarm": ["trainer.precision=16-true", "optimizer=sgd"],
    "local_expectation": ["latent=4x8", "trainer.max_steps=31"],
    "disarm_tree": ["trainer.accumulate_grad_batches=2"],
    "rloo": ["-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "vimco": ["-m", "seed=0,1", "stack=2"],
}
MOMENTS = {  # -> what is called then
    "start": "vi_lab.training.session.build",
    "first line": "vi_lab.training.session.Session.announce",
    "step": "vi_lab.models.VAE.training_step",
    "validation": "vi_lab.models.VAE.validation_step",
    "tables": "vi_lab.training.callbacks.write_csv",
    "checkpoint": "torch.save",
    "fsync": "os.fsync",
    "rename": "os.replace",
    "link": "os.link",
    "test": "vi_lab.models.VAE.test_step",
    "evaluation": "vi_lab.training.session.evaluate_into",
    "picture": "vi_lab.training.pictures.write_png",
    "last words": "vi_lab.training.session.Session.finish",
    "report": "vi_lab.training.session.Session.report",
}
CODES = {
    signal.SIGINT: (130, -signal.SIGINT),
    signal.SIGTERM: (143, -signal.SIGTERM),
    signal.SIGKILL: (-signal.SIGKILL,),
}
"""By which exit code a killed process may end: ours, or, before we listen, the system's."""

Counts = collections.Counter


class Kill(NamedTuple):
    """When and how a process is killed."""

    signal: int
    again: float | None  # seconds until it is killed for good
    moment: str | None = None  # of MOMENTS; None: after a time
    call: int = 1  # at which call
    after: bool = False  # that call, rather than before it
    delay: float | None = None  # seconds from the start
    training: float = 0.0  # or else from the first line of training


def curves(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Every TensorBoard event of a run as it lies in the files: tag -> (step, value)."""
    found = collections.defaultdict(list)
    for file in sorted(glob.glob(f"{glob.escape(str(folder))}/events.out.tfevents.*")):
        for event in EventFileLoader(file).Load():
            for value in event.summary.value:
                if not value.tag.startswith(("time/", "_hparams_", "custom_scalars")):
                    found[value.tag].append((event.step, value.SerializeToString()))
    return {tag: sorted(points) for tag, points in found.items()}


def differences(a: Path, b: Path) -> list[str]:
    """What two run folders that should be equal differ in."""
    found = [name for name in ("metrics.json", "metrics.csv") if (a / name).read_bytes() != (b / name).read_bytes()]
    one, other = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (a, b))
    for key in ("state_dict", "optimizer_states", "means", "global_step"):
        if not same(one[key], other[key]):
            found.append(f"{key} of last.ckpt")
    best = [folder / "checkpoints" / "best.ckpt" for folder in (a, b)]
    if best[0].is_file() and not same(*(torch.load(file, weights_only=True)["state_dict"] for file in best)):
        found.append("best.ckpt")
    ours, theirs = curves(a), curves(b)
    for tag in sorted(ours | theirs):
        steps = [step for step, _ in theirs.get(tag, [])]
        if len(set(steps)) != len(steps):
            found.append(f"{tag} in TensorBoard holds steps twice")
        elif ours.get(tag) != theirs.get(tag):
            found.append(f"{tag} in TensorBoard")
    found += [f"{path.name} is left over" for path in b.rglob("*.tmp")]
    return found


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def plan(chance: random.Random, calls: dict[str, int], seconds: float) -> Kill:
    """The next kill: at any time, or more often at a chosen moment.

    Args:
        calls: how often each moment comes in a whole run; empty for a sweep.
        seconds: that a run trains.
    """
    number = chance.choice(SIGNALS)
    again = chance.choice((None, None, 0.0, 0.02, 0.3)) if number != signal.SIGKILL else None
    if not calls or chance.random() < 0.4:
        delay = chance.uniform(0, 5) if chance.random() < 0.2 else None
        return Kill(number, again, delay=delay, training=chance.uniform(0, seconds))
    moment = chance.choice([moment for moment, count in calls.items() if count])
    return Kill(number, again, moment, chance.randint(1, calls[moment]), chance.random() < 0.5)


def train(arguments: list[str], *inside: str) -> subprocess.Popen:
    """`vi-lab train` in a process of its own; `inside` what this script does there: --suicide KILL or --count FILE."""
    command = [__file__, *inside] if inside else ["-m", "vi_lab", "train"]
    command = [sys.executable, "-u", *command, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def watch(moment: str, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Have something called before and after each call at a moment."""
    owner, _, name = MOMENTS[moment].rpartition(".")
    real = getattr(resolve_name(owner), name)

    def then(*given: Any, **named: Any) -> Any:
        before()
        result = real(*given, **named)
        after()
        return result

    setattr(resolve_name(owner), name, then)


def suicide(kill: Kill, arguments: list[str]) -> int:
    """`vi-lab train` in this process, which kills itself at a chosen moment."""
    calls = itertools.count(1)

    def end() -> None:
        if next(calls) != kill.call:
            return
        if kill.again is not None:
            timer = threading.Timer(kill.again, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        os.kill(os.getpid(), kill.signal)

    watch(kill.moment or "", *([lambda: None, end] if kill.after else [end, lambda: None]))
    return cli.main(["train", *arguments])


def counted_run(file: Path, arguments: list[str]) -> int:
    """`vi-lab train` in this process, and how often each moment came."""
    calls = dict.fromkeys(MOMENTS, 0)
    for moment in MOMENTS:
        watch(moment, lambda moment=moment: calls.update({moment: calls[moment] + 1}), lambda: None)
    code = cli.main(["train", *arguments])
    file.write_text(json.dumps(calls), encoding="utf-8")
    return code


def kill_from_outside(process: subprocess.Popen, kill: Kill) -> None:
    """After a time, counted from the start or from the first line of training."""
    if kill.delay is not None:
        time.sleep(kill.delay)
    else:
        for line in process.stdout:
            if " seed " in line or line.startswith("job "):  # of a sweep
                break
        time.sleep(kill.training)
    for number in (kill.signal, *([signal.SIGKILL] if kill.again is not None else [])):
        if process.poll() is None:
            process.send_signal(number)
        time.sleep(kill.again or 0)


def kill_until_done(
    arguments: list[str], folder: Path, kills: int, following: Callable[[], Kill]
) -> tuple[Counts, list[Kill]]:
    """Start a run or a sweep, kill and resume it up to `kills` times, and let it finish. Returns the kills, by name and
    as they came."""
    log, done, of_sweep = Counts(), [], "-m" in arguments
    file, key = ("multirun.yaml", "sweep") if of_sweep else ("config_resolved.yaml", "run")
    while True:
        kill = following() if log.total() < kills else None
        begun = (folder / file).is_file()
        inside = ("--suicide", json.dumps(kill)) if kill and kill.moment else ()
        process = train([f"resume={folder}"] if begun else [f"hydra.{key}.dir={folder}", *arguments], *inside)
        if kill and not kill.moment:
            kill_from_outside(process, kill)
        output = process.communicate()[0]
        code = process.returncode
        if code == 0:  # perhaps it was done before the signal came
            return log, done
        expected = () if kill is None else CODES[kill.signal] + (() if kill.again is None else (-signal.SIGKILL,))
        if code not in expected:
            raise SystemExit(f"{kill}: ended in exit code {code}:\n{output}")
        done.append(kill)
        log[f"{signal.Signals(kill.signal).name} {kill.moment or ('in a sweep' if of_sweep else 'any time')}"] += 1


def case(name: str, overrides: list[str], kills: int, chance: random.Random, scratch: Path) -> tuple[Counts, list[str]]:
    """One setting: a run that nobody touches, then others that are killed until there were so many kills."""
    arguments = [f"estimator={name}", *SMALL, *([] if "figures=true" in overrides else ["figures=false"]), *overrides]
    of_sweep = "-m" in arguments
    whole = scratch / "whole"
    alone = [a for a in arguments if a != "-m" and not a.startswith(("hydra", "seed="))]
    calls = str(scratch / "calls.json")
    parts = {}  # folder below the run's or the sweep's -> reference
    for index, seed in enumerate(("0", "1") if of_sweep else ("",)):
        job = f"{index}-{name}-s{seed}" if of_sweep else ""
        parts[job] = whole / job
        started = time.perf_counter()
        process = train([*alone, *([f"seed={seed}"] if seed else []), f"hydra.run.dir={parts[job]}"], "--count", calls)
        for line in process.stdout:
            if " seed " in line:
                started = time.perf_counter()
        if process.wait():
            raise SystemExit(f"{name}: the reference run failed")
    seconds = time.perf_counter() - started
    counted = {} if of_sweep else json.loads(Path(calls).read_text(encoding="utf-8"))
    log, found = Counts(), []
    for index in itertools.count():
        if log.total() >= kills:
            return log, found
        folder = scratch / f"killed {index}"
        counts, done = kill_until_done(arguments, folder, kills - log.total(), lambda: plan(chance, counted, seconds))
        log += counts
        for job, reference in parts.items():
            if unequal := differences(reference, folder / job):
                found.append(f"{', '.join(unequal[:5])} after {', '.join(map(str, done))}")
    raise AssertionError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="in all (default 30)")
    parser.add_argument("--estimators", default=",".join(SETTINGS), help=f"of {', '.join(SETTINGS)}, or any other")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--suicide", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="of the runs, such as trainer.max_epochs=20")
    options = parser.parse_intermixed_args()
    if options.suicide:
        return suicide(Kill(*json.loads(options.suicide)), options.overrides)
    if options.count:
        return counted_run(options.count, options.overrides)
    names = options.estimators.split(",")
    chance = random.Random(options.seed)
    chance.shuffle(names)  # where there are fewer kills than settings, each seed takes others
    unequal, log = 0, Counts()
    with tempfile.TemporaryDirectory() as scratch:
        for index, name in enumerate(names[: options.kills]):
            kills = options.kills // len(names) + (index < options.kills % len(names))
            overrides = [*SETTINGS.get(name, []), *options.overrides]
            counts, found = case(name, overrides, kills, chance, Path(scratch, name))
            log += counts
            unequal += bool(found)
            verdict = "equal to the last bit" if not found else "DIFFERS: " + "; ".join(found)
            print(f"{name} {' '.join(overrides)}: {counts.total()} kills: {verdict}", flush=True)
    for cause, count in sorted(log.items()):
        print(f"{count:5} {cause}")
    print(f"{log.total()} kills, {'all equal' if not unequal else f'NOT equal in {unequal} settings'}")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
