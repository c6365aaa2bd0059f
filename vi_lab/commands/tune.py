"""`vi-lab tune sweep=NAME trials=N KEY=SPACE ...`: search settings by validation loss, on Optuna's ask and tell.

Each start of the command is a worker. A trial is a set of overrides; its runs, one for each seed and fold, are jobs of
a named sweep (`vi_lab.commands.named`): claimed, resumed and taken over like these. Whoever sees that the runs of a
trial have ended tells the study.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.errors import HydraException

from vi_lab.adapters.hydra import launcher
from vi_lab.commands.launch import hand_over, rehearse_all
from vi_lab.commands.named import Task, at_work, digest_of, drain, is_free, refuse_links_of_sweep
from vi_lab.commands.train import task
from vi_lab.config import check_jobs, explain, key_of, only_asks, quote, read_arguments, search_path
from vi_lab.console import Heading, Terminal, load, make_console, number, print_tables
from vi_lab.errors import UserError, nearby, printable
from vi_lab.runs.files import STUDY_FILE, write_csv, write_text
from vi_lab.runs.jobs import Jobs, Record, fingerprint
from vi_lab.runs.run import finished
from vi_lab.schema import CONFIG_DIR, JOB, has, holds_out
from vi_lab.training.process import trains_together
from vi_lab.version import __version__

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

OWN = ("trials", "sampler", "pruner")
REPEATED = ("seed", "data.fold")
"""Of these each trial has all values, and is scored by the mean."""
FEW = 5
"""With fewer trials nothing is said of what matters."""
BEST = 10
"""Trials in the table of the end."""


def main(argv: list[str]) -> int:
    """Search until there are so many trials.

    Raises:
        UserError: a mistake in the overrides, or another search has this name.
    """
    arguments = read_arguments(argv)
    if only_asks(arguments):
        hand_over("tune", task, arguments)
        return 0
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("vi-lab tune needs Optuna: pip install 'vi_lab[tune]'") from None
    search = _Search(arguments)
    search.record()
    load("torch", "lightning")
    rehearse_all(search.configs)
    overrides = [*search.base, f"sweep={search.name}", f"hydra.sweep.dir={quote(str(search.folder))}"]
    launch = launcher(task, [*overrides, *search_path(arguments.config_dir)], CONFIG_DIR, "train")
    write_text(search.folder / "multirun.yaml", launch.yaml)
    count = f"{search.trials} trial{'s' * (search.trials != 1)}"
    print(f"{count} below {printable(nearby(search.folder))}: {search.counted()}", flush=True)
    with at_work(search.jobs, search.trials * len(search.runs), launch):
        drain(search.tasks, search.jobs, launch, {}, search.retries)
    search.publish(make_console())
    return 0 if search.best() else 1


class Repeat(NamedTuple):
    """One of the runs of a trial."""

    seed: str
    fold: str | None

    @property
    def words(self) -> list[str]:
        """Its overrides."""
        return [f"seed={self.seed}", *([] if self.fold is None else [f"data.fold={self.fold}"])]

    @property
    def suffix(self) -> str:
        """The end of its folder's name."""
        return f"s{self.seed}" + ("" if self.fold is None else f"-fold{self.fold}")


class _Search:
    """What a command asks for.

    Args:
        arguments: its words.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        from vi_lab.training.study import sampler_of, space_of

        if arguments.multirun or arguments.dry_run:
            raise UserError("vi-lab tune takes neither -m nor --dry-run: what is swept is the space that is searched")
        words = arguments.overrides
        if of_hydra := [word for word in words if key_of(word).startswith("hydra")]:
            raise UserError(f"{of_hydra[0]}: each start of vi-lab tune is a worker; start it as often as you like")
        if resumed := [word for word in words if key_of(word) == "resume"]:
            raise UserError(f"{resumed[0]}: the same command again goes on; leave it out")
        own = [word for word in words if has(key_of(word), JOB)]
        (values,) = check_jobs("tune", [own], arguments.config_dir)
        if values["sweep"] is None:
            raise UserError("vi-lab tune needs sweep=NAME, which names the folder of the search")
        self.name, self.retries, self.pruner = str(values["sweep"]), int(values["retries"]), str(values["pruner"])
        self.folder = Path(values["paths"]["log_dir"]) / "sweeps" / self.name
        rest = [word for word in words if key_of(word) not in (*OWN, "sweep", "retries")]
        try:
            self.space = space_of(word for word in rest if key_of(word) not in REPEATED)
            repeated = space_of(word for word in rest if key_of(word) in REPEATED)
        except HydraException as error:
            raise UserError(explain(error)) from error
        if vain := [key for key in self.space if has(key, JOB)]:
            raise UserError(f"{vain[0]}: jobs that differ in it are the same; give one value")
        if not self.space:
            raise UserError("nothing to search: give a space, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'")
        self.base = [word for word in rest if key_of(word) not in {*self.space, *repeated}]
        self.repeated = [word for word in rest if key_of(word) in REPEATED]
        self.configs = check_jobs("train", self._corners(), arguments.config_dir)
        if any(config["stack"] for config in self.configs):
            raise UserError("stack= trains jobs in one process; vi-lab tune has any number: leave it out")
        if self.pruner != "none" and any(map(trains_together, self.configs)):
            raise UserError("pruner= ends a run from within its process; with accelerator=ddp leave it out")
        if not all(holds_out(config["data"]) for config in self.configs):
            raise UserError("data.validation=0: a search needs held-out images; the test images are not for choosing")
        values_of = {key: getattr(repeated.get(key), "choices", None) for key in REPEATED}
        if interval := [key for key in repeated if values_of[key] is None]:
            raise UserError(f"{interval[0]}: each trial is repeated for it; give the values, as in {interval[0]}=0,1,2")
        seeds, folds = values_of["seed"] or [str(self.configs[0]["seed"])], values_of["data.fold"]
        self.runs = [Repeat(str(seed), fold) for seed in seeds for fold in folds or [None]]
        self.epochs = max(config["trainer"]["max_epochs"] for config in self.configs)
        self.sampler = sampler_of(values["sampler"], self.space)
        grid = math.prod(len(getattr(found, "choices", ())) for found in self.space.values())  # none of an interval
        self.grid = values["sampler"] == "grid"
        self.trials = min(int(values["trials"]), grid) if self.grid else int(values["trials"])
        fixed = [word for word in self.base if not has(key_of(word), JOB)]
        searched = [f"{key}={found!r}" for key, found in self.space.items()]
        self.made = {
            "words": [*fixed, *searched, f"runs={[run.suffix for run in self.runs]}"],
            "swept": [*self.space, *repeated],
            "vi_lab": __version__,
            "configs": digest_of(arguments.config_dir),
            "settings": [fingerprint(config) for config in self.configs],
            "pruner": self.pruner,
            "first": self.runs[0].suffix,
            "jobs": {},
        }
        self.jobs = Jobs(self.folder, [])
        self._study: Study | None = None

    def _corners(self) -> list[list[str]]:
        """Jobs at the ends of the space, with each choice: where these can be made, the others can."""
        from optuna.distributions import CategoricalDistribution

        def ends(found: BaseDistribution) -> Sequence[Any]:
            return found.choices if isinstance(found, CategoricalDistribution) else (found.low, found.high)  # type: ignore[attr-defined]

        first = {key: ends(found)[0] for key, found in self.space.items()}
        jobs = [first, *({**first, key: one} for key, found in self.space.items() for one in ends(found)[1:])]
        return [[*self.base, *(f"{key}={value}" for key, value in job.items())] for job in jobs]

    def record(self) -> None:
        """Put the search into the sweep's record.

        Raises:
            UserError: the folder is that of another one.
        """
        refuse_links_of_sweep(self.folder)
        commands = Record(self.folder).commands
        if commands and "pruner" not in commands[0]:
            raise UserError(f"sweep={self.name}: a sweep of vi-lab train has this name; choose another")
        self._compare(commands)
        file = Record(self.folder).write(self.made)
        try:
            self._compare(Record(self.folder).commands)  # another may have been written since: the first one counts
        except UserError:
            file.unlink(missing_ok=True)
            raise

    def _compare(self, commands: list[dict[str, Any]]) -> None:
        for key in ("words", "settings", "pruner") if commands else ():
            before, now = commands[0].get(key), self.made[key]
            if before != now:
                told = f"pruner={before}" if key == "pruner" else "; ".join(sorted({*map(str, before or ())} ^ {*now}))
                raise UserError(f"sweep={self.name}: another search has this name ({told}); choose another")

    @property
    def study(self) -> Study:
        """Optuna's."""
        from vi_lab.training.study import open_study

        if self._study is None:
            self._study = open_study(self.folder, self.sampler, self.pruner, self.epochs)
        return self._study

    # --- the trials ---------------------------------------------------------------------------------------------

    def _there(self) -> list[FrozenTrial]:
        """The trials of the space: not those that a worker has died in asking for."""
        from vi_lab.training.study import is_whole, trials_of

        return [trial for trial in trials_of(self.study, self.folder) if is_whole(trial, self.space)]

    def tasks(self) -> list[Task]:
        """The runs of the trials that are not told yet; of a new trial where none of them is free, and there may be
        more."""
        from vi_lab.training.study import alone, points

        running = [trial for trial in self._there() if trial.state.name == "RUNNING" and not self._tell(trial)]
        tasks = [one for trial in running for one in self._tasks(trial)]
        self.jobs.names = [one.name for one in tasks]
        if any(is_free(state, 0, self.retries) for state in self.jobs.states().values()):
            return tasks
        if len(self._there()) >= self.trials:
            return tasks
        with alone(self.folder / ".sweep" / "ask"):  # so that there are no more trials than wanted
            waiting = self._bury()
            there = self._there()
            if len(there) >= self.trials and not waiting:
                return tasks
            if self.grid and not waiting:
                taken = [trial.params for trial in there]
                self.study.enqueue_trial(next(point for point in points(self.space) if point not in taken))
            asked = self.study.ask(self.space).number
        return [*tasks, *(one for trial in self._there() if trial.number == asked for one in self._tasks(trial))]

    def _bury(self) -> bool:
        """End the trials that a worker has died in asking for: nobody else asks now. Returns whether one of the grid
        waits, which is what is asked for next."""
        from optuna.trial import TrialState

        from vi_lab.training.study import is_whole, trials_of

        trials = trials_of(self.study, self.folder)
        for trial in trials:
            if trial.state.name == "RUNNING" and not is_whole(trial, self.space):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        return any(trial.state.name == "WAITING" for trial in trials)

    def _tell(self, trial: FrozenTrial) -> bool:
        """Tell the study of a trial whose runs have ended."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        names = [self._name(trial, run) for run in self.runs]
        states = Jobs(self.folder, names).states().values()
        value, state = None, None
        if any(state.name == "pruned" for state in states):
            state = TrialState.PRUNED
        elif any(state.name == "failed" and not is_free(state, 0, self.retries) for state in states):
            state = TrialState.FAIL
        elif all(state.name == "completed" for state in states):
            losses = [loss for name in names if (loss := finished(self.folder / name)) is not None]
            value, state = (fmean(losses), None) if len(losses) == len(names) else (None, TrialState.FAIL)
        else:
            return False
        with suppress(UpdateFinishedTrialError):  # another worker was faster
            self.study.tell(trial.number, value, state, skip_if_finished=True)
        return True

    def _tasks(self, trial: FrozenTrial) -> list[Task]:
        """The runs of a trial; where a study may end it, the first before the others."""
        from vi_lab.training.study import words_of

        words = [*self.base, *words_of(trial.params, self.space), f"sweep={self.name}"]
        tasks = [
            Task([*words, *run.words], self._name(trial, run), trial.number * len(self.runs) + place)
            for place, run in enumerate(self.runs)
        ]
        first = self.pruner != "none" and finished(self.folder / tasks[0].name) is None
        return tasks[:1] if first else tasks

    @staticmethod
    def _name(trial: FrozenTrial, run: Repeat) -> str:
        return f"trial-{trial.number:04d}-{run.suffix}"

    # --- the end ------------------------------------------------------------------------------------------------

    def counted(self) -> str:
        """As "3 complete, 1 pruned"."""
        states = [trial.state.name.lower() for trial in self._there()]
        return ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states)) or "none yet"

    def best(self) -> list[FrozenTrial]:
        """The trials that have a loss, the best first."""
        trials = [trial for trial in self._there() if trial.state.name == "COMPLETE" and trial.value is not None]
        return sorted(trials, key=lambda trial: trial.value or 0.0)

    def _again(self, trial: FrozenTrial) -> str:
        """The command that trains a trial again."""
        words = [*self.base, *(f"{key}={trial.params[key]}" for key in self.space), *self.repeated]
        last = {key_of(word): word for word in words}
        return shlex.join(["vi-lab", "train", *(["-m"] if len(self.runs) > 1 else []), *last.values()])

    def publish(self, terminal: Terminal) -> None:
        """The table of the best, what matters, and the figures."""
        from vi_lab.figures.study import write_figures
        from vi_lab.training.study import importances

        best, trials = self.best(), self._there()
        shares = importances(self.study) if len(best) >= FEW else {}
        terminal.say(f"{len(trials)} trial{'s' * (len(trials) != 1)}: {self.counted()}")
        place = self.folder / "tuning"
        place.mkdir(exist_ok=True)
        rows = [{"trial": t.number, "state": t.state.name.lower(), "val/loss": t.value, **t.params} for t in trials]
        write_csv(place / "trials.csv", rows)
        if not best:
            terminal.say(f"No trial was completed; the runs say why: vi-lab status {nearby(self.folder)}")
            return
        keys = [*self.space]
        headings = [
            Heading("trial"),
            Heading("val/loss"),
            *(Heading(key, priority=1 + i) for i, key in enumerate(keys)),
        ]
        cells = [[str(t.number), number(t.value or 0.0, ".3f"), *(_cell(t.params.get(k)) for k in keys)] for t in best]
        print_tables(terminal, headings, [("", cells[:BEST])], "trials.csv has them")
        if shares:
            text = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
            terminal.say(f"Importance (fANOVA, the share of the loss's variance that a key explains): {text}")
        write_figures(place, trials, keys, shares)
        terminal.say(f"The best again: {self._again(best[0])}")
        terminal.say(f"Trials and figures: {nearby(place)}")
        terminal.say(f"Dashboard: optuna-dashboard {shlex.quote(str(nearby(self.folder / STUDY_FILE)))}")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
