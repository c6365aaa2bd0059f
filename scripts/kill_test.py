"""Kill training runs at random moments, resume them, and compare with runs that nobody touched: equal to the last bit?

    python scripts/kill_test.py                                     # 30 kills over several estimators, a few minutes
    python scripts/kill_test.py --kills 100 --estimators rloo,rebar --seed 1 trainer.max_epochs=20

Each kill is SIGINT, SIGTERM or SIGKILL, during start-up, training, validation, a checkpoint write or the end. Compared
are metrics.json, metrics.csv, the weights, the optimizer's state, and TensorBoard's curves (no step twice). The exit
code is 0 where all are equal.
"""

from __future__ import annotations

import argparse
import collections
import glob
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SMALL = ["data=digits", "trainer.max_epochs=40", "network.encoder.hidden=[64]", "network.decoder.hidden=[64]",
         "accelerator=cpu", "threads=1", "trainer.log_every_n_steps=5", "checkpoint.every_n_steps=3",
         "schedule.floor=0.5", "figures_every_n_epochs=null"]  # fmt: skip


def train(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "vi_lab", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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
    return found


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def kill_until_done(arguments: list[str], folder: Path, kills: int, seconds: float, chance: random.Random) -> dict:
    """Start a run, kill and resume it up to `kills` times, and let it finish. Returns how often by which signal."""
    log = collections.Counter()
    while True:
        resume = (folder / "config_resolved.yaml").is_file()
        process = train(*([f"resume={folder}"] if resume else [f"hydra.run.dir={folder}", *arguments]))
        number = chance.choice(SIGNALS)
        if log.total() < kills:
            if chance.random() < 0.1:  # while it starts up
                time.sleep(chance.uniform(0, 5))
            else:
                for line in process.stdout:
                    if " seed " in line:
                        break
                time.sleep(chance.uniform(0, 0.4 * seconds))
            if process.poll() is None:
                process.send_signal(number)
        output = process.communicate()[0]
        code = process.returncode
        if code == 0:  # perhaps it was done before the signal came
            return log
        log[number.name] += 1
        if code not in {signal.SIGINT: (130, -2), signal.SIGTERM: (143, -15), signal.SIGKILL: (-9,)}[number]:
            raise SystemExit(f"{number.name} ended in exit code {code}:\n{output}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="in all (default 30)")
    parser.add_argument("--estimators", default="gumbel_softmax,gaussian,rebar,nvil,reinforce_moving_average,vq")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("overrides", nargs="*", help="of the runs, such as trainer.max_epochs=20")
    options = parser.parse_args()
    names = options.estimators.split(",")
    chance = random.Random(options.seed)
    equal, log = True, collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for index, name in enumerate(names):
            kills = options.kills // len(names) + (index < options.kills % len(names))
            arguments = [o for o in SMALL if name.endswith("softmax") or not o.startswith("schedule.")]
            arguments = [f"estimator={name}", *arguments, *options.overrides]
            if name.endswith("softmax"):
                arguments.append("schedule=exponential")
            whole, killed = Path(scratch, name, "whole"), Path(scratch, name, "killed")
            process = train(*arguments, f"hydra.run.dir={whole}")
            for line in process.stdout:
                if " seed " in line:
                    break
            started = time.perf_counter()
            if process.communicate() and process.returncode:
                raise SystemExit(f"{name}: the reference run failed")
            seconds = time.perf_counter() - started
            signals, found, runs = collections.Counter(), [], 0
            while signals.total() < kills:
                killed, runs = Path(scratch, name, f"killed {runs}"), runs + 1
                signals += kill_until_done(arguments, killed, kills - signals.total(), seconds, chance)
                found += differences(whole, killed)
            log += signals
            equal = equal and not found
            verdict = "equal to the last bit" if not found else "DIFFERS: " + "; ".join(found[:5])
            steps = json.loads((whole / "metrics.json").read_text())["step"]
            print(f"{name}: {runs} runs of {steps} steps, killed by {dict(signals)}: {verdict}", flush=True)
    print(f"{log.total()} kills ({dict(log)}), {'all equal' if equal else 'NOT equal'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
