"""Hydra, beyond its public interface: its argument parser, completion, its sweeper, and a start without `sys.argv`.

Checked against hydra-core 1.3.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir, version
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, OverrideType, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from vi_lab.errors import UserError

VERSION_BASE = "1.3"
MOST_JOBS = 10_000
"""Of a sweep; each is composed and checked before the first starts, some five a second."""


def _outcome(job: JobReturn) -> Any:
    """What a job of a sweep has returned, or what tells it by now, or its error, without a report of Hydra's own: ours
    stands there already."""
    if job.status == JobStatus.COMPLETED:
        return job._return_value() if callable(job._return_value) else job._return_value
    raise job._return_value


JobReturn.return_value = JobReturn.return_value.getter(_outcome)  # type: ignore[method-assign, attr-defined]


def argument_parser() -> argparse.ArgumentParser:
    """Hydra's own flags, and the overrides as positional arguments."""
    return get_args_parser()


def start(task: Callable[[Any], Any], arguments: argparse.Namespace, config_dir: Path, config_name: str) -> None:
    """What a function under `hydra.main` does, on given arguments: so `sys.argv` stays the user's command, from which
    Lightning starts the other processes of DDP.

    Args:
        task: called with the composed config of each job.
        arguments: of `argument_parser`.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to the caller, instead of Hydra's own report and exit
    version.setbase(VERSION_BASE)
    _run_hydra(
        args=arguments,
        args_parser=argument_parser(),
        task_function=task,
        config_path=str(config_dir),
        config_name=config_name,
    )


class QuickLoader(ConfigLoaderImpl):
    """Composes jobs that differ in single values from one composition of the rest: five times as fast. Files that
    change meanwhile are not seen, so it is to live no longer than what is composed with it."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        super().__init__(loader.config_search_path)
        self.composed: dict[tuple, DictConfig] = {}

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        parsed = OverridesParser.create(config_loader=self).parse_overrides(overrides)
        fixed = [i for i, override in enumerate(parsed) if self._adds_or_removes(override)]
        after = fixed[-1] if fixed else -1  # what stands before it may be what it adds to, or removes
        values = [self._is_value(o) and (i > after or o.is_hydra_override()) for i, o in enumerate(parsed)]
        later = [override for override, value in zip(parsed, values, strict=True) if value]
        first = tuple(str(o.input_line) for o, value in zip(parsed, values, strict=True) if not value)
        key = (config_name, run_mode, first)
        if key not in self.composed:
            rest = (from_shell, validate_sweep_overrides)
            self.composed[key] = super()._load_configuration_impl(config_name, [*first], run_mode, *rest)
        config = copy.deepcopy(self.composed[key])
        self._apply_overrides_to_config(later, config)
        of_task = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in of_task]
        config.hydra.overrides.hydra = [o.input_line for o in parsed if o.is_hydra_override()]
        names = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            of_task, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
        return config

    def _adds_or_removes(self, override: Override) -> bool:
        other = override.is_hydra_override() or self.repository.group_exists(override.key_or_group)
        return override.type != OverrideType.CHANGE and not other

    def _is_value(self, override: Override) -> bool:
        """Whether an override changes a value only, and not which files are composed."""
        key, plain = override.key_or_group, override.package is None and not override.is_sweep_override()
        if override.is_hydra_override():
            return plain and key.startswith(("hydra.sweep.", "hydra.job.env_set."))
        return plain and override.type == OverrideType.CHANGE and not self.repository.group_exists(key)


class Quick:
    """A `QuickLoader` for several initializations of Hydra with the same configs."""

    def __init__(self) -> None:
        self.loader: QuickLoader | None = None

    def use(self) -> None:
        """Compose with it until Hydra is initialized again."""
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        assert isinstance(hydra.config_loader, ConfigLoaderImpl)
        self.loader = hydra.config_loader = self.loader or QuickLoader(hydra.config_loader)


class Launch:
    """The launcher that a config names, for batches of jobs that somebody else has chosen.

    Args:
        config: of the sweep.
        launcher: set up.
    """

    def __init__(self, config: DictConfig, launcher: Launcher) -> None:
        self.launcher = launcher
        # Hydra imports its plugins anew when it looks for them: the class is another one of that name
        self.parallel = type(launcher).__module__ != BasicLauncher.__module__
        """Whether jobs run in processes of their own."""
        self.yaml = OmegaConf.to_yaml(config)
        """What Hydra keeps of a sweep as multirun.yaml."""

    def __call__(self, jobs: list[list[str]], first: int) -> None:
        """Run jobs, and raise what they raise.

        Args:
            jobs: the overrides of each.
            first: the number of the first.
        """
        for job in self.launcher.launch(jobs, initial_job_idx=first):
            _ = job.return_value


def launcher(task: Callable[[Any], Any], overrides: list[str], config_dir: Path, config_name: str) -> Launch:
    """What Hydra's sweepers launch jobs with. Hydra is initialized by it, until the process ends.

    Args:
        task: called with the composed config of each job.
        overrides: of the sweep.
    """
    GlobalHydra.instance().clear()
    initialize_config_dir(str(config_dir), job_name="train", version_base=VERSION_BASE)
    Quick().use()
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    config = hydra.compose_config(config_name, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, True)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
    made = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    return Launch(config, made)


def jobs_of_sweep(overrides: list[str]) -> list[list[str]]:
    """The jobs of a sweep as Hydra's basic sweeper makes them. Hydra must be initialized: glob(*) looks into groups.

    Raises:
        UserError: they are more than anybody trains; few words of an override can stand for any number.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(overrides)
    jobs = math.prod({override.get_key_element(): _choices(override) for override in parsed}.values())
    if jobs > MOST_JOBS:
        raise UserError(f"the sweep has {jobs:,.0f} jobs, more than {MOST_JOBS:,}; leave some values out")
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def groups(config_name: str, overrides: list[str]) -> dict[str, list[str]]:
    """The choices of every group but Hydra's own. Hydra must be initialized."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    names = sorted(name for name in hydra.list_all_config_groups() if name.partition("/")[0] != "hydra")
    choices = hydra.config_loader.get_group_options
    return {name: sorted(choices(name, ObjectType.CONFIG, config_name, overrides)) for name in names}


def completions(config_name: str, word: str, before: list[str], multirun: bool) -> list[str]:
    """Groups, choices, keys and values that begin with `word`, as Hydra's own plugins for shells know them. Hydra must
    be initialized.

    Args:
        before: overrides that stand before the word.
    """
    plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
    groups, exact = plugin._query_config_groups(word, config_name, before)
    if exact:
        return groups
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    config = plugin.config_loader.load_configuration(config_name, before, mode)
    keys = plugin._get_matches(config, word)
    lists = {key for key in keys if key.endswith(".") and OmegaConf.is_list(OmegaConf.select(config, key[:-1]))}
    return [*groups, *(f"{key[:-1]}=" if key in lists else key for key in keys)]  # a list is given as a whole


class Space(NamedTuple):
    """What a key is searched over."""

    words: str
    """As the user wrote it."""
    values: list[str] | None = None
    """Choices, as values of overrides; None: an interval."""
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    """Over the interval's logarithm."""


def spaces(overrides: Iterable[str]) -> dict[str, Space]:
    """The keys of overrides that are given a space, in Hydra's words for sweeps.

    Raises:
        UserError: one that is none: glob, or an interval without ends.
    """
    parsed = OverridesParser.create().parse_overrides([*overrides])
    return {o.get_key_element(): _space(o) for o in parsed if o.is_sweep_override()}


def _space(override: Override) -> Space:
    value, words = override.value(), str(override.input_line)
    if override.type != OverrideType.CHANGE:
        raise UserError(f"{words}: a key that is searched over is one that is there; write it without + or ~")
    if isinstance(value, ChoiceSweep):
        return Space(words, [Override._get_value_element_as_str(one) for one in value.list])
    if isinstance(value, RangeSweep) and _choices(override) <= MOST_JOBS:
        values = [str(one) for one in value.range()]
        if not values:
            raise UserError(f"{words}: an empty range")
        return Space(words, values)
    if not isinstance(value, IntervalSweep) or value.start is None or value.end is None:
        raise UserError(f"{words}: wanted interval(LOW,HIGH), choice(A,B) or range(FIRST,BEFORE,STEP)")
    if unknown := set(value.tags) - {"log"}:
        raise UserError(f"{words}: no such tag as {min(unknown)}; whole numbers are int(interval(LOW,HIGH))")
    if not (math.isfinite(value.start) and math.isfinite(value.end)):
        raise UserError(f"{words}: wanted finite ends")
    whole, log = isinstance(value.start, int) and isinstance(value.end, int), "log" in value.tags
    if not value.start < value.end or (log and not value.start > 0):
        wanted = "0 < LOW < HIGH, as tag(log, ...) is over logarithms" if log else "LOW < HIGH"
        raise UserError(f"{words}: wanted interval(LOW,HIGH) with {wanted}")
    return Space(words, None, value.start, value.end, whole, log)


def _choices(override: Override) -> float:
    """How many values an override sweeps over, counted without making them."""
    value = override.value() if override.is_sweep_override() else None
    if isinstance(value, RangeSweep):
        start, stop, step = value.start, value.stop, value.step
        if start is None or stop is None or not step or not all(map(math.isfinite, (start, stop, step))):
            raise UserError(f"{override.input_line}: wanted range(FIRST, BEFORE, STEP) of numbers, with a STEP but 0")
        return max(0, math.ceil((stop - start) / step))
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    return 1  # an interval is refused, and glob(*) finds no more than there are files
