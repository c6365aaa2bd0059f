"""`vi-lab reproduce RUN`: repeat a run from its folder alone, and compare: equal to the last bit?"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from vi_lab.arguments import Parser, folder_of, split_folders
from vi_lab.config import parse_values, plain, put_values
from vi_lab.console import Heading, make_console, print_tables
from vi_lab.errors import UserError, ViLabError, printable
from vi_lab.runs.environment import differences, threads_of
from vi_lab.runs.files import claim, is_vacant, write_json
from vi_lab.runs.run import Run, load_run
from vi_lab.runs.trust import check_loggers, inside, load_checkpoint, read_text
from vi_lab.schema import REPRODUCE, marked
from vi_lab.training.execution import Job, execute
from vi_lab.training.process import check_accelerators


def parser() -> Parser:
    """The arguments."""
    parser = Parser(
        prog="vi-lab reproduce",
        usage="vi-lab reproduce RUN [KEY=VALUE ...] [--output FOLDER]",
        description="Repeat a run from its folder alone and compare metrics and weights. Exit code 0: equal to the "
        "last bit; 1: not, and by how much, and what differs of code, versions, hardware, threads and data.",
    )
    parser.add_argument("run", nargs="*", metavar="RUN", help="the folder of a completed run; run=RUN is the same")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"only {', '.join(marked(REPRODUCE))}")
    parser.add_argument("--output", metavar="FOLDER", help="the new run folder (outputs/reproduce/TIME-NAME)")
    return parser


def main(argv: list[str]) -> int:
    """Repeat a run; 0 where the repetition is equal to the last bit, otherwise 1.

    Raises:
        UserError: no run was named, or it cannot be repeated.
    """
    arguments = parser().parse_intermixed_args(argv)
    folders, overrides = split_folders(map(folder_of, [*arguments.run, *arguments.overrides]))
    if len(folders) != 1:
        raise UserError(f"wanted one RUN, the folder of a completed run, got {len(folders) or 'none'}")
    return 0 if reproduce(folders[0], arguments.output, overrides) else 1


def reproduce(folder: str, output: str | None, overrides: list[str]) -> bool:
    """Repeat the run in `folder`; True where everything is equal.

    Raises:
        UserError: not a completed run, or the output folder holds something.
    """
    run = load_run(folder)
    if run.state != "completed":
        raise UserError(f"{folder}: the run is {run.state}, not completed; go on with: vi-lab train resume={folder}")
    values = parse_values(overrides, REPRODUCE, "vi-lab reproduce")
    config = run.config.copy()
    config.data.download = False  # nothing is fetched on the word of somebody else's folder
    put_values(config, values)
    if output is None:
        now = time.strftime("%Y-%m-%d_%H-%M-%S")
        target = claim(Path(f"outputs/reproduce/{now}-{config.name}-s{config.seed}"))
    else:
        target = Path(output)
        if target.is_symlink():
            raise UserError(f"--output {target}: a link; name the folder itself")
        if not is_vacant(target):
            raise UserError(f"--output {target}: the folder is not empty")
        if (place := Path(os.path.abspath(target))).is_relative_to(theirs := Path(os.path.abspath(run.folder))):
            inside(theirs, str(place.relative_to(theirs)))
        target.mkdir(parents=True, exist_ok=True)
    check_accelerators([plain(config)])
    check_loggers(plain(config), folder)
    config.threads = config.threads or threads_of(run.environment)  # another number gives other bits
    execute(Job(config, target, {"command": f"vi-lab reproduce {folder}"}))
    return verdict(run, Run(target))


def verdict(then: Run, now: Run) -> bool:
    """Print how two runs that should be equal compare, and write it beside the second; True where they are equal."""
    terminal = make_console()
    metrics = compare_metrics(then.final, now.final)
    weights = compare_weights(then, now)
    rows = []
    for name, (a, b) in metrics.items():
        difference = "" if a == b else "absent" if a is None or b is None else f"{b - a:.3g}"
        rows.append([name, *("" if v is None else f"{v:.10g}" for v in (a, b)), difference])
    curves = _same_text(then.folder, now.folder, "metrics.csv")
    same_metrics = all(a == b for a, b in metrics.values())
    changed = differences(then.environment, now.environment)
    equal = same_metrics and curves and not weights
    headings = [Heading("metric", numeric=False), Heading("then", priority=1), Heading("now"), Heading("difference")]
    print_tables(terminal, headings, [("final metrics", rows)], "reproduction.json has it")
    terminal.say("metrics.csv (each epoch): " + ("equal" if curves else "differs"))
    terminal.say("weights of last.ckpt: " + (weights or "equal"))
    unchanged = "nothing of code, versions, hardware, threads and data has changed"
    for difference in list(map(printable, changed)) or [unchanged]:
        terminal.say(f"since then: {difference}")
    outcome = "equal to the last bit" if equal else "not equal to the last bit"
    terminal.say(f"{printable(then.folder)}: {outcome}. The repetition is in {now.folder}")
    pairs = {name: {"then": a, "now": b} for name, (a, b) in metrics.items()}
    details = {"run": str(then.folder), "equal": equal, "metrics.csv equal": curves, "weights": weights or "equal"}
    write_json(now.folder / "reproduction.json", {**details, "metrics": pairs, "changed": changed})
    return equal


def _same_text(then: Path, now: Path, name: str) -> bool:
    try:
        return read_text(then, name) == read_text(now, name)
    except (OSError, ValueError, ViLabError):  # there is none, or nothing of ours
        return False


def compare_metrics(then: dict[str, float], now: dict[str, float]) -> dict[str, tuple[float | None, float | None]]:
    """Every metric of either run with both values; NaN counts as equal to NaN."""
    both = {name: (then.get(name), now.get(name)) for name in dict.fromkeys([*then, *now])}
    nan = {name for name, pair in both.items() if all(isinstance(v, float) and math.isnan(v) for v in pair)}
    return {name: pair for name, pair in both.items() if name not in nan}


def compare_weights(then: Run, now: Run) -> str:
    """Empty where the last checkpoints' weights are equal, else how they differ, in words."""
    import torch

    def weights(run: Run) -> dict[str, Any]:
        return load_checkpoint(run.checkpoint())["state_dict"]

    try:
        a, b = weights(then), weights(now)
    except ViLabError as error:
        return str(error)
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return "another architecture"
    if all(torch.equal(a[name], b[name]) for name in a):
        return ""
    largest = max(a, key=lambda name: (a[name].double() - b[name].double()).abs().max().item())
    return f"differ by up to {(a[largest].double() - b[largest].double()).abs().max().item():.3g} (in {largest})"
