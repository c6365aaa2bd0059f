"""`vi-lab verify [NAME ...]`: repeat published numbers, and say of each whether ours agree.

What was published is data (`vi_lab.published`). What is missing is trained as jobs of a named sweep
(`vi_lab.commands.named`): claimed, resumed and taken over like these; a run of fewer epochs goes on where more are
wanted. The verdicts (`vi_lab.comparison.verdicts`) follow from run folders alone.
"""

from __future__ import annotations

import heapq
import io
import re
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from vi_lab import published
from vi_lab.adapters.hydra import launcher
from vi_lab.arguments import Parser
from vi_lab.commands.launch import Abort, rehearse_all
from vi_lab.commands.named import Task, refuse_links_of_sweep
from vi_lab.commands.workers import (
    add_budget,
    number_of,
    read_plan,
    says_how,
    seconds_of,
    side_by_side,
    sweep_of,
    threads_of,
    work,
)
from vi_lab.comparison.repeated import DIFFER, Found, find, made_with, prefix, values
from vi_lab.config import check_jobs, quote, search_path
from vi_lab.console import Heading, duration, load, make_console, print_tables
from vi_lab.errors import UserError, complain, nearby, one_line, printable
from vi_lab.published import Cell, Row
from vi_lab.runs.files import Status, write_text
from vi_lab.runs.jobs import Record, fingerprint
from vi_lab.runs.lock import hold
from vi_lab.runs.run import Run
from vi_lab.runs.trust import inside
from vi_lab.schema import CONFIG_DIR
from vi_lab.training.workers import follow_parent

NAME = "verify"
"""Of the sweep, unless sweep= gives another."""
LEAN = ("figures=false", "logger=[]", "evaluation.samples=null")
"""What runs leave out that no published number asks for; a row's own settings come after."""
START = 5.0
"""Seconds that a run takes besides its epochs, as a guess for the plan."""
UNKNOWN = 20.0
"""Seconds of an epoch where nobody has measured it, as a guess for the plan."""


def parser() -> Parser:
    """The arguments."""
    parser = Parser(
        prog="vi-lab verify",
        description="Repeat published numbers: train what is missing within a budget of time, compare, and say of "
        "each whether ours agrees. The band follows from the spread of both; the same command again goes on with what "
        "is left. Rows are data: configs/published/*.yaml, or DIR/published/*.yaml.",
        epilog="KEY=VALUE says where and how to run, as threads=1, paths.data_dir=FOLDER or accelerator=gpu; "
        "seeds=N trains N seeds of each row, seeds=0,1,2 these; sweep=NAME keeps the runs apart from those of others. "
        "The exit code is 1 where a number fails.",
    )
    what = "rows: a source, SOURCE/ROW, or a pattern such as 'wang*/reinmax-*' (all); KEY=VALUE"
    parser.add_argument("words", nargs="*", metavar="NAME", help=what)
    parser.add_argument("--list", action="store_true", help="the rows that there are, and what each costs")
    add_budget(parser)
    parser.add_argument("--quick", action="store_true", help="what minutes decide: exact ones, toys, a few epochs")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where the report goes (the sweep's verify/)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="the report once more, as Markdown")
    parser.add_argument("--config-dir", metavar="DIR", help="configs of your own; DIR/published has rows")
    return parser


def main(argv: list[str]) -> int:
    """Train, compare, write the report.

    Returns:
        the exit code: 1 where a number fails.

    Raises:
        UserError: a mistake in the arguments, or in a file of rows.
    """
    follow_parent()
    arguments = parser().parse_intermixed_args(argv)
    if arguments.tasks:
        return _work_for(read_plan(arguments.tasks))
    workers = number_of(arguments.workers)
    deadline = time.time() + seconds_of(arguments.budget)
    sources = published.sources(arguments.config_dir)
    rows = published.select(sources, [word for word in arguments.words if "=" not in word])
    if arguments.quick:
        rows = [row for row in rows if row.quick and not row.lacks]
    overrides = [word for word in arguments.words if "=" in word]
    verification = Verification(rows, overrides, arguments.config_dir, arguments.quick)
    if arguments.list:
        verification.tell(sources)
        return 0
    if time.time() < deadline:
        verification.do(deadline, workers)
    from vi_lab.comparison.verified import document, show, write

    terminal = make_console()
    asked = [word for word in arguments.words if "=" not in word or word.startswith("seeds=")]
    asked += ["--quick"] if arguments.quick else []
    report = verification.report(sources, shlex.join(["vi-lab", "verify", *asked]))
    show(report, terminal)
    folder = arguments.output or inside(verification.folder, "report")
    write(report, folder)
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.markdown, document(report, "verified.md.j2"))
    terminal.say(f"Table and picture: {nearby(folder / 'verify.html')}")
    return 1 if report.counts["fail"] else 0


class Verification:
    """The rows that are asked for, and what is there of them.

    Args:
        rows: of all kinds.
        overrides: of the user's: seeds=, sweep=, and what says where and how runs are run.
        quick: only the epochs of `vi-lab verify --quick`.
    """

    def __init__(self, rows: Sequence[Row], overrides: list[str], config_dir: str | None, quick: bool) -> None:
        self.rows, self.config_dir, self.quick = rows, config_dir, quick
        self.words: list[str] = []
        self.seeds: list[int] | None = None
        for word in overrides:
            key, _, value = word.partition("=")
            if key == "seeds":
                self.seeds = _seeds(value)
            elif says_how(word):
                self.words.append(word)
            else:
                raise UserError(
                    f"{word}: the row says what is trained; only seeds= and what says where and how may change"
                )
        self.words, self.folder = sweep_of(self.words, NAME, config_dir)
        self.name = self.folder.name
        self.runnable = {row.label: row for row in rows if not row.lacks}
        self.configs = self._compose()
        """Of each row that can be run, its config with one seed and epoch."""

    def _compose(self) -> dict[str, dict]:
        composed: dict[str, dict] = {}
        for command in published.COMMANDS:
            chosen = [row for row in self.runnable.values() if row.command == command]
            jobs = [self.job(row, 0, 1) for row in chosen]
            try:
                configs = check_jobs(command, jobs, self.config_dir)
            except UserError:
                for row, job in zip(chosen, jobs, strict=True):  # which of them it is
                    try:
                        check_jobs(command, [job], self.config_dir)
                    except UserError as error:
                        raise UserError(f"published row {row.label}: {error}") from error
                raise
            composed |= {row.label: config for row, config in zip(chosen, configs, strict=True)}
        return composed

    def job(self, row: Row, seed: int, epochs: int) -> list[str]:
        """The overrides of a run of a row."""
        if row.command == "audit":
            estimators = dict.fromkeys(name for cell in row.cells for name in (cell.estimator, cell.minus) if name)
            temperatures = sorted({cell.temperature for cell in row.cells if cell.temperature is not None})
            measured = [f"audit.estimators=[{','.join(estimators)}]", f"audit.temperatures={temperatures}"]
            lean = ["figures=false", *(word.replace(" ", "") for word in measured)]
        else:
            lean = [*LEAN, f"trainer.max_epochs={epochs}"]
            if any(cell.metric.startswith("test/") and cell.epoch is not None for cell in row.cells):
                lean.append("data.test_every_epoch=true")
        return [*lean, *row.settings, f"seed={seed}", *self.words]

    def seeds_of(self, row: Row) -> list[int]:
        """Those of ours."""
        return self.seeds if self.seeds is not None else list(range(row.runs))

    def cells(self, row: Row) -> list[Cell]:
        """The cells of a row that are asked for."""
        return [c for c in row.cells if not self.quick or row.command == "audit" or (c.epoch or 10**9) <= row.quick]

    def there(self, row: Row) -> list[Found]:
        """The runs of a row that are there, of the seeds that are asked for."""
        runs = find(self.folder, row, self.configs[row.label])
        return [run for run in runs if self.seeds is None or run.seed in self.seeds]

    # --- what is to be done -------------------------------------------------------------------------------------

    def cost(self, row: Row) -> float:
        """Seconds of an epoch, or of an audit."""
        return row.seconds or UNKNOWN

    def plan(self, budget: float, there: Mapping[str, Sequence[Found]]) -> dict[str, int]:
        """How many epochs each row is trained: those that decide most numbers for their time come first.

        Args:
            budget: seconds of all workers together.
            there: the runs of each row.

        Returns:
            row -> epochs, in the order of being worth it.
        """
        chosen: dict[str, int] = {}
        heap: list[tuple[float, str, int, float]] = []
        rows = {label: row for label, row in self.runnable.items() if row.command == "train"}
        steps = {label: Counter(filter(None, map(row.last_epoch, self.cells(row)))) for label, row in rows.items()}
        ends = {label: sorted(counts) for label, counts in steps.items()}

        def offer(label: str, at: int) -> None:
            """Training a row until the end of its step `at`, once it is trained until the one before."""
            if at == len(ends[label]):
                return
            row, end, before = rows[label], ends[label][at], ends[label][at - 1] if at else 0
            cost = 0.0
            for seed in self.seeds_of(row):
                done = max((run.epochs for run in there[label] if run.seed == seed), default=0)
                left = max(0, end - max(before, done))
                cost += left * self.cost(row) + (START if left and not at else 0.0)
            worth = steps[label][end] * (0.01 if row.unstated else 1.0)  # what cannot be decided comes last
            heapq.heappush(heap, (cost / worth, label, at, cost))

        for label in rows:
            offer(label, 0)
        spent = 0.0
        while heap:
            _, label, at, cost = heapq.heappop(heap)
            if spent + cost > budget:
                continue  # a cheaper one may still fit
            spent += cost
            chosen[label] = ends[label][at]
            offer(label, at + 1)
        return chosen

    def do(self, deadline: float, workers: int) -> None:
        """Measure and train what is missing until a time."""
        refuse_links_of_sweep(self.folder)
        there = {label: self.there(row) for label, row in self.runnable.items()}
        audits = [row for row in self.runnable.values() if row.command == "audit"]
        missing = [
            (row, seed)
            for row in audits
            for seed in self.seeds_of(row)
            if not any(run.seed == seed and run.complete for run in there[row.label])
        ]
        left = sum(self.cost(row) for row, _ in missing)
        plan = self.plan((deadline - time.time()) * workers - left, there)
        tasks = self.tasks(plan, there, workers)
        if not missing and not tasks:
            return
        load("torch", "lightning")
        rehearse_all([self.configs[label] for label in plan])
        if missing:
            self.audit(missing, deadline)
        if tasks:
            self.train(tasks, deadline, workers)

    def audit(self, missing: Sequence[tuple[Row, int]], deadline: float) -> None:
        """Measure estimators at fixed weights."""
        from vi_lab.commands import audit  # with torch

        given = [*self.words, f"hydra.sweep.dir={quote(str(self.folder))}"]
        launch = launcher(audit.task, [*given, *search_path(self.config_dir)], CONFIG_DIR, "audit")
        for number, (row, seed) in enumerate(missing):
            if time.time() > deadline:
                return
            job = self.job(row, seed, 1)
            mark = fingerprint({**self.configs[row.label], "seed": seed})
            folder = self.folder / f"{prefix(row)}-s{seed}-{mark}"
            print(printable(f"audit {number + 1} of {len(missing)}: {row.label}, seed {seed}"), flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with hold(folder), redirect_stdout(io.StringIO()):  # of the tables that it prints ours is one
                    launch([[*job, f"hydra.sweep.subdir={quote(folder.name)}"]], number)
            except (UserError, Abort) as error:  # the others are measured all the same
                cause = error.error if isinstance(error, Abort) else error
                if not isinstance(cause, Exception):  # Ctrl-C
                    raise cause from None
                complain(f"vi-lab verify: {row.label}: {one_line(cause)}")

    def tasks(self, plan: dict[str, int], there: Mapping[str, Sequence[Found]], workers: int) -> list[dict[str, Any]]:
        """The runs to train: the first seed of all rows, then the second one."""
        wanted = []
        for place in range(max((len(self.seeds_of(self.runnable[label])) for label in plan), default=0)):
            for label, epochs in plan.items():
                row = self.runnable[label]
                seeds = self.seeds_of(row)
                if place >= len(seeds):
                    continue
                runs = [run for run in there[label] if run.seed == seeds[place]]
                if any(run.wanted >= epochs and run.complete for run in runs):
                    continue
                wanted.append((row, seeds[place], epochs, runs))
        threads = threads_of(workers, self.words)
        jobs = [[*self.job(row, seed, epochs), *threads] for row, seed, epochs, _ in wanted]
        configs = check_jobs("train", jobs, self.config_dir)
        tasks = []
        for (row, seed, epochs, runs), words, config in zip(wanted, jobs, configs, strict=True):
            name = f"{prefix(row)}-s{seed}-e{epochs}-{fingerprint(config)}"
            done = self.extend(runs, epochs, name)
            seconds = START + (epochs - done) * self.cost(row)
            tasks.append({"words": [*words, f"sweep={self.name}"], "name": name, "seconds": seconds})
        return tasks

    def extend(self, runs: Sequence[Found], epochs: int, name: str) -> int:
        """Let the longest of some runs, which is not at work, go on as another one; returns its epochs."""
        if (self.folder / name).exists():
            return max((run.epochs for run in runs if run.folder.name == name), default=0)
        idle = [run for run in runs if run.state in ("completed", "interrupted", "killed") and run.wanted <= epochs]
        if not idle:
            return 0
        longest = max(idle, key=lambda run: run.epochs)
        with suppress(OSError, UserError):  # another worker was faster, or is at work in it
            with hold(longest.folder):
                Status(longest.folder).write("interrupted", "goes on to more epochs")
            longest.folder.rename(self.folder / name)
            return longest.epochs
        return 0

    def train(self, tasks: list[dict[str, Any]], deadline: float, workers: int) -> None:
        """Train runs, several at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = {shlex.join(one["words"]): one["name"] for one in tasks}
        record = {"words": ["verify"], "swept": [*DIFFER], "jobs": names}  # for `vi-lab status`
        Record(self.folder).write(record)
        plan = {
            "folder": str(self.folder),
            "tasks": tasks,
            "config_dir": self.config_dir,
            "deadline": deadline if deadline < float("inf") else None,
        }
        seconds = sum(one["seconds"] for one in tasks) / workers
        runs = f"{len(tasks)} run{'s' * (len(tasks) != 1)}"
        print(f"{runs} below {printable(nearby(self.folder))}, about {duration(seconds)}", flush=True)
        with side_by_side("verify", self.folder, plan, min(workers, len(tasks)) - 1):
            _work_for(plan)

    # --- what came out ------------------------------------------------------------------------------------------

    def report(self, sources: Sequence[published.Source], command: str) -> Any:
        """A `vi_lab.comparison.verified.Report` of what is there."""
        from vi_lab.comparison.verdicts import FALSE_ALARM, Verdict, judge
        from vi_lab.comparison.verified import Judged, Report

        there = [(row, self.there(row) if not row.lacks else []) for row in self.rows]
        asked = [(row, cell, values(row, cell, runs), runs) for row, runs in there for cell in self.cells(row)]
        tested = sum(1 for row, _, found, _ in asked if found and not row.unstated)
        cells, folders = [], set()
        for row, cell, found, runs in asked:
            if found:
                numbers = [value for value, _ in found.values()]
                verdict = judge(row, cell, numbers, FALSE_ALARM / max(1, tested))
            else:
                verdict = Verdict("not decided", self.why(row, cell, runs))
            own = tuple(str(nearby(folder)) for _, folder in found.values())
            folders |= {folder for _, folder in found.values()}
            cells.append(Judged(row, cell, verdict, own))
        return Report(sources, cells, command, *made_with(folders))

    def why(self, row: Row, cell: Cell, runs: Sequence[Found]) -> str:
        """Why there is no number of ours."""
        if row.lacks:
            return f"vi_lab lacks: {row.lacks}"
        failed = [run for run in runs if run.state == "failed"]
        if failed:
            return f"a run of ours has failed: {Run(failed[0].folder).status.get('reason')}"
        if row.command == "train" and row.last_epoch(cell) is None:
            return f"the source does not state: {row.unstated or 'how long it trained'}"
        if any(run.epochs >= (row.last_epoch(cell) or 0) for run in runs):
            return f"our runs have no {cell.metric}"
        if row.command == "train":
            seconds = START + (row.last_epoch(cell) or 0) * self.cost(row)
            return f"not trained: within no budget of less than {_rough(seconds)} a run"
        return "not measured"

    def tell(self, sources: Sequence[published.Source]) -> None:
        """The rows, what each has, and what it costs; and why some are not run, or decide nothing."""
        tables, reasons = [], Counter[str]()
        for source in sources:
            cells = []
            for row in (row for row in self.rows if row.source == source.name):
                runs = self.there(row) if not row.lacks else []
                have = sum(bool(values(row, cell, runs)) for cell in self.cells(row))
                cells.append([row.name, str(len(self.cells(row))), str(have), *self._cost(row)])
                if row.lacks or row.unstated:
                    reasons["lacks: " + row.lacks if row.lacks else "unstated: " + row.unstated] += 1
            if cells:
                tables.append((f"{source.name}: {source.paper}", cells))
        headings = [
            Heading("row", numeric=False),
            Heading("numbers"),
            Heading("with ours", priority=3),
            Heading("epochs", priority=2),
            Heading("time of a run x runs", priority=1),
        ]
        terminal = make_console()
        print_tables(terminal, headings, tables)
        for reason, rows in reasons.most_common():
            terminal.say(f"{rows} row{'s' * (rows != 1)}, {reason}", "dim")
        numbers = sum(len(self.cells(row)) for row in self.rows)
        terminal.say(f"{len(self.rows)} rows, {numbers} published numbers; times are of one core")

    def _cost(self, row: Row) -> list[str]:
        """Epochs and time, in words."""
        if row.lacks:
            return ["", "lacks"]
        if row.command == "audit":
            return ["", f"{duration(self.cost(row))} x {len(self.seeds_of(row))}"]
        ends = sorted({end for cell in self.cells(row) if (end := row.last_epoch(cell)) is not None})
        if not ends:
            return ["", "unstated"]
        span = f"{ends[0]} to {ends[-1]}" if len(ends) > 1 else str(ends[0])
        return [span, f"{duration(ends[-1] * self.cost(row))} x {len(self.seeds_of(row))}"]


# --- small parts -----------------------------------------------------------------------------------------------------


def _work_for(plan: dict[str, Any]) -> int:
    """Train what is left of a plan, beside other workers."""
    deadline = plan["deadline"] or float("inf")
    tasks = [Task(one["words"], one["name"], number) for number, one in enumerate(plan["tasks"])]
    seconds = {one["name"]: one["seconds"] for one in plan["tasks"]}

    def fitting() -> list[Task]:
        return [one for one in tasks if time.time() + seconds[one.name] <= deadline]

    work(Path(plan["folder"]), plan["config_dir"], fitting, [one.name for one in tasks])
    return 0


def _seeds(text: str) -> list[int]:
    """N: the first so many; or a list."""
    parts = text.split(",")
    one = len(parts) > 1 and parts[-1] == ""  # seeds=7, is the seed 7 alone
    parts = parts[:-1] if one else parts
    if not parts or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise UserError(f"seeds={text}: wanted how many, as in seeds=3, or which, as in seeds=0,1,2")
    numbers = [int(part) for part in parts]
    if one or len(numbers) > 1:
        return list(dict.fromkeys(numbers))
    if not 0 < numbers[0] <= published.MOST["runs"]:
        raise UserError(f"seeds={text}: wanted from 1 to {published.MOST['runs']} seeds")
    return list(range(numbers[0]))


def _rough(seconds: float) -> str:
    return duration(float(f"{seconds:.1g}"))
