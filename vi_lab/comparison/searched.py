"""What there is of an atlas in its sweep: how runs have ended, which setting of each estimator was chosen, and for how
many steps it is trained at each budget. From files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from vi_lab.atlas import BUDGETS, Atlas, Setting, steps_of
from vi_lab.errors import ViLabError
from vi_lab.runs.jobs import State
from vi_lab.runs.run import Run, rows_of

FAILURES = 2
"""So often may a run fail for another reason than its loss; then it stays so."""
DIVERGED = (" became ", "is not finite any more")
"""What the reason of a run says whose numbers have become none."""


def has_ended(folder: Path, state: State) -> bool:
    """Whether a run is complete, or has failed for good: its loss became none, which repeats, or it has failed twice.

    Args:
        state: of the job.
    """
    if state.name != "failed":
        return state.name == "completed"
    reason = str(Run(folder).status.get("reason"))
    return state.failures >= FAILURES or any(words in reason for words in DIVERGED)


def final(folder: Path, metric: str) -> float:
    """A number of a run that has ended: infinite where the run has failed, NaN where it has none of the name."""
    run = Run(folder)
    return run.final.get(metric, math.nan) if run.state == "completed" else math.inf


class Pace(NamedTuple):
    """How fast runs are."""

    steps_per_epoch: int
    seconds_per_step: float
    """Of their fastest epoch: other work on the machine makes epochs slower, and none makes them faster."""


def pace(folders: Sequence[Path]) -> Pace | None:
    """How fast some runs were, by their wall times, in which evaluating the validation images is; None where none of
    them has ended an epoch."""
    found = []
    for folder in folders:
        with suppress(ViLabError, KeyError):
            before = 0.0
            for row in rows_of(Run(folder), "timing.csv").values():
                steps, before = row["step"] - before, row["step"]
                if steps > 0 < row["seconds"]:  # or the file is damaged
                    found.append((row["seconds"] / steps, int(steps)))
    return Pace(max(steps for _, steps in found), min(seconds for seconds, _ in found)) if found else None


class Chosen(NamedTuple):
    """What the search of an estimator has found."""

    setting: Setting | None
    """None: all have failed."""
    losses: tuple[float, ...]
    """Of each setting, the mean validation loss over the seeds of the search; infinite where a run has failed."""
    evaluations: float
    """Of the decoder, per image and step."""
    seconds_per_step: float
    steps: Mapping[str, int]
    """Of each budget; empty where all settings have failed."""

    @property
    def failed(self) -> int:
        """How many settings have failed."""
        return sum(math.isinf(loss) for loss in self.losses)

    def as_json(self) -> dict[str, Any]:
        """For the sweep's record."""
        setting = None if self.setting is None else self.setting._asdict()
        return {**self._asdict(), "setting": setting, "losses": [*self.losses], "steps": dict(self.steps)}


LONGEST = 10**9
"""More steps are nobody's."""


class Selection(NamedTuple):
    """What the search at a latent has found."""

    steps_per_epoch: int
    estimators: Mapping[str, Chosen]

    def as_json(self) -> dict[str, Any]:
        """For the sweep's record."""
        chosen = {name: one.as_json() for name, one in self.estimators.items()}
        return {"steps_per_epoch": self.steps_per_epoch, "estimators": chosen}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Selection:
        """Of the sweep's record.

        Raises:
            ViLabError: it is damaged.
        """
        try:
            chosen = {
                str(name): Chosen(
                    None if one["setting"] is None else _setting(one["setting"]),
                    tuple(math.inf if loss is None else float(loss) for loss in one["losses"]),
                    math.nan if one["evaluations"] is None else float(one["evaluations"]),
                    math.nan if one["seconds_per_step"] is None else float(one["seconds_per_step"]),
                    {budget: int(one["steps"][budget]) for budget in BUDGETS} if one["setting"] else {},
                )
                for name, one in values["estimators"].items()
            }
            made = cls(int(values["steps_per_epoch"]), chosen)
            lengths = [made.steps_per_epoch, *(steps for one in chosen.values() for steps in one.steps.values())]
            if not all(0 < length < LONGEST for length in lengths):
                raise ValueError("steps")
            return made
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ViLabError(f"the record of what was chosen is damaged ({type(error).__name__}: {error})") from error


def _setting(values: Mapping[str, Any]) -> Setting:
    temperature = values["temperature"]
    return Setting(float(values["rate"]), None if temperature is None else float(temperature))


def _evaluations(folders: Sequence[Path]) -> float:
    """Decoder evaluations per image and step, as some runs have recorded them; NaN where none has."""
    found = (Run(folder).environment.get("decoder_evaluations") for folder in folders)
    return next((float(number) for number in found if isinstance(number, (int, float)) and number > 0), math.nan)


def or_infinite(number: float) -> float:
    """A number; what is none counts as the worst loss."""
    return number if math.isfinite(number) else math.inf


def select(
    atlas: Atlas,
    grids: Mapping[str, Sequence[Setting]],
    folders: Mapping[str, Sequence[Sequence[Path]]],
) -> Selection | None:
    """Choose a setting of each estimator by the validation loss of the search, whose runs have all ended.

    Args:
        grids: of each estimator.
        folders: of each estimator and setting, those of the seeds of the search.

    Returns:
        None where no run has ended an epoch.
    """
    losses = {
        name: tuple(or_infinite(fmean(final(folder, "val/loss") for folder in seeds)) for seeds in folders[name])
        for name in grids
    }
    evaluations = {name: _evaluations([folder for seeds in folders[name] for folder in seeds]) for name in grids}
    paces = {name: pace([folder for seeds in folders[name] for folder in seeds]) for name in grids}
    best = {name: min(range(len(grid)), key=losses[name].__getitem__) for name, grid in grids.items()}
    works = {
        name: one
        for name, one in paces.items()
        if one and math.isfinite(losses[name][best[name]]) and math.isfinite(evaluations[name])
    }
    if not works:
        return None
    steps_per_epoch = max(one.steps_per_epoch for one in works.values())
    seconds = {name: one.seconds_per_step for name, one in works.items()}
    steps = steps_of(atlas.report.epochs, steps_per_epoch, evaluations, seconds)
    chosen = {
        name: Chosen(
            grid[best[name]] if name in works else None,
            losses[name],
            evaluations[name],
            seconds.get(name, math.nan),
            steps.get(name, {}),
        )
        for name, grid in grids.items()
    }
    return Selection(steps_per_epoch, chosen)
