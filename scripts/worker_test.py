"""Kill workers of a named sweep at random, start others in their place, and compare with a sweep that nobody touched.

    python scripts/worker_test.py                                   # 3 workers, 12 jobs of which one fails, 10 kills
    python scripts/worker_test.py --kills 100 --workers 5 --seed 1

Signals: SIGINT, SIGTERM, SIGKILL. In the end every job is done once (one last word in its log, one claim that completed
it), none is lost, each is equal to the last bit to its like in the other sweep (see kill_test.py for what is compared),
and the job that fails has a traceback in its own log. The exit code is 0 where all of this holds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill_test import SIGNALS, SMALL, differences

from vi_lab.runs.claims import Claims

FAILING = 7
"""The seed of the job that fails."""
CALLBACK = f"""
from lightning.pytorch.callbacks import Callback

class Fail(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if pl_module.seed == {FAILING}:
            raise RuntimeError("a failure that was planned")
"""


def command(name: str, jobs: int, overrides: list[str]) -> list[str]:
    """Of a worker."""
    swept = ["-m", f"sweep={name}", "estimator=rloo", f"seed=range(0,{jobs})", "+callbacks.fail._target_=planned.Fail"]
    return [sys.executable, "-u", "-m", "vi_lab", "train", *SMALL, "figures=false", *swept, *overrides]


def start(words: list[str], scratch: Path, log: Path) -> subprocess.Popen:
    path = os.pathsep.join(filter(None, [str(scratch), os.environ.get("PYTHONPATH", "")]))
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, cwd=scratch, env={**os.environ, "PYTHONPATH": path}
        )


def disturbed(words: list[str], scratch: Path, workers: int, kills: int, chance: random.Random) -> list[str]:
    """Run a sweep with workers that are killed and replaced; returns what went wrong."""
    logs = [scratch / f"worker-{i}.log" for i in range(workers)]
    at_work = [start(words, scratch, log) for log in logs]
    killed = 0
    while killed < kills:
        time.sleep(chance.uniform(0.5, 6))
        i = chance.randrange(workers)
        if at_work[i].poll() is None:
            number = chance.choice(SIGNALS)
            print(f"kill {killed + 1}: {signal.Signals(number).name} to worker {i + 1}", flush=True)
            at_work[i].send_signal(number)
            killed += 1
            if number != signal.SIGKILL and chance.random() < 0.5:
                time.sleep(chance.uniform(0, 1))
                at_work[i].send_signal(signal.SIGKILL)
            at_work[i].wait()
        elif all(worker.poll() is not None for worker in at_work):
            break
        at_work[i] = start(words, scratch, logs[i])
    print(f"{killed} kills", flush=True)
    codes = [worker.wait() for worker in at_work]
    return [f"worker {i + 1} ended in exit code {code}, not 1" for i, code in enumerate(codes) if code != 1]


def wrong(sweep: Path, reference: Path, jobs: int) -> list[str]:
    """What is not as it should be in a sweep."""
    folders = sorted(folder.parent for folder in sweep.glob("*/status.json"))
    found = [] if len(folders) == jobs else [f"{len(folders)} jobs of {jobs}"]
    claims = Claims(sweep).read()
    for folder in folders:
        text, outcomes = (folder / "train.log").read_text(encoding="utf-8"), claims[folder.name]
        if f"-s{FAILING}-" in folder.name:
            told = "Traceback" in text and "a failure that was planned" in text
            found += [] if told and outcomes[-1] == "failed" else [f"{folder.name}: no failure with its traceback"]
            continue
        done = text.count("Run folder:")
        if done != 1 or outcomes.count("completed") != 1 or outcomes[-1] != "completed":
            found.append(f"{folder.name}: {done} times at its end; claims {outcomes}")
        found += [f"{folder.name}: {difference}" for difference in differences(reference / folder.name, folder)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("overrides", nargs="*", help="of the jobs, such as trainer.max_epochs=20")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "planned.py").write_text(CALLBACK, encoding="utf-8")
        whole, words = (command(name, options.jobs, options.overrides) for name in ("whole", "killed"))
        if start(whole, scratch, scratch / "whole.log").wait() != 1:
            raise SystemExit((scratch / "whole.log").read_text(encoding="utf-8"))
        found = disturbed(words, scratch, options.workers, options.kills, random.Random(options.seed))
        sweeps = scratch / "outputs" / "sweeps"
        found += wrong(sweeps / "killed", sweeps / "whole", options.jobs)
        print("\n".join(found) or "nothing twice, nothing lost, equal to the last bit")
        for log in scratch.glob("worker-*.log") if found else ():
            print(f"--- {log.name}\n{log.read_text(encoding='utf-8')[-3000:]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
