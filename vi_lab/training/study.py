"""A study of Optuna's beside the runs of a sweep: the space in Hydra's words, the file, and pruning within a run.

The file is Optuna's journal, JSON lines behind a lock that holds on NFS (Akiba et al. 2019, Optuna, arXiv 1907.10902).
It may be somebody else's: of what it holds only values of the space are put to use.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import optuna
from lightning.pytorch.callbacks import Callback
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import FrozenTrial, Trial

from vi_lab.adapters.hydra import Space, spaces
from vi_lab.errors import Pruned, UserError, ViLabError, one_line
from vi_lab.runs.files import STUDY_FILE

METRIC = "val/loss"

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def space_of(overrides: Iterable[str]) -> dict[str, BaseDistribution]:
    """The keys that are searched over, and what each is drawn from.

    Raises:
        UserError: see `vi_lab.adapters.hydra.spaces`.
    """
    return {key: _distribution(space) for key, space in spaces(overrides).items()}


def _distribution(space: Space) -> BaseDistribution:
    if space.values is not None:
        return CategoricalDistribution([*dict.fromkeys(space.values)])
    if space.whole:
        return IntDistribution(int(space.low), int(space.high), log=space.log)
    return FloatDistribution(float(space.low), float(space.high), log=space.log)


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of the loss's variance that each key explains, by functional ANOVA (Hutter et al. 2014); empty where
    the trials do not tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (ValueError, RuntimeError, ZeroDivisionError, TypeError):
        return {}


def words_of(params: dict[str, Any], space: dict[str, BaseDistribution]) -> list[str]:
    """A trial's overrides.

    Raises:
        ViLabError: it holds what is not of the space.
    """
    for key, value in params.items():
        try:
            inside = key in space and space[key]._contains(space[key].to_internal_repr(value))
        except ValueError:
            inside = False
        if not inside:
            raise ViLabError(f"{STUDY_FILE}: a trial has {key}={value}, which is not of the space")
    return [f"{key}={params[key]}" for key in space if key in params]


def sampler_of(name: str, space: dict[str, BaseDistribution]) -> optuna.samplers.BaseSampler:
    """What proposes trials.

    Raises:
        UserError: the space does not suit it, or what it needs is not installed.
    """
    if name == "grid" and (open_ := [key for key in space if not isinstance(space[key], CategoricalDistribution)]):
        raise UserError(f"sampler=grid: {open_[0]} is an interval; give choice(...) or range(...)")
    if name in ("random", "grid"):  # the points of a grid are enqueued, as Optuna's sampler of grids ends its own loop
        return optuna.samplers.RandomSampler()
    if name == "cmaes":
        if not all(isinstance(found, (FloatDistribution, IntDistribution)) for found in space.values()):
            raise UserError("sampler=cmaes takes intervals only; choices need sampler=tpe")
        try:
            return optuna.samplers.CmaEsSampler()
        except ImportError:
            raise UserError("sampler=cmaes needs cmaes: pip install 'vi_lab[tune]'") from None
    return optuna.samplers.TPESampler(multivariate=True, constant_liar=True)


def points(space: dict[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """All of a space of choices, in the order of its words."""
    listed = [found.choices for found in space.values() if isinstance(found, CategoricalDistribution)]
    return (dict(zip(space, point, strict=True)) for point in itertools.product(*listed))


PRUNERS = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}


def open_study(
    folder: Path, sampler: optuna.samplers.BaseSampler | None = None, pruner: str = "none", epochs: int = 1
) -> optuna.Study:
    """The study in a sweep's folder, which is made where there is none.

    Args:
        epochs: that a run may have.

    Raises:
        ViLabError: its file is damaged.
    """
    path = folder / STUDY_FILE
    options = {"max_resource": epochs} if pruner == "hyperband" else {}
    with alone(path):
        _cut_torn_line(path)
    with _read(path):
        study = optuna.create_study(
            study_name=folder.name,
            storage=JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path)))),
            sampler=sampler,
            pruner=PRUNERS[pruner](**options),
            load_if_exists=True,
        )
        if study.directions != [optuna.study.StudyDirection.MINIMIZE]:
            raise ValueError("it does not minimize")
        return study


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While no other process is in a file's turn, on NFS too; one that has died in it loses it after 30 seconds."""
    lock = JournalFileOpenLock(str(path))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _cut_torn_line(path: Path) -> None:
    """What a full disk, or a kill, has left of a line at the end of a journal: the next one would be glued to it."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)


@contextmanager
def _read(path: Path) -> Iterator[None]:
    """Optuna replays the journal wherever it looks at a study, and believes it.

    Raises:
        ViLabError: it fails.
    """
    try:
        yield
    except Exception as error:
        raise ViLabError(f"{path}: damaged ({type(error).__name__}: {one_line(error)[:200]})") from error


def trials_of(study: optuna.Study, folder: Path) -> list[FrozenTrial]:
    """All trials, as the file has them.

    Raises:
        ViLabError: it is damaged.
    """
    with _read(folder / STUDY_FILE):
        return study.get_trials(deepcopy=False)


def is_whole(trial: FrozenTrial, space: dict[str, BaseDistribution]) -> bool:
    """Whether a trial is of the space, and has all of it: Optuna writes its parameters one by one."""
    if set(trial.params) != set(space):
        return False
    try:
        words_of(trial.params, space)
    except ViLabError:
        return False
    value = trial.values[0] if trial.values else None
    return value is None or (isinstance(value, float) and math.isfinite(value))


class Pruning(Callback):
    """Tells the study the validation loss of each epoch, and ends the run where it says so.

    Args:
        folder: of the sweep.
        number: of the trial.
        pruner: one of `PRUNERS`.
        epochs: that the run may have; after the last there is nothing to end.
    """

    def __init__(self, folder: Path, number: int, pruner: str, epochs: int) -> None:
        study = open_study(folder, pruner=pruner, epochs=epochs)
        self.trial, self.epochs = Trial(study, trials_of(study, folder)[number]._trial_id), epochs

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """After each evaluation.

        Raises:
            Pruned: the trial is behind others.
        """
        loss, epoch = trainer.callback_metrics.get(METRIC), trainer.current_epoch + 1
        if loss is None or epoch >= self.epochs:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a resumed run says some epochs a second time
            self.trial.report(float(loss), epoch)
        if self.trial.should_prune():
            raise Pruned(f"pruned after epoch {epoch}: {METRIC} {float(loss):.2f} is behind other trials")
