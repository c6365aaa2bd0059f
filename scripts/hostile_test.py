"""Spoil run folders and sweep folders in every way that comes to mind, and open them with every command.

    python scripts/hostile_test.py                              # 300 tries and 1,000 flipped bits, minutes
    python scripts/hostile_test.py --tries 3000 --seed 1
    python scripts/hostile_test.py --tries 0 --flips 100000 --truncations

A small run and a small sweep are trained on the embedded digits; each try spoils a copy by a seeded random mutation and
gives it to a command, in a forked process of limited time and memory. Demanded: exit code 0, 1 or 2; at most one line
on stderr, which says what is wrong without the name of a Python class; no byte that steers a terminal; nothing run,
nothing written outside of the folder, no hang, no signal. Of a checkpoint with flipped bits or cut short, each copy
must be refused. The figures come last; the exit code is 0 where nothing failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

import vi_lab.commands.audit
import vi_lab.commands.compare
import vi_lab.commands.evaluate
import vi_lab.commands.reproduce
import vi_lab.commands.train
import vi_lab.training.session  # noqa: F401  (imported once, before the forks)
from vi_lab import cli, load_run
from vi_lab.errors import ViLabError
from vi_lab.runs.trust import load_checkpoint, seal

SMALL = ["data=digits", "trainer.max_epochs=1", "figures=false", "network.encoder.hidden=[8]", "accelerator=cpu",
         "network.decoder.hidden=[8]", "latent=2x10", "threads=1", "evaluation.samples=2"]  # fmt: skip
COMMANDS = {
    "resume": ["train", "resume=theirs", "trainer.max_epochs=2"],
    "reproduce": ["reproduce", "theirs", "--output", "again"],
    "evaluate": ["evaluate", "run=theirs", "evaluation.samples=2", "evaluation.images=20", "hydra.run.dir=lab"],
    "audit": ["audit", "run=theirs", "audit.samples=40", "audit.estimators=[rloo]", "audit.batch=4", "audit.warmup=0",
              "audit.temperatures=[]", "hydra.run.dir=lab"],
    "compare": ["compare", "theirs", "--output", "again"],
    "load_run": [],
}  # fmt: skip
SWEEP_COMMANDS = {"resume": ["train", "resume=theirs"], "compare": COMMANDS["compare"]}
SECONDS, MEMORY = 90, 6 << 30
STEERING = "\x1b[2J\x1b]0;x\x07\u202e[/bold][link=x]:smile:"
NASTY: list[Any] = [
    *(None, True, -1, 0, 10**12, 10**30, 10**4000, 1e308, float("nan"), float("inf"), "", STEERING, "x" * 100_000),
    *("???", "${oc.env:HOME}", "${hydra:runtime.cwd}", "../../elsewhere", "/etc/passwd", "nan", "\0", "\ud7ff"),
    *([], {}, [[]], [None], {"_target_": "os.system", "command": "touch planted"}, {"_target_": STEERING}),
    *(["x"] * 3, {"a": {"b": {}}}),
]
TEXTS = ["config_resolved.yaml", "environment.json", "status.json", "metrics.json", "metrics.csv", "timing.csv",
         "evaluation.json", "units.csv"]  # fmt: skip
ANY = [*TEXTS, ".lock", "checkpoints", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/previous.ckpt",
       "hparams.yaml", "events.out.tfevents.1", "scalars.csv", "figures", "loggers.json", ".hydra", "train.log",
       "units.csv", "reproduction.json"]  # fmt: skip
CLASS = re.compile(r"vi-lab [\w ]+: [A-Z]\w*(Error|Exception|Warning|Interrupt)\b|Traceback|--debug shows where")
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


class Payload:
    """Runs a command where it is unpickled by anything that would."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch planted",)


# --- mutations: each spoils a folder in the present directory, and says how ------------------------------------------


def damage(chance: random.Random, folder: Path, names: list[str]) -> str:
    """Bytes of a file that are gone, changed, or too many."""
    file = folder / chance.choice([name for name in names if (folder / name).is_file()])
    content, how = (
        bytearray(file.read_bytes()),
        chance.choice(["cut", "flip", "append", "bom", "latin-1", "huge", "empty"]),
    )
    if how == "cut":
        content = content[: chance.randrange(len(content) + 1)]
    elif how == "flip" and content:
        for _ in range(chance.choice([1, 10, 100])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "empty":
        content = bytearray()
    else:
        content = {"append": content + b"\0\xff\x1b[2J", "bom": b"\xef\xbb\xbf" + content,
                   "latin-1": content + b"# \xe9\n"}.get(how, content)  # fmt: skip
    file.write_bytes(content)
    if how == "huge":
        os.truncate(file, chance.choice([1 << 30, 1 << 40]))
    return f"damage {how}"


def replace(chance: random.Random, folder: Path, names: list[str]) -> str:
    """Something else than a file in the place of one."""
    file, kind = (
        folder / chance.choice(names),
        chance.choice(["pipe", "folder", "socket", "zero", "link", "hard", "circle"]),
    )
    if not file.parent.is_dir():
        return "replace nothing"
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(os.path.relpath(file))
    elif kind == "hard":
        os.link("outside", file)
    else:
        file.symlink_to({"zero": "/dev/zero", "circle": file.name}.get(kind, str(Path("outside").resolve())))
    return f"replace by {kind}"


def _nodes(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested containers."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [pair for key, inner in items for pair in [(node, key), *_nodes(inner)]]


def _change(chance: random.Random, values: Any) -> str:
    node, key = chance.choice(_nodes(values))
    how = chance.choice(["delete", "value", "value", "value", "value", "key"])
    if how == "delete":
        del node[key]
    elif how == "key" and isinstance(node, dict):
        node[chance.choice([STEERING, "_target_", "x" * 5000])] = node.pop(key)
    else:
        node[key] = chance.choice(NASTY)
    return how


def settings(chance: random.Random, folder: Path, names: list[str]) -> str:
    """Values, keys and kinds in a yaml or json file."""
    file = folder / chance.choice([n for n in names if n.endswith(("yaml", "json")) and (folder / n).is_file()])
    values = yaml.safe_load(file.read_text())
    how = _change(chance, values)
    dump = yaml.safe_dump if file.suffix == ".yaml" else json.dumps
    sys.set_int_max_str_digits(0)
    text = dump(values)
    sys.set_int_max_str_digits(4300)
    file.write_text(text)
    return f"settings {how}"


def bomb(chance: random.Random, folder: Path, names: list[str]) -> str:
    """A few bytes that stand for many, or that a reader sinks into."""
    file = folder / chance.choice([n for n in names if n.endswith(("yaml", "json")) and (folder / n).is_file()])
    aliases = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    text, kind = file.read_text(), chance.choice(["deep", "aliases", "twice", "digits", "date", "object"])
    file.write_text({
        "deep": "[" * 100_000 + "]" * 100_000, "aliases": text + aliases, "twice": text + text,
        "digits": f'{{"step": {"9" * 100_000}}}', "date": text + "extra: 2020-01-01\n",
        "object": text + "extra: !!python/object/apply:os.system ['touch planted']\n",
    }[kind])  # fmt: skip
    return f"bomb {kind}"


def _sealed(file: Path, content: bytes) -> None:
    file.unlink()
    with file.open("x+b") as target:
        target.write(content)
        seal(target)


def checkpoint(chance: random.Random, folder: Path, names: list[str]) -> str:
    """A checkpoint with its digest, of which a value, a tensor or the archive is not as it should be."""
    file = folder / "checkpoints" / "last.ckpt"
    (file.parent / "previous.ckpt").unlink(missing_ok=True)
    kind = chance.choice(["value", "value", "value", "tensor", "tensor", "code", "archive", "pickle"])
    content = file.read_bytes()[:-48]
    values = torch.load(io.BytesIO(content), weights_only=True)
    written = io.BytesIO()
    if kind == "tensor":
        holders = [(node, key) for node, key in _nodes(values) if isinstance(node[key], torch.Tensor)]
        node, key = chance.choice(holders)
        like = node[key]
        node[key] = chance.choice([
            lambda: torch.zeros(3), lambda: like.to(torch.int64), lambda: like.to(torch.complex64),
            lambda: torch.zeros((), dtype=like.dtype).expand(like.shape), lambda: like.to_sparse() if like.ndim else 1,
            lambda: torch.zeros(like.shape, device="meta"), lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: like.new_full(like.shape, float("nan")), lambda: "text", lambda: like.unsqueeze(0),
        ])()  # fmt: skip
    elif kind == "value":
        _change(chance, values)
    elif kind == "code":
        node, key = chance.choice([pair for pair in _nodes(values) if pair[1] != "state_dict"])
        node[key] = Payload()
    if kind in ("value", "tensor", "code"):
        torch.save(values, written)
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
            for member in old.infolist():
                data = bytearray(old.read(member))
                if kind == "pickle" and member.filename.endswith("data.pkl"):
                    for _ in range(chance.choice([1, 1, 1, 5])):
                        data[chance.randrange(len(data))] = chance.randrange(256)
                elif kind == "archive" and chance.random() < 0.2:
                    data = data * 2 if chance.random() < 0.5 else data[: len(data) // 2]
                packed = kind == "archive" and chance.random() < 0.2
                new.writestr(member.filename, bytes(data), zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    _sealed(file, pickle.dumps(Payload()) if chance.random() < 0.02 else written.getvalue())
    return f"checkpoint {kind}"


def overrides(chance: random.Random, folder: Path, names: list[str]) -> str:
    """A sweep whose jobs are without end, or do what no job should."""
    file = folder / "multirun.yaml"
    values = yaml.safe_load(file.read_text())
    word = chance.choice([
        "seed=range(0,100000000)", "optimizer.lr=range(0,1e12)", "optimizer.lr=range(0,1,0.0)", "seed=interval(0,1)",
        "seed=shuffle(range(0,1e9))", "seed=choice(1,choice(2,3))", "seed=sort(range(1,9),reverse=true)",
        "estimator=glob(*)",
        "seed=tag(a,b,range(0,1e9))", "seed=" + "(" * 500, "name=${oc.env:HOME}", "name=../../elsewhere",
        "+x._target_=os.system", "hydra.run.dir=/tmp/elsewhere", f"name={STEERING}", "seed=" + "9" * 5000,
        "logger.tensorboard.save_dir=/tmp/elsewhere", "~optimizer", "seed=", "=", "data.root=/etc", STEERING,
    ])  # fmt: skip
    task = values["hydra"]["overrides"]["task"]
    several = chance.random() < 0.2
    task.extend([f"+trainer.a{i}=range(0,10)" for i in range(12)] if several else [word])
    file.write_text(yaml.safe_dump(values, allow_unicode=True))
    return "sweep overrides"


MUTATIONS = [damage, replace, replace, settings, settings, bomb, checkpoint, checkpoint, checkpoint]


# --- a try ------------------------------------------------------------------------------------------------------------


def read_all() -> int:
    """What a notebook does."""
    run = load_run("theirs")
    for look in (lambda: run.state, lambda: run.final, lambda: run.environment, lambda: run.metrics, lambda: run.timing,
                 lambda: run.epoch_seconds, lambda: run.sample(2)):  # fmt: skip
        look()
    return 0


def child(arguments: list[str]) -> None:
    """Run a command in this process, and end it."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    code = 99
    try:
        if arguments:
            code = cli.main(arguments)
        else:
            try:
                code = read_all()
            except ViLabError as error:
                print(
                    f"vi-lab load_run: {str(error).splitlines()[0]}".encode("unicode_escape").decode(), file=sys.stderr
                )
                code = error.exit_code
    except BaseException as error:
        print(f"vi-lab x: {type(error).__name__}Error: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def forked(arguments: list[str]) -> str:
    """How a command ended in a process of its own: empty where it has ended as it should."""
    pid, deadline = os.fork(), time.monotonic() + SECONDS
    if pid == 0:
        child(arguments)
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"hangs for {SECONDS} s"
        time.sleep(0.01)
    if os.WIFSIGNALED(done[1]):
        return f"ended by signal {os.WTERMSIG(done[1])}"
    code = os.WEXITSTATUS(done[1])
    out, err = (Path(name).read_text(errors="replace") for name in ("stdout", "stderr"))
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if UNSEEN.search(out + err):
        return "characters that steer a terminal"
    if found := CLASS.search(err):
        return f"unforeseen: {err[found.start() :][:200].strip()}"
    lines = [line for line in err.splitlines() if " failed: " not in line and "no comparison of" not in line]
    return f"{len(lines)} lines on stderr" if len(lines) > 1 else ""


def attempt(chance: random.Random, sound: Path, sweep: bool, home: Path) -> tuple[str, str]:
    """Spoil a copy, open it; what was done, and what went wrong."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    os.chdir(home)
    shutil.copytree(sound, "theirs")
    Path("outside").write_text("mine")
    if sweep:
        how = chance.choice([overrides, settings, damage, replace, bomb])(chance, Path("theirs"), ["multirun.yaml"])
    else:
        mutation = chance.choice(MUTATIONS)
        how = mutation(chance, Path("theirs"), ANY if mutation is replace else TEXTS)
    command = chance.choice(sorted(SWEEP_COMMANDS if sweep else COMMANDS))
    wrong = forked((SWEEP_COMMANDS if sweep else COMMANDS)[command])
    unexpected = {path.name for path in home.iterdir()} - {
        "theirs",
        "again",
        "lab",
        "outputs",
        "outside",
        "stdout",
        "stderr",
    }
    if Path("outside").read_text() != "mine" or unexpected:
        wrong = f"wrote or ran outside of the folder: {', '.join(unexpected)}; {wrong}"
    return f"{'sweep' if sweep else 'run'}: {how}: {command}", wrong


def flips(file: Path, chance: random.Random, count: int, truncations: bool) -> tuple[int, int]:
    """How many damaged copies of a small checkpoint were tried, and how many of them could be loaded."""
    torch.save({"state_dict": {"w": torch.randn(50), "b": torch.ones(3)}}, file)
    _sealed(file, file.read_bytes())
    whole = file.read_bytes()
    tried = loaded = 0
    for content in damaged(whole, chance, count, truncations):
        file.write_bytes(content)
        tried += 1
        with contextlib.suppress(ViLabError):
            load_checkpoint(file)
            loaded += 1
    return tried, loaded


def damaged(whole: bytes, chance: random.Random, count: int, truncations: bool) -> Iterator[bytes]:
    """Copies with one flipped bit each, and copies that lack their last bytes."""
    for _ in range(count):
        place = chance.randrange(len(whole))
        yield whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
    for length in range(len(whole)) if truncations else ():
        yield whole[:length]


def main() -> int:
    """All tries; 0 where nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flips", type=int, default=1000, help="of single bits of a checkpoint")
    parser.add_argument("--truncations", action="store_true", help="a checkpoint cut short by every number of bytes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts, failures = collections.Counter(), []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        os.chdir(root)
        tried, loaded = flips(
            root / "small.ckpt", random.Random(arguments.seed), arguments.flips, arguments.truncations
        )
        if arguments.tries:
            for made in (
                ["train", *SMALL, "hydra.run.dir=run"],
                ["train", "-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep"],
            ):
                if problem := forked(made):
                    print(f"the sound {made[1]}: {problem}")
                    return 1
        for index in range(arguments.tries):
            sweep = index % 5 == 4
            chance = random.Random(f"{arguments.seed}-{index}")
            how, wrong = attempt(chance, root / ("sweep" if sweep else "run"), sweep, root / "home")
            counts[how.rpartition(":")[0]] += 1
            if wrong:
                failures.append(f"try {index}: {how}: {wrong}")
                print(failures[-1].encode("unicode_escape").decode(), flush=True)
        os.chdir("/")
    for how, count in sorted(counts.items()):
        print(f"{count:6} {how}")
    print(f"{tried} damaged checkpoints, {loaded} of them loaded")
    print(f"{arguments.tries} tries in {time.monotonic() - started:.0f} s, {len(failures)} failures")
    return 1 if failures or loaded else 0


if __name__ == "__main__":
    sys.exit(main())
