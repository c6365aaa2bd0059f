"""`vi-lab atlas [NAME]`: compare estimators fairly. Each is searched over as many settings, the best of them is chosen
by validation loss, and reported on fresh seeds and test images at equal epochs, decoder evaluations and time.

What is compared is data (`vi_lab.atlas`). The runs are jobs of a named sweep (`vi_lab.commands.named`), shared by any
number of workers; the report (`vi_lab.comparison.atlas`) follows from run folders alone.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from vi_lab import atlas as atlases
from vi_lab.arguments import Parser
from vi_lab.atlas import BUDGETS, RATE, TEMPERATURE, Atlas, Setting
from vi_lab.commands.launch import rehearse_all
from vi_lab.commands.named import Task, digest_of, refuse_links_of_sweep
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
from vi_lab.comparison.searched import Selection, has_ended, select
from vi_lab.config import check_jobs
from vi_lab.console import Heading, duration, load, make_console, print_tables
from vi_lab.errors import UserError, ViLabError, nearby, one_line, printable
from vi_lab.runs.files import write_json, write_once, write_text
from vi_lab.runs.jobs import Jobs, Record, fingerprint
from vi_lab.runs.trust import inside, read_json
from vi_lab.schema import holds_out
from vi_lab.training.workers import follow_parent

NAME = "categorical"
"""Of the atlas, unless another is named."""
LEAN = ("figures=false", "logger=[]")
"""What no run needs; the atlas's own settings come after."""
OF_SEARCH = ("evaluation.samples=null", "trainer.limit_test_batches=1")
"""What besides no run of the search needs: it is chosen by its validation loss."""
START = 3.0
"""Seconds that a run takes besides its epochs, as a guess for the plan."""
MORE = 0.35
"""What of an epoch's time one more decoder evaluation adds, as a guess for the plan."""


def parser() -> Parser:
    """The arguments."""
    parser = Parser(
        prog="vi-lab atlas",
        description="Compare estimators fairly: the same number of settings is searched for each, the best is chosen "
        "by validation loss, and reported on fresh seeds and test images at equal epochs, equal decoder evaluations "
        "and equal time. Trains what is missing within a budget of time; the same command again goes on. What is "
        "compared is data: configs/atlas/*.yaml, or DIR/atlas/*.yaml.",
        epilog="KEY=VALUE says where and how to run, as threads=1 or paths.data_dir=FOLDER; sweep=NAME keeps the runs "
        "apart from those of others.",
    )
    parser.add_argument("words", nargs="*", metavar="NAME", help=f"the atlas ({NAME}); KEY=VALUE")
    parser.add_argument("--list", action="store_true", help="what there is to do, and what it costs")
    add_budget(parser)
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where the report goes (the sweep's report/)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="the report once more, pictures in images/")
    parser.add_argument("--config-dir", metavar="DIR", help="configs of your own; DIR/atlas has atlases")
    return parser


def main(argv: list[str]) -> int:
    """Train, compare, write the report.

    Raises:
        UserError: a mistake in the arguments, or in the file of the atlas.
    """
    follow_parent()
    arguments = parser().parse_intermixed_args(argv)
    if arguments.tasks:
        plan = read_plan(arguments.tasks)
        survey = Survey(atlases.find(plan["name"], plan["config_dir"]), plan["words"], plan["config_dir"])
        return survey.work(plan["deadline"] or math.inf, plan["threads"])
    workers = number_of(arguments.workers)
    deadline = time.time() + seconds_of(arguments.budget)
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        raise UserError(f"--config-dir {arguments.config_dir}: no such folder")
    names = [word for word in arguments.words if "=" not in word]
    if len(names) > 1:
        raise UserError(f"{names[1]}: wanted one atlas, got {len(names)}")
    atlas = atlases.find(names[0] if names else NAME, arguments.config_dir)
    survey = Survey(atlas, [word for word in arguments.words if "=" in word], arguments.config_dir)
    if arguments.list:
        survey.tell()
        return 0
    if time.time() < deadline:
        survey.do(deadline, workers)
    from vi_lab.comparison.atlas import document, show, write

    terminal = make_console()
    report = survey.report(shlex.join(["vi-lab", "atlas", atlas.name]))
    show(report, terminal)
    folder = arguments.output or inside(survey.folder, "report")
    write(report, folder)
    if arguments.markdown:
        images = arguments.markdown.parent / "images"
        images.mkdir(parents=True, exist_ok=True)
        drawn = report.figures()
        for figure in drawn:
            figure.write(images)
        write_text(arguments.markdown, document(report, "atlas.md.j2", drawn, "images/"))
    terminal.say(f"Tables and pictures: {nearby(folder / 'atlas.html')}")
    return int(any(shape.hindered for shape in report.shapes))


class Job(NamedTuple):
    """A run of the atlas."""

    label: str
    """How its folder's name begins."""
    words: list[str]
    latent: str
    estimator: str
    epochs: float


class Survey:
    """An atlas, and what is there of it.

    Args:
        overrides: of the user's: sweep=, and what says where and how runs are run.

    Raises:
        UserError: a mistake in them or in the atlas.
    """

    def __init__(self, atlas: Atlas, overrides: Sequence[str], config_dir: str | None) -> None:
        self.atlas, self.config_dir = atlas, config_dir
        if vain := [word for word in overrides if not says_how(word)]:
            raise UserError(f"{vain[0]}: the atlas says what is trained; only what says where and how may change")
        self.words, self.folder = sweep_of(overrides, f"atlas-{atlas.name}", config_dir)
        self.digest = digest_of(config_dir)
        self.known: dict[str, str] = {}
        """A run's label -> its folder's name."""
        self.mark = hashlib.sha256(f"{self.digest} {atlas}".encode()).hexdigest()[:10]
        suited = self._suited() or self._suit()
        self.tempered: dict[str, dict[str, bool]] = suited["tempered"]
        """Of each latent the estimators that suit it, and whether they have a temperature."""
        self.unsuited: dict[str, dict[str, str]] = suited["unsuited"]
        """Of each latent, why other estimators are not trained with it."""
        self.counted: dict[str, dict[str, float]] = self._counted()
        """Decoder evaluations per image and step, before there are runs that say so; empty until something is
        trained."""
        self._selections: dict[str, Selection] = {}
        self._done: set[str] = set()
        """The labels of runs that have ended, which they do once."""

    def _suit(self) -> dict[str, Any]:
        """Find which estimators go with which latent, and which have a temperature."""
        atlas = self.atlas
        tempered: dict[str, dict[str, bool]] = {latent: {} for latent in atlas.latents}
        unsuited: dict[str, dict[str, str]] = {latent: {} for latent in atlas.latents}
        shipped, known = atlases.estimators(self.config_dir)
        for name in atlas.estimators or ():
            if name not in known:
                raise UserError(f"atlas {atlas.name}: estimators: there is no {name} (one of {', '.join(known)})")
        first = None
        for latent in atlas.latents:
            for name in shipped if atlas.estimators is None else atlas.estimators:
                settings = [Setting(atlas.rates[0], factor * atlas.temperatures[0]) for factor in (1, 2)]
                jobs = [self.job(latent, name, one, 0, "search").words for one in settings]
                try:
                    config, warmer = check_jobs("train", jobs, self.config_dir)
                except UserError as error:
                    first = first or error
                    unsuited[latent][name] = one_line(error).partition(";")[0]
                    continue
                if not holds_out(config["data"]):
                    raise UserError(f"atlas {atlas.name}: nothing is held out to choose settings by")
                tempered[latent][name] = config["estimator"] != warmer["estimator"]
            if not tempered[latent]:
                raise UserError(f"atlas {atlas.name}: no estimator goes with latent={latent} ({first})")
        return {"tempered": tempered, "unsuited": unsuited}

    def _file(self, name: str) -> Path:
        """Of the sweep's record."""
        return self.folder / ".sweep" / f"atlas-{name}.json"

    def _read(self, name: str) -> dict[str, Any]:
        file = self._file(name)
        return read_json(self.folder, str(file.relative_to(self.folder))) if file.is_file() else {}

    def _suited(self) -> dict[str, Any]:
        """What `_suit` has found, as it is recorded; empty where it is not, or as nobody would: names become overrides,
        and the folder may be somebody else's."""
        suited, known = self._read(f"suited-{self.mark}"), {*atlases.estimators(self.config_dir)[1]}
        kinds = (("tempered", bool), ("unsuited", str))
        good = all(
            isinstance(own := suited.get(key), dict)
            and own.keys() == {*self.atlas.latents}
            and all(isinstance(one, dict) and one.keys() <= known for one in own.values())
            and all(isinstance(value, kind) for one in own.values() for value in one.values())
            for key, kind in kinds
        )
        return suited if good else {}

    def _counted(self) -> dict[str, dict[str, float]]:
        """The recorded decoder evaluations, unless they are those of other settings."""
        record = self._read("evaluations")
        if record.pop("settings", [*self.atlas.settings]) != [*self.atlas.settings]:
            return {}
        return {
            latent: {name: float(number) for name, number in counts.items() if isinstance(number, (int, float))}
            for latent, counts in record.items()
            if isinstance(counts, dict)
        }

    # --- the runs -----------------------------------------------------------------------------------------------

    def job(self, latent: str, name: str, setting: Setting, seed: int, label: str, steps: int = 0, of: int = 0) -> Job:
        """A run.

        Args:
            label: search, or that of a reported run.
            steps: of a reported run.
            of: the steps of an epoch.
        """
        epochs = math.ceil(steps / of) if steps else self.atlas.search.epochs
        length = [f"trainer.max_epochs={epochs}"]
        if steps and steps % of:
            length.append(f"trainer.max_steps={steps}")
        own = () if steps else OF_SEARCH
        chosen = [f"estimator={name}", f"latent={latent}"]
        words = [*chosen, *LEAN, *self.atlas.settings, *own, *setting.words, *length, f"seed={seed}"]
        full = f"{name}-{latent}-{label}-s{seed}"
        return Job(re.sub(r"[^\w.,=+-]+", "_", full), words, latent, name, steps / of if steps else epochs)

    def compared(self, latent: str) -> dict[str, list[Setting]]:
        """The estimators that are compared, with their settings, as far as is known."""
        most, counted = self.atlas.most_evaluations or math.inf, self.counted.get(latent, {})
        suited = self.tempered[latent].items()
        return {name: self.atlas.grid(tempered) for name, tempered in suited if counted.get(name, 0) <= most}

    def left_out(self, latent: str) -> dict[str, str]:
        """The estimators that are not, and why."""
        compared, counted = self.compared(latent), self.counted.get(latent, {})
        most = self.atlas.most_evaluations
        many = {
            name: f"{counted[name]:g} decoder evaluations per image and step, more than {most:g}"
            for name in self.tempered[latent]
            if name not in compared
        }
        return {**many, **self.unsuited[latent]}

    def search(self, latent: str) -> dict[str, list[list[Job]]]:
        """The runs of the search: of each estimator and setting those of its seeds."""
        return {
            name: [
                [self.job(latent, name, one, seed, f"search-{_shown(one)}") for seed in self.atlas.search.seeds]
                for one in grid
            ]
            for name, grid in self.compared(latent).items()
        }

    def searched(self, latent: str) -> list[Job]:
        """The same, one after the other."""
        return [job for settings in self.search(latent).values() for seeds in settings for job in seeds]

    def reported(self, latent: str, selection: Selection) -> dict[int, dict[str, dict[str, Job]]]:
        """The reported runs: seed -> estimator -> budget. Budgets of as many steps share a run."""
        of = selection.steps_per_epoch
        return {
            seed: {
                name: {
                    budget: self.job(latent, name, one.setting, seed, f"{_shown(one.setting)}-{steps}", steps, of)
                    for budget, steps in one.steps.items()
                }
                for name, one in selection.estimators.items()
                if one.setting is not None
            }
            for seed in self.atlas.report.seeds
        }

    def names(self, jobs: Sequence[Job], write: str = "") -> list[str]:
        """The names of the folders of runs. They follow from the composed config, which takes a while: the sweep's
        record keeps them.

        Args:
            write: as what they are written there.
        """
        if new := {job.label: job for job in jobs if job.label not in self.known}:
            commands = [one for one in Record(self.folder).commands if one.get("configs") == self.digest]
            there = {words: name for one in commands for words, name in one["jobs"].items()}
            self.known |= {label: there[text] for label, job in new.items() if (text := shlex.join(job.words)) in there}
            others = [job for label, job in new.items() if label not in self.known]
            configs = check_jobs("train", [job.words for job in others], self.config_dir)
            for job, config in zip(others, configs, strict=True):
                self.known[job.label] = f"{job.label}-{fingerprint(config)}"
            if write and others:
                made = {shlex.join(job.words): self.known[job.label] for job in jobs}
                swept = ["estimator", "latent", RATE, TEMPERATURE, "seed", "trainer.max_epochs", "trainer.max_steps"]
                words = ["atlas", self.atlas.name, write]
                Record(self.folder).write({"words": words, "swept": swept, "configs": self.digest, "jobs": made})
        return [self.known[job.label] for job in jobs]

    def ended(self, jobs: Sequence[Job]) -> dict[str, bool]:
        """Of each run, by its label, whether it has ended."""
        left = [job for job in jobs if job.label not in self._done] if self.folder.is_dir() else []
        names = self.names(left)
        states = Jobs(self.folder, names).states()
        for job, name in zip(left, names, strict=True):
            if has_ended(self.folder / name, states[name]):
                self._done.add(job.label)
        return {job.label: job.label in self._done for job in jobs}

    def folders(self, jobs: Sequence[Job]) -> list[Path]:
        """Where they are."""
        return [self.folder / name for name in self.names(jobs)]

    def selection(self, latent: str, write: bool = False) -> Selection | None:
        """What the search at a latent has found, as it was first written down; None before it is complete.

        Args:
            write: write it down.
        """
        if latent in self._selections:
            return self._selections[latent]
        if not self.counted.get(latent):
            return None  # nothing is there
        search = self.search(latent)
        jobs = self.searched(latent)
        names = self.names(jobs)
        mark = hashlib.sha256("\n".join([str(self.atlas.report.epochs), *names]).encode()).hexdigest()[:10]
        name = f"{latent}-{mark}"
        if not (values := self._read(name)):
            if not all(self.ended(jobs).values()):
                return None
            folders = {key: [self.folders(seeds) for seeds in settings] for key, settings in search.items()}
            found = select(self.atlas, self.compared(latent), folders)
            if found is None or not write:
                return found
            write_once(self._file(name), found.as_json())
            values = self._read(name)
        try:
            made, grids = Selection.from_json(values), self.compared(latent)
            if made.estimators.keys() != grids.keys():  # names become overrides
                raise ViLabError("it is of other estimators")
            for key, one in made.estimators.items():
                if one.setting is not None and one.setting not in grids[key]:
                    raise ViLabError(f"it has a setting of {key} that was not searched")
        except ViLabError as error:
            raise ViLabError(f"{self._file(name)}: {one_line(error)}; remove it") from error
        self._selections[latent] = made
        return self._selections[latent]

    # --- what is to be done -------------------------------------------------------------------------------------

    def cost(self, job: Job) -> float:
        """Seconds of a run, roughly."""
        evaluations = self.counted.get(job.latent, {}).get(job.estimator, 1.0)
        epoch = self.atlas.seconds * (1 + MORE * (evaluations - 1))
        selection = self._selections.get(job.latent)
        if selection and job.estimator in selection.estimators:
            measured = selection.estimators[job.estimator].seconds_per_step * selection.steps_per_epoch
            epoch = measured if math.isfinite(measured) else epoch
        return START + job.epochs * epoch

    def open(self) -> list[Job]:
        """What is left to do, the search first: a setting of all estimators, then the next one, so that other work on
        the machine, while it lasts, slows down all of them alike. Then the first seed of all, the second one, and so
        on, so that all have equally many wherever time ends."""
        searches: list[list[list[Job]]] = []
        rounds: list[list[list[Job]]] = []
        for latent in self.atlas.latents:
            selection = self.selection(latent, write=True)
            if selection is None:
                searches += self.search(latent).values()
                continue
            seeds = [
                [job for budgets in estimators.values() for job in budgets.values()]
                for estimators in self.reported(latent, selection).values()
            ]
            self.names([job for one in seeds for job in one], f"report {latent}")
            rounds.append(seeds)
        ordered = [
            job
            for several in (searches, rounds)
            for row in zip_longest(*several, fillvalue=[])
            for one in row
            for job in one
        ]
        jobs = [*{job.label: job for job in ordered}.values()]
        ended = self.ended(jobs)
        return [job for job in jobs if not ended[job.label]]

    def do(self, deadline: float, workers: int) -> None:
        """Train what is missing until a time."""
        refuse_links_of_sweep(self.folder)
        missing = [
            (latent, name)
            for latent, suited in self.tempered.items()
            for name in suited
            if name not in self.counted.get(latent, {})
        ]
        if missing:
            load("torch", "lightning")
            self._count(missing)
        write_json(self._file(f"suited-{self.mark}"), {"tempered": self.tempered, "unsuited": self.unsuited})
        for latent in self.atlas.latents:
            self.names(self.searched(latent), f"search {latent}")
        todo = self.open()
        if not todo:
            return
        load("torch", "lightning")
        self._check_place(todo[0])
        seconds = self.left() / workers
        print(f"runs below {printable(nearby(self.folder))}, about {duration(seconds)} in all", flush=True)
        threads = threads_of(workers, self.words)
        plan = {
            "name": self.atlas.name,
            "words": [*self.words, f"sweep={self.folder.name}"],
            "config_dir": self.config_dir,
            "deadline": deadline if deadline < math.inf else None,
            "threads": threads,
        }
        with side_by_side("atlas", self.folder, plan, workers - 1):
            self.work(deadline, threads)

    def _check_place(self, job: Job) -> None:
        """Refuse what would make every run fail, which then counted as the estimators' fault: a device or data that
        are not there."""
        from omegaconf import OmegaConf

        from vi_lab.build import instantiate  # with torch
        from vi_lab.training.process import check_accelerators

        (config,) = check_jobs("train", [[*job.words, *self.words]], self.config_dir)
        check_accelerators([config])
        instantiate(OmegaConf.create({**config["data"]})).load()

    def _count(self, missing: Sequence[tuple[str, str]]) -> None:
        """Count decoder evaluations, on fresh models."""
        from omegaconf import OmegaConf

        from vi_lab.audit import decoder_evaluations  # with torch
        from vi_lab.build import build

        first = Setting(self.atlas.rates[0], self.atlas.temperatures[0])
        jobs = [self.job(latent, name, first, 0, "search").words for latent, name in missing]
        configs = check_jobs("train", jobs, self.config_dir)
        rehearse_all(configs)
        for (latent, name), config in zip(missing, configs, strict=True):
            datamodule, model = build(OmegaConf.create(config))
            self.counted.setdefault(latent, {})[name] = decoder_evaluations(model, datamodule.shape)
        self._file("evaluations").parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file("evaluations"), {**self.counted, "settings": [*self.atlas.settings]})

    def work(self, deadline: float, threads: Sequence[str]) -> int:
        """Train what is left, beside other workers."""
        numbers: dict[str, int] = {}

        def fitting() -> list[Task]:
            now = time.time()
            jobs = [job for job in self.open() if now + self.cost(job) <= deadline]
            given = [*self.words, *threads, f"sweep={self.folder.name}"]
            return [
                Task([*job.words, *given], name, numbers.setdefault(name, len(numbers)))
                for job, name in zip(jobs, self.names(jobs), strict=True)
            ]

        compared = [len(self.compared(latent)) for latent in self.atlas.latents]
        each = self.atlas.searched * len(self.atlas.search.seeds) + len(BUDGETS) * len(self.atlas.report.seeds)
        names = [task.name for task in fitting()]
        work(self.folder, self.config_dir, fitting, names, number=each * sum(compared), retries=1)
        return 0

    # --- what came out ------------------------------------------------------------------------------------------

    def report(self, command: str) -> Any:
        """A `vi_lab.comparison.atlas.Report` of what is there."""
        from vi_lab.comparison.atlas import Report, Shape, entries, last_ended
        from vi_lab.comparison.repeated import made_with

        shapes, folders = [], []
        for latent in self.atlas.latents:
            search = self.searched(latent)
            selection = self.selection(latent)
            folders += self.folders(search) if self.folder.is_dir() else []
            # before evaluations are counted, nobody knows which estimators are searched
            done = sum(self.ended(search).values()) if self.counted.get(latent) else 0
            seeds: list[int] = []
            found: dict[int, dict[str, dict[str, Path]]] = {}
            if selection is not None:
                for seed, estimators in self.reported(latent, selection).items():
                    jobs = [job for budgets in estimators.values() for job in budgets.values()]
                    folders += self.folders(jobs)
                    if all(self.ended(jobs).values()):
                        seeds.append(seed)
                        found[seed] = {
                            name: dict(zip(budgets, self.folders([*budgets.values()]), strict=True))
                            for name, budgets in estimators.items()
                        }
            rows = [] if selection is None else entries(self.atlas, selection, found)
            tempered = {name: self.tempered[latent][name] for name in self.compared(latent)}
            shapes.append(Shape(latent, selection, rows, seeds, self.left_out(latent), tempered, done, len(search)))
        there = [*dict.fromkeys(folder for folder in folders if folder.is_dir())]
        return Report(self.atlas, shapes, command, *made_with(there), last_ended(there))

    def left(self) -> float:
        """Seconds of one core that what is left takes, roughly."""
        return sum(seconds for latent in self.atlas.latents for _, seconds in self._left(latent).values())

    def _left(self, latent: str) -> dict[str, tuple[list[str], float]]:
        """Of each estimator, in words what is done of search and report, and the seconds of what is left."""
        selection, rows = self.selection(latent), {}
        report: dict[str, list[Job]] = {}
        if selection is not None:
            for estimators in self.reported(latent, selection).values():
                for name, budgets in estimators.items():
                    report.setdefault(name, []).extend({job.label: job for job in budgets.values()}.values())
        for name, settings in self.search(latent).items():
            search = [job for seeds in settings for job in seeds]
            cells, seconds = [], 0.0
            for jobs in (search, report.get(name, [])):
                ended = self.ended(jobs)
                cells.append(f"{sum(ended.values())} of {len(jobs)}" if jobs else "")
                seconds += sum(self.cost(job) for job in jobs if not ended[job.label])
            if selection is None:
                # of three budgets the epochs are one; equal time is about half of that, equal evaluations no more
                whole = search[0]
                many = len(self.atlas.report.seeds)
                seconds += many * 2 * self.cost(whole._replace(epochs=float(self.atlas.report.epochs)))
                cells[1] = f"{many} seeds"
            rows[name] = (cells, seconds)
        return rows

    def tell(self) -> None:
        """What there is to do for each estimator, and why some are left out."""
        terminal = make_console()
        headings = [
            Heading("estimator", numeric=False),
            Heading("decoder evaluations", priority=2),
            Heading("settings", priority=3),
            Heading("search"),
            Heading("report", priority=1),
            Heading("time left"),
        ]
        tables = []
        for latent in self.atlas.latents:
            counted = self.counted.get(latent, {})
            rows = []
            for name, (cells, seconds) in self._left(latent).items():
                evaluations = f"{counted[name]:g}" if name in counted else ""
                rows.append([name, evaluations, str(self.atlas.searched), *cells, duration(seconds)])
            tables.append((f"latent {latent}", rows))
        print_tables(terminal, headings, tables)
        for latent in self.atlas.latents:
            for name, reason in self.left_out(latent).items():
                terminal.say(f"{latent}: without {name}: {reason}", "dim")
        most = self.atlas.most_evaluations
        if most and not self.counted:
            terminal.say(f"what takes more than {most:g} decoder evaluations is left out before training", "dim")
        terminal.say(f"{self.atlas.title}: about {duration(self.left())} of one core are left")


def _shown(setting: Setting | None) -> str:
    """A setting as a part of a folder's name."""
    assert setting is not None
    own: Mapping[str, float | None] = {"lr": setting.rate, "t": setting.temperature}
    return "-".join(f"{key}={value:g}" for key, value in own.items() if value is not None)
