"""Make the environment fail while `vi-lab` works: is each fault said in one line, and nothing lost that was finished?

    python scripts/fault_test.py                  # all faults, two at a time; half an hour, on Linux
    python scripts/fault_test.py --list
    python scripts/fault_test.py --only disk      # those whose name holds the word

Each fault happens to real commands, small, in a folder of their own. Demanded each time: the exit code, on stderr no
traceback and at most a line or two, with the words that name the fault; a run that ends well is equal to the last bit
to one that nothing touched; and one that does not goes on with `resume=` once the fault is gone, to the same bits. What
this machine does not allow, such as mounting, is skipped, visibly. The exit code is 0 where nothing failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kill_test

from vi_lab import cli

TIME_LIMIT = 240
"""Seconds after which a command counts as hung."""
SMALL = [*kill_test.SMALL, "trainer.max_epochs=3"]
PLAIN = [*SMALL, "figures=false"]

# What the faults are written in. `train` is vi-lab train into $RUN; `at MOMENT CALL PYTHON train` has the Python run in
# the process itself before that call of that moment of kill_test.MOMENTS, with `sh` for a shell's command.
PRELUDE = f"""
SMALL=({" ".join(map(shlex.quote, PLAIN))})
FIGURES=({" ".join(map(shlex.quote, SMALL))})
AS=() PY=("$PYTHON" -m vi_lab)
vi() {{ $EXEC "${{AS[@]}}" "${{PY[@]}}" "$@"; }}
train() {{ vi train "${{SMALL[@]}}" hydra.run.dir="$RUN" "$@"; }}
pictures() {{ vi train "${{FIGURES[@]}}" hydra.run.dir="$RUN" "$@"; }}
sweep() {{ vi train -m "${{SMALL[@]}}" seed=0,1 hydra.sweep.dir="$RUN" "$@"; }}
joblib() {{ sweep hydra/launcher=joblib hydra.launcher.n_jobs=2 "$@"; }}
at() {{ local PY=("$PYTHON" "$SCRIPT" --inside "$1" "$2" "$3" --); shift 3; "$@"; }}
disk() {{ mkdir -p disk; mount -t tmpfs -o "$1" tmpfs disk; }}
nobody() {{ chmod 777 .; ((EUID)) || AS=(setpriv --reuid=65534 --regid=65534 --clear-groups); HOME=$PWD "$@"; }}
"""
FILL = "sh('head -c 1G /dev/zero >disk/ballast 2>/dev/null')"
ROOM = "rm -f disk/ballast; mount -o remount,size=100m disk"


class Fault(NamedTuple):
    """One way in which the environment fails."""

    name: str
    run: str  # in bash, after PRELUDE
    code: int | tuple[int, ...] = 0
    says: str = ""  # pattern that stderr must hold
    mend: str = ""  # what makes the fault go away
    resume: str | None = 'vi train resume="$RUN"'  # None: nothing is there to go on with
    equals: str | None = "plain"  # to which reference the run is equal in the end; None: not compared
    needs: str = ""  # of NEEDS
    lines: int = 1  # of stderr, at most
    where: str = "run"  # the run folder, below the fault's own


def disk_full(moment: str, call: int, says: str = "No space left on device", **more: Any) -> Fault:
    run = f"disk size=60m; at {shlex.quote(moment)} {call} {shlex.quote(FILL)} train"
    name = f"disk full at {moment} {call}"
    return Fault(name, **{"run": run, "code": 1, "says": says, "mend": ROOM, **DISK, **more})


def meanwhile(name: str, command: str, **more: Any) -> Fault:
    """Something done to the folder in the middle of the second epoch."""
    return Fault(name, f'at step 20 "sh({command!r})" train', **more)


def after_training(name: str, command: str) -> list[Fault]:
    """Faults of a command that reads a finished run, a copy of it."""
    ways = {
        "stdout closed": Fault("", f"vi {command} >&-"),
        "stderr closed": Fault("", f"vi {command} 2>&-"),
        "stdout broken": Fault("", f"vi {command} | true; exit ${{PIPESTATUS[0]}}", (0, 141)),
        "stdout full": Fault("", f"vi {command} >/dev/full", 1, "stdout"),
        "disk full": Fault("", f"cd disk; head -c 1G /dev/zero >x 2>/dev/null; vi {command}", 1, "No space left"),
        "files of 1 KiB": Fault("", f"ulimit -f 1; vi {command} >/dev/null", 1, "File too large"),
    }
    found = []
    for way, fault in ways.items():
        first = ("disk size=9m; " if way == "disk full" else "") + 'cp -r "$DONE" "$RUN"; '
        where = DISK if way == "disk full" else {}
        found.append(fault._replace(name=f"{name}: {way}", run=first + fault.run, resume=None, equals=None, **where))
    return found


DISK: dict[str, Any] = {"needs": "mount", "where": "disk/run"}
# fmt: off
FAULTS = [
    # --- room
    disk_full("start", 1, resume="train"),
    disk_full("first line", 1),
    disk_full("checkpoint", 1),
    disk_full("checkpoint", 4),
    disk_full("tables", 1),
    disk_full("tables", 3),
    disk_full("validation", 2),
    disk_full("test", 1),
    disk_full("evaluation", 1),
    disk_full("last words", 1),
    disk_full("picture", 2, run=f"disk size=60m; at picture 2 {shlex.quote(FILL)} pictures", equals="figures"),
    Fault("disk full before the start",
        f'disk size=200k; "$PYTHON" -c "from os import system as sh; {FILL}"; train',
        1, "No space left", ROOM, resume="train", **DISK),
    Fault("files of 300 KiB at most", "ulimit -f 300; train", 1, "File too large"),
    Fault("files of 8 KiB at most", "ulimit -f 8; train", 1, "File too large"),
    Fault("inodes gone at the start", "disk size=60m,nr_inodes=4; train", 1, "No space left",
          "mount -o remount,nr_inodes=1000 disk", "train", **DISK),
    Fault("inodes gone meanwhile", "disk size=60m,nr_inodes=100; at checkpoint 4 "
          "\"sh('for i in {1..200}; do >disk/ballast\\$i; done 2>/dev/null')\" train", 1, "No space left",
          "rm -f disk/ballast*", **DISK),
    Fault("disk full in a sweep", f"disk size=60m; at checkpoint 6 {shlex.quote(FILL)} sweep", 1, "No space left",
          ROOM, equals="sweep", lines=4, **DISK),
    # --- descriptors and memory
    Fault("64 descriptors", "ulimit -n 64; train"),
    Fault("64 descriptors and a joblib sweep", "ulimit -n 64; joblib", equals="sweep"),
    Fault("12 descriptors", "ulimit -n 12; train", (0, 1), "", resume="train"),
    *[Fault(f"{mib} MiB of memory", f"ulimit -v {mib * 1024}; train", (0, 1), resume='[ -e "$RUN" ] || train')
      for mib in (200, 600, 1000, 1400)],
    Fault("memory gone at a step", 'at step 20 "import resource; resource.setrlimit(resource.RLIMIT_DATA, (1, 1)); '
          'bytearray(10**9)" train', 1, "memory"),
    # --- clocks
    Fault("clock set back", "at step 20 'time.time = lambda: 1e6' train"),
    Fault("clock far ahead", "at step 20 'time.time = lambda: 1e10' train"),
    Fault("clock set back between", "at step 20 'os.kill(os.getpid(), 15)' train", 143, "go on with",
          resume="at start 1 'time.time = lambda: 1e6' vi train resume=\"$RUN\"", lines=3),
    Fault("clock far ahead between", "at step 20 'os.kill(os.getpid(), 15)' train", 143, "go on with",
          resume="at start 1 'time.time = lambda: 1e10' vi train resume=\"$RUN\"", lines=3),
    Fault("another time zone", "TZ=Asia/Tokyo at step 20 'os.environ[\"TZ\"] = \"America/Lima\"; time.tzset()' train"),
    # --- variables
    Fault("no HOME, TERM, USER", "env -u HOME -u TERM -u USER -u LOGNAME true; unset HOME TERM USER LOGNAME; train"),
    Fault("only PATH and PYTHONPATH", 'AS=(env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH"); train'),
    Fault("ASCII output", "LANG=C LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii train"),
    Fault("ASCII file names", "LANG=C LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 train"),
    Fault("one column", "COLUMNS=1 train"),
    Fault("20 columns", "COLUMNS=20 LINES=1 train"),
    Fault("COLUMNS is no number", "COLUMNS=wide train"),
    Fault("no TMPDIR", "TMPDIR=$PWD/nowhere train"),
    Fault("no TMPDIR, with pictures and joblib", "TMPDIR=$PWD/nowhere joblib", equals="sweep"),
    Fault("TMPDIR on another file system", "mkdir shm; mount -t tmpfs -o size=1m tmpfs shm; TMPDIR=$PWD/shm train;"
          " code=$?; umount -l shm; exit $code", needs="mount"),
    # --- streams
    Fault("stdout closed", "train >&-"),
    Fault("stderr closed", "train 2>&-"),
    Fault("stdout and stderr closed", "train >&- 2>&-"),
    Fault("all streams closed", "train <&- >&- 2>&-"),
    Fault("stdin closed", "train <&-"),
    Fault("a mistake with stderr closed", "train estimator=none 2>&-", 2, resume=None, equals=None),
    Fault("a mistake with stderr full", "train estimator=none 2>/dev/full", 2, resume=None, equals=None),
    Fault("a mistake with stderr broken", "train estimator=none 2> >(true)", 2, resume=None, equals=None),
    Fault("stdout broken", "train | head -1; exit ${PIPESTATUS[0]}", 141),
    Fault("stdout broken in the table of the end", "train | head -4; exit ${PIPESTATUS[0]}", 141),
    Fault("stderr broken", "train 2> >(true)"),
    Fault("stdout full", "train >/dev/full", 1, "No space left on device.*stdout|stdout.*No space left on device"),
    Fault("stderr full", "train 2>/dev/full"),
    Fault("stdout broken in joblib", "joblib | head -1; exit ${PIPESTATUS[0]}", (1, 141), equals="sweep", lines=4),
    # --- signals
    *[Fault(f"SIG{name} at a step", f"at step 20 'os.kill(os.getpid(), signal.SIG{name})' train", code, says, lines=3)
      for name, code, says in (("HUP", 129, "SIGHUP.*go on with"), ("TERM", 143, "SIGTERM.*go on with"),
                               ("PIPE", 0, ""), ("USR1", 138, ""), ("QUIT", 131, ""), ("KILL", 137, ""))],
    Fault("SIGHUP under nohup", "trap '' HUP; at step 20 'os.kill(os.getpid(), 1)' train"),
    Fault("SIGHUP of a sweep", "at step 20 'os.kill(os.getpid(), 1)' sweep", 129, "SIGHUP", lines=4, equals="sweep"),
    Fault("SIGHUP of a joblib sweep", 'EXEC=exec joblib & sleep 14; kill -HUP $!; wait $!', 129, "SIGHUP", lines=4,
          equals="sweep"),
    Fault("terminal gone", '"$PYTHON" "$SCRIPT" --hang-up "$RUN"', 129),
    Fault("SIGSTOP and SIGCONT", "EXEC=exec train & sleep 6; kill -STOP $!; sleep 3; kill -CONT $!; wait $!"),
    # --- the folder
    meanwhile("folder deleted", 'rm -rf "$RUN"', code=1, says="run: .*gone|No such file", resume="train"),
    meanwhile("folder renamed", 'mv "$RUN" other', code=1, says="run: .*gone|No such file",
              mend='[ ! -e "$RUN" ] && mv other "$RUN"'),
    meanwhile("folder replaced by a file", 'rm -rf "$RUN"; >"$RUN"', code=1, says="Not a directory|gone|exists",
              mend='rm "$RUN"', resume="train"),
    meanwhile("checkpoints deleted", 'rm -rf "$RUN"/checkpoints'),
    meanwhile("event files deleted", 'rm -f "$RUN"/events*', equals=None),
    meanwhile("tables deleted", 'rm -f "$RUN"/*.csv "$RUN"/status.json'),
    Fault("current folder deleted meanwhile", 'mkdir here; cd here; at step 20 "os.rmdir(os.getcwd())" train'),
    Fault("current folder deleted before", 'mkdir here; cd here; rmdir ../here; train', (0, 1), resume="train"),
    Fault("folder without permission meanwhile", 'nobody at step 20 "sh(\'chmod 500 $RUN $RUN/checkpoints\')" train', 1,
          "Permission denied", 'chmod 700 "$RUN" "$RUN"/checkpoints', needs="nobody"),
    Fault("data removed after the start", '"$PYTHON" "$SCRIPT" --images data; at step 20 "sh(\'rm -r data\')" '
          "train data=mnist data.root=data data.download=false data.validation=100", equals=None, resume=None),
    # --- names
    Fault("output without permission", "mkdir -m 555 ro; nobody train", 1, "Permission denied",
          "chmod 777 ro", "train", needs="nobody", where="ro/run"),
    Fault("output on a read-only disk", "disk size=9m,ro; train", 1, "Read-only file system",
          "mount -o remount,rw,size=100m disk", "train", **DISK),
    Fault("output is a file", '>"$RUN"; train', (1, 2), "run", 'rm "$RUN"', "train"),
    Fault("output below a file", '>file; train hydra.run.dir=file/run', (1, 2), "file", resume="train"),
    *[Fault(f"name {name!r}", f'vi train "${{SMALL[@]}}" hydra.run.dir={shlex.quote(quoted)}', resume=None, where=name)
      for name, quoted in ((name, "'" + str.replace(name, "'", "\\'") + "'") for name in (
          "with space", "it's", 'a "quoted" one', "two\nlines", "Größe-日本", "x" * 200, "-begins", "--resume", "a=b",
          "a,b", "100%", "[x]", "*", "~", "#1", "a\\b", ".hidden", "[red]x[/red]"))],
    Fault("name ${x}", "train hydra.run.dir='\"${x}\"'", (1, 2), "x", resume=None, equals=None),
    Fault("name of 300 characters", f"train hydra.run.dir={'x' * 300}", 1, "File name too long", resume="train"),
    Fault("path of 5,000 characters", f"train hydra.run.dir={'/'.join(['x' * 99] * 50)}", 1, "File name too long",
          resume="train"),
    # --- two at once
    Fault("two resume at once", "at step 20 'os.kill(os.getpid(), 15)' train 2>/dev/null; "
          'vi train resume="$RUN" & vi train resume="$RUN"; a=$?; wait $!;'
          ' b=$?; echo "codes $a $b"; exit $((a > b ? a : b))', (0, 2), resume=None),
    Fault("the same run twice", 'train & train; a=$?; wait $!; b=$?; exit $((a > b ? a : b))', 2,
          "another process|holds a run"),
    Fault("the same sweep twice", 'sweep & sweep; a=$?; wait $!; b=$?; exit $((a > b ? a : b))', (1, 2),
          "another process|holds a", equals="sweep", lines=6),
    # --- checkpoints
    Fault("last.ckpt without permission", 'nobody at step 30 "os.kill(os.getpid(), 15)" train; '
          'chmod 000 "$RUN"/checkpoints/last.ckpt; HOME=$PWD vi train resume="$RUN"', needs="nobody", lines=2),
    Fault("best.ckpt missing",
          'at step 20 "os.kill(os.getpid(), 15)" train; rm -f "$RUN"/checkpoints/best.ckpt; exit 1',
          1, lines=3),
    Fault("previous.ckpt only", 'at step 20 "os.kill(os.getpid(), 15)" train; rm -f "$RUN"/checkpoints/[bl]*; exit 1',
          1, lines=3),
    Fault("checkpoints/ is a file", 'mkdir "$RUN"; >"$RUN"/checkpoints; train', (1, 2), "checkpoints",
          'rm "$RUN"/checkpoints'),
    # --- other commands, on a copy of the finished run
    *itertools.chain.from_iterable(after_training(*one) for one in (
        ("evaluate", 'evaluate run="$RUN" evaluation.samples=5'), ("compare", 'compare "$RUN" --output out'),
        ("audit", 'audit run="$RUN" audit.estimators=[rloo] audit.samples=40 audit.batch=2 '
         'audit.reference_draws=50 audit.warmup=1 hydra.run.dir=out'),
        ("reproduce", 'reproduce "$RUN" --output out'))),
]
# fmt: on


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "tmpfs", folder]
        if subprocess.run(command, capture_output=True).returncode:
            return False
        return subprocess.run(["umount", "-l", folder], capture_output=True).returncode == 0


def can_be_nobody() -> bool:
    """Whether we have no special permissions, or may give them up and still find Python and vi_lab."""
    if os.geteuid():
        return True
    identity = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    probe = "import os, sys, torch, vi_lab.cli; sys.exit(os.access('/root', os.W_OK))"
    try:
        return subprocess.run([*identity, sys.executable, "-c", probe], capture_output=True).returncode == 0
    except OSError:
        return False


NEEDS: dict[str, Callable[[], bool]] = {"mount": can_mount, "nobody": can_be_nobody, "": lambda: True}


def bash(script: str, folder: Path, run: Path, done: Path) -> tuple[int, str]:
    """Run a script in a folder; its exit code (124: it hung) and stderr."""
    environment = {**os.environ, "PYTHON": sys.executable, "SCRIPT": __file__, "RUN": str(run)}
    environment |= {"DONE": str(done), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("w+b") as stderr:
        process = subprocess.Popen(
            ["bash", "-c", PRELUDE + script], cwd=folder, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        )  # fmt: skip
        try:
            code = process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            code = 124
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        stderr.seek(0)
        return code, stderr.read().decode(errors="replace")


def complaints(fault: Fault, code: int, stderr: str) -> list[str]:
    """What is wrong about how a command has ended under a fault."""
    codes = fault.code if isinstance(fault.code, tuple) else (fault.code,)
    found = []
    if code not in codes:
        found.append(f"exit code {code}" if code != 124 else f"hung for {TIME_LIMIT} s")
    if re.search(r"Traceback|Exception ignored|Exception in thread|Fatal Python", stderr):
        found.append("a traceback")
    elif re.search(r"^(vi-lab \w+: )?\w*(Error|Exception|Interrupt)\b:", stderr, re.MULTILINE):
        found.append("the name of a Python class")
    lines = [line for line in stderr.splitlines() if line and not line.startswith(("bash:", "environment:"))]
    if len(lines) > fault.lines:
        found.append(f"{len(lines)} lines of stderr")
    if not re.search(fault.says, stderr, re.DOTALL):
        found.append(f"stderr does not say {fault.says!r}")
    return [f"{text}: {stderr.strip()[-600:]!r}" if index == 0 else text for index, text in enumerate(found)]


def attempt(fault: Fault, folder: Path, references: dict[str, Path]) -> list[str]:
    """Let a fault happen, then go away; what was not as it should be."""
    folder.mkdir()
    run = folder / fault.where
    code, stderr = bash(fault.run, folder, run, references["plain"])
    found = complaints(fault, code, stderr)
    try:
        if fault.resume is not None and (code != 0 or not fault.equals):
            code, stderr = bash(f"{fault.mend}\n{fault.resume}", folder, run, references["plain"])
            if code:
                found.append(f"does not go on: exit code {code}: {stderr.strip()[-600:]!r}")
                return found
        if fault.equals is not None and (code == 0 or fault.resume is not None):
            jobs = {"sweep": {"0-gumbel_softmax-s0": "plain", "1-gumbel_softmax-s1": "one"}}
            for job, name in jobs.get(fault.equals, {"": fault.equals}).items():
                found += [f"in the end {text}" for text in kill_test.differences(references[name], run / job)]
    except OSError as error:
        found.append(f"lost: {error}")
    finally:
        subprocess.run(["umount", "-l", str(folder / "disk")], capture_output=True)
    return found


def inside(moment: str, call: int, code: str, arguments: list[str]) -> int:
    """A command in this process, which does something to its world before a call of a moment."""
    calls = itertools.count(1)
    names = {"os": os, "time": time, "signal": signal, "sh": lambda line: subprocess.run(["bash", "-c", line])}

    def happen() -> None:
        if next(calls) == call:
            exec(code, names)  # of FAULTS

    kill_test.watch(moment, happen, lambda: None)
    return cli.main(arguments)


def hang_up(folder: str) -> int:
    """`vi-lab train` on a terminal that is closed when training has begun; its exit code."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        command = [sys.executable, "-m", "vi_lab", "train", *PLAIN, "trainer.max_epochs=3", f"hydra.run.dir={folder}"]
        os.execv(sys.executable, command)
    seen = b""
    while b"epoch 1/3" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def images(folder: str) -> int:
    """MNIST's files with random images."""
    import gzip
    import struct

    raw = Path(folder, "MNIST", "raw")
    raw.mkdir(parents=True)
    for name, count in (("train", 600), ("t10k", 100)):
        pixels, labels = os.urandom(count * 784), bytes(i % 10 for i in range(count))
        for kind, head, body in (("images-idx3", struct.pack(">IIII", 0x803, count, 28, 28), pixels),
                                 ("labels-idx1", struct.pack(">II", 0x801, count), labels)):  # fmt: skip
            (raw / f"{name}-{kind}-ubyte").write_bytes(head + body)
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + body))
    return 0


def references(scratch: Path, names: Sequence[str]) -> dict[str, Path]:
    """Runs that nothing touches."""
    commands = {"plain": "train", "one": "train seed=1", "figures": "pictures"}
    made = {}
    for name in names:
        folder = scratch / f"reference-{name}"
        folder.mkdir()
        code, stderr = bash(commands[name], folder, folder / "run", folder)
        if code:
            raise SystemExit(f"the reference run failed: {stderr}")
        made[name] = folder / "run"
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=[], action="append", metavar="NAME", help="faults whose name holds this")
    parser.add_argument("--list", action="store_true", help="the names of all faults")
    parser.add_argument("--jobs", type=int, default=2, help="faults at once (default 2)")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--hang-up", help=argparse.SUPPRESS)
    parser.add_argument("--images", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        moment, call, code = options.inside
        return inside(moment, int(call), code, options.arguments)
    if options.hang_up or options.images:
        return hang_up(options.hang_up) if options.hang_up else images(options.images)
    if options.list:
        print("\n".join(repr(fault.name)[1:-1] for fault in FAULTS))
        return 0
    chosen = [f for f in FAULTS if not options.only or any(word in f.name for word in options.only)]
    allowed = {need: NEEDS[need]() for need in {fault.needs for fault in chosen}}
    for number in (
        signal.SIGQUIT,
        signal.SIGHUP,
    ):  # ignored, and so in what we start, by nohup or with &
        signal.signal(number, signal.SIG_DFL)
    failed = skipped = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as name, ThreadPoolExecutor(options.jobs) as pool:
        scratch = Path(name)
        scratch.chmod(0o755)
        equal_to = {fault.equals for fault in chosen}
        wanted = ["plain", *(["one"] if "sweep" in equal_to else []), *(["figures"] if "figures" in equal_to else [])]
        whole = references(scratch, wanted)
        outcomes = [
            pool.submit(attempt, fault, scratch / str(index), whole) if allowed[fault.needs] else None
            for index, fault in enumerate(chosen)
        ]
        for fault, outcome in zip(chosen, outcomes, strict=True):
            found = [] if outcome is None else outcome.result()
            failed, skipped = failed + bool(found), skipped + (outcome is None)
            verdict = f"skipped: needs {fault.needs}" if outcome is None else "FAILED: " + "; ".join(found)
            print(f"{fault.name!r:45} {'ok' if outcome and not found else verdict}", flush=True)
    print(f"{len(chosen)} faults, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
