"""A study of Optuna's beside the runs of a sweep: the space in Hydra's words, the file, and pruning within a run.

The file is Optuna's journal, JSON lines behind a lock that holds on NFS (Akiba et al. 2019, Optuna, arXiv 1907.10902).
It may be somebody else's: of what it holds only values of the space are put to use.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from lightning.pytorch.callbacks import Callback
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.trial import FrozenTrial, Trial

from vi_lab.errors import Pruned, UserError, ViLabError, one_line
from vi_lab.runs.files import STUDY_FILE

METRIC = "val/loss"

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def distribution(override: Override) -> BaseDistribution | None:
    """What an override draws from; None where it gives one value.

    Raises:
        UserError: a space that Optuna has no distribution for.
    """
    if not override.is_sweep_override():
        return None
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([Override._get_value_element_as_str(one) for one in value.list])
    if isinstance(value, RangeSweep):
        words = [str(one) for one in value.range()]
        if not words:
            raise UserError(f"{override.input_line}: an empty range")
        return CategoricalDistribution(words)
    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        whole, log = isinstance(value.start, int) and isinstance(value.end, int), "log" in value.tags
        if not value.start < value.end or (log and not value.start > 0):
            wanted = "0 < LOW < HIGH, as tag(log, ...) is over logarithms" if log else "LOW < HIGH"
            raise UserError(f"{override.input_line}: wanted interval(LOW,HIGH) with {wanted}")
        if whole:
            return IntDistribution(int(value.start), int(value.end), log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    raise UserError(f"{override.input_line}: wanted interval(LOW,HIGH), choice(A,B) or range(FIRST,BEFORE,STEP)")


def space_of(overrides: Iterable[str]) -> dict[str, BaseDistribution]:
    """The keys that are searched over, and what each is drawn from.

    Raises:
        UserError: see `distribution`.
    """
    parsed = OverridesParser.create().parse_overrides([*overrides])
    return {o.get_key_element(): found for o in parsed if (found := distribution(o)) is not None}


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
    if name == "random":
        return optuna.samplers.RandomSampler()
    if name == "grid":
        listed = {key: found.choices for key, found in space.items() if isinstance(found, CategoricalDistribution)}
        if len(listed) < len(space):
            key = next(key for key in space if key not in listed)
            raise UserError(f"sampler=grid: {key} is an interval; give choice(...) or range(...)")
        return optuna.samplers.GridSampler(listed)
    if name == "cmaes":
        if not all(isinstance(found, (FloatDistribution, IntDistribution)) for found in space.values()):
            raise UserError("sampler=cmaes takes intervals only; choices need sampler=tpe")
        try:
            return optuna.samplers.CmaEsSampler()
        except ImportError:
            raise UserError("sampler=cmaes needs cmaes: pip install 'vi_lab[tune]'") from None
    return optuna.samplers.TPESampler(multivariate=True, constant_liar=True)


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
    path = str(folder / STUDY_FILE)
    options = {"max_resource": epochs} if pruner == "hyperband" else {}
    try:
        return optuna.create_study(
            study_name=folder.name,
            storage=JournalStorage(JournalFileBackend(path, JournalFileSymlinkLock(path))),
            sampler=sampler,
            pruner=PRUNERS[pruner](**options),
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ViLabError(f"{path}: damaged ({one_line(error)[:200]})") from error


def trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial by its number."""
    return study.get_trials(deepcopy=False)[number]


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
        self.trial, self.epochs = Trial(study, trial_of(study, number)._trial_id), epochs

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
