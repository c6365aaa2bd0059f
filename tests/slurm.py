"""As much of Slurm as submitit needs, on this machine: sbatch of an array, srun, sacct, and scontrol requeue.

    queue(FOLDER)    writes the four commands into FOLDER, to stand in PATH

A stand-in: it shows that what is submitted runs, is put into the queue again, and goes on; not that a cluster takes it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def queue(folder: Path) -> None:
    """The commands of a queue without limits; its state lies beside them."""
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {name} "{folder}" "$@"\n')
        command.chmod(0o755)


def sbatch(state: Path, *words: str) -> None:
    script = words[-1]
    last = int(re.search(r"#SBATCH --array=0-(\d+)", Path(script).read_text())[1])
    job = str(1000 + len({*state.glob("*_0.state")}))
    for task in map(str, range(last + 1)):
        (state / f"{job}_{task}.state").write_text("PENDING")
        command = [sys.executable, __file__, "batch", str(state), script, job, task]
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {job}")


def batch(state: Path, script: str, job: str, task: str) -> None:
    """What slurmd does with a task."""
    own, name = {}, f"{job}_{task}"
    for key, value in (("JOB_ID", job), ("ARRAY_JOB_ID", job), ("ARRAY_TASK_ID", task), ("NTASKS", "1")):
        own[f"SLURM_{key}"] = value
    own |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    while True:
        (state / f"{name}.state").write_text("RUNNING")
        code = subprocess.call(["bash", script], env={**os.environ, **own})
        if not (state / f"{name}.requeue").exists():
            (state / f"{name}.state").write_text("FAILED" if code else "COMPLETED")
            return
        (state / f"{name}.requeue").rename(state / f"{name}.requeued")


def srun(state: Path, *words: str) -> None:
    names = {f"%{key}": os.environ[f"SLURM_{value}"] for key, value in {"A": "JOB_ID", "a": "ARRAY_TASK_ID"}.items()}
    output = re.sub("%[Aat]", lambda found: names.get(found[0], "0"), words[words.index("--output") + 1])
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    command = words[words.index("--output") + 2 :]
    with open(output, "a") as file:
        sys.exit(subprocess.call(command, stdout=file, stderr=subprocess.STDOUT))


def sacct(state: Path, *words: str) -> None:
    print("JobID|State|NodeList")
    for file in state.glob("*.state"):
        print(f"{file.stem}|{file.read_text()}|here")


def scontrol(state: Path, *words: str) -> None:
    assert words[0] == "requeue"
    (state / f"{words[1]}.requeue").touch()


if __name__ == "__main__":
    {"sbatch": sbatch, "batch": batch, "srun": srun, "sacct": sacct, "scontrol": scontrol}[sys.argv[1]](
        Path(sys.argv[2]), *sys.argv[3:]
    )
