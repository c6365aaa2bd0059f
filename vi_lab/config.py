"""Composing configs with Hydra, and its errors in one line. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import copy
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vi_lab.adapters.hydra import VERSION_BASE, Quick, argument_parser, completions, groups, jobs_of_sweep
from vi_lab.arguments import Parser, split_folders, unquote
from vi_lab.errors import UserError, one_line
from vi_lab.schema import CONFIG_DIR, INNER, NO_GROUPS, OPEN, Mark, check, leaves, marked, nearest, row

OmegaConf.register_new_resolver("default", lambda value, other: other if value is None else value, replace=True)


LAUNCHERS = {"joblib": "joblib", "submitit_slurm": "submitit", "submitit_local": "submitit", "ray": "ray"}
"""Launchers of Hydra's plugins -> the extra that brings each."""


def explain(error: Exception, compose_without: Callable[[str], DictConfig] | None = None) -> str:
    """Hydra's and OmegaConf's errors in one line that says what is accepted.

    Args:
        compose_without: gives the config without the overrides of a key, for the hint at keys that there are.
    """
    text = str(error).split("Config search path:")[0].split("\nSee https://")[0]
    if isinstance(error, OverrideParseException):
        if Path(error.override).is_dir():
            return f"{error.override} is a folder; resume={error.override} goes on with the run or the sweep in it"
        return f"cannot read the override {error.override!r}; write KEY=VALUE, and quote values with spaces or commas"
    if found := re.search(r"Could not find '([^']+)/([^/']*)'\s+Available options in '.+?':\s+(.*)", text, re.DOTALL):
        group, choice, rest = found.groups()
        options = [line.strip() for line in rest.splitlines() if line.strip()]
        hint = ""
        if group == "hydra/launcher" and (extra := LAUNCHERS.get(choice)):
            return f"hydra/launcher={choice} is not installed; pip install 'vi_lab[{extra}]'"
        if group == "latent" and (size := re.fullmatch(r"(\d+)x(\d+)", choice)):
            hint = f"; use latent=categorical latent.variables={size[1]} latent.classes={size[2]}"
        return f"{group}={choice}: no such choice{nearest(choice, options)} (one of {', '.join(options)}){hint}"
    if found := re.search(r"Could not override '(.+?)'", text):
        if "." in found[1] and found[1].split(".")[0] in OPEN and row(found[1]) is not None:
            return f"there is no key {found[1]} yet; write +{found[1]}=VALUE to add it"
        return f"there is no key {found[1]}{_known_keys(found[1], compose_without) if compose_without else ''}"
    if found := re.search(r"Could not append to config\. An item is already at '(.+?)'", text):
        return f"+{found[1]}: the key is there already; leave out the +"
    if found := re.search(r"Environment variable '(.+?)' not found", text):
        return f"environment variable {found[1]} is not set"
    where = re.search(r"full_key: (\S+)", text)
    text = re.sub(r"\s*(full_key|object_type|reference_type)[:=].*", "", text)
    return one_line(Exception(f"{where[1]}: {text}" if where else text))


def _known_keys(path: str, compose_without: Callable[[str], DictConfig]) -> str:
    """What may have been meant by a key that is not there: one elsewhere that ends like it, or one beside it."""
    try:
        config = compose_without(path)
        node, _, key = path.rpartition(".")
        parent = OmegaConf.select(config, node) if node else config
        keys = [str(k) for k in parent if k not in INNER] if isinstance(parent, DictConfig) else []
        ends = [other for other, _ in leaves(resolved(config)) if re.search(rf"(^|[._]){re.escape(path)}$", other)]
    except Exception:  # only a hint: never a second error
        return ""
    if not node and "estimator" in config:  # a group of which nothing is chosen is no key
        keys += [group for group in _groups() if group not in (*keys, path)]
    ends = [key for key in ends if not key.startswith("optimizer_groups.")] or ends  # seldom what is meant
    if elsewhere := sorted(ends, key=len)[:3]:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return f"{nearest(key, keys)} (keys{f' of {node}' if node else ''}: {', '.join(keys)})" if keys else ""


def _groups() -> list[str]:
    """The shipped groups of a model's config."""
    return sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name not in NO_GROUPS)


def _initialized() -> AbstractContextManager:
    """Hydra's global state, fresh, with the shipped configs."""
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(CONFIG_DIR), version_base=VERSION_BASE)


def search_path(config_dir: str | None) -> list[str]:
    """The override with which Hydra finds the user's own configs."""
    return [f"hydra.searchpath=[{quote('file://' + str(Path(config_dir).resolve()))}]"] if config_dir else []


def compose_job(
    name: str, overrides: list[str], config_dir: str | None = None, quick: Quick | None = None
) -> DictConfig:
    """Compose one job, hydra's own node included, so that `${hydra:...}` resolves.

    Args:
        quick: shared by compositions that differ in little.
    """
    with _initialized():
        if quick is not None:
            quick.use()
        config = compose(name, [*overrides, *search_path(config_dir)], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def quote(text: str) -> str:
    """`text` as a value in an override, whatever it holds."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def resolved(config: DictConfig) -> dict:
    """The user's part of a composed config as plain Python, every interpolation filled in."""
    keys = [str(key) for key in config if key != "hydra"]
    values = OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return values


def split_sweep(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep."""
    with _initialized():
        return jobs_of_sweep(overrides)


def key_of(override: str) -> str:
    """The key of an override, as it stands there."""
    return override.partition("=")[0].lstrip("+~")


def swept_keys(overrides: list[str]) -> list[str]:
    """The keys that are given several values."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def swept_subdir(overrides: list[str]) -> str | None:
    """`hydra.sweep.subdir` with what differs between the jobs of a sweep, such as 0-rloo-temperature=0.3-s0; None where
    the shipped one says it all, or the user has given one."""
    values: dict[str, set[str]] = {}
    for job in split_sweep(overrides):
        for key, _, value in (override.lstrip("+").partition("=") for override in job):
            values.setdefault(key, set()).add(value)
    swept = [key for key, several in values.items() if len(several) > 1 and key not in ("seed", "estimator", "name")]
    if not swept or "hydra.sweep.subdir" in values:
        return None
    return f"${{hydra.job.num}}-${{name}}-${{swept:${{hydra.overrides.task}},[{','.join(swept)}]}}-s${{seed}}"


def swept_text(overrides: Iterable[str], keys: Iterable[str]) -> str:
    """The values of some keys in a job's overrides, as a part of a folder's name: short, and safe everywhere."""
    found = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    short = {key: re.split(r"[./]", key)[-1] for key in keys}
    unique = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    text = "-".join(f"{unique[key]}={found[key]}" for key in keys if key in found)
    text = re.sub(r"[^\w.,=+-]+", "_", re.sub(r"[\[\]'\"]", "", text))
    return text if len(text) <= 80 else f"{text[:70]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("swept", swept_text, replace=True)
OmegaConf.register_new_resolver("numbered", lambda index, numbers: numbers[index], replace=True)


def choices_of_groups(name: str, config_dir: str | None) -> dict[str, list[str]]:
    """The choices of each group, for the command `name`."""
    with _initialized():
        found = groups(name, search_path(config_dir))
    return {group: choices for group, choices in found.items() if group not in NO_GROUPS}


def complete_override(name: str, word: str, before: list[str], multirun: bool, config_dir: str | None) -> list[str]:
    """The overrides, or the beginnings of some, with which `word` goes on.

    Args:
        name: of the command.
        before: the overrides that stand before it; where they cannot be composed, it is completed without them.
    """
    for words in (before, []):
        with suppress(HydraException, OmegaConfBaseException), _initialized():
            return completions(name, word, [*words, *search_path(config_dir)], multirun)
    return []


_SHIPPED: dict[str, dict[tuple, dict]] = {}  # command -> choices -> their values as shipped


def check_overrides(name: str, overrides: list[str], multirun: bool, config_dir: str | None = None) -> list[dict]:
    """Compose and check every job that `overrides` describe.

    Raises:
        UserError: the first mistake that is found.
    """

    def jobs() -> Iterator[list[str]]:  # where they are split, a mistake is told as those within one are
        yield from split_sweep(overrides) if multirun else [overrides]

    return check_jobs(name, jobs(), config_dir, overrides)


def check_jobs(
    name: str, jobs: Iterable[list[str]], config_dir: str | None = None, overrides: list[str] | None = None
) -> list[dict]:
    """Compose and check jobs.

    Args:
        jobs: the overrides of each.
        overrides: what they come from, for the message where these cannot be told apart.

    Raises:
        UserError: the first mistake that is found.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder")
    shipped = _SHIPPED.setdefault(name, {}) if config_dir is None else {}
    configs, quick = [], Quick()
    job = overrides or []

    def without(key: str) -> DictConfig:
        try:
            return compose_job(name, [o for o in job if o.partition("=")[0].lstrip("+~") != key], config_dir)
        except HydraException:  # there is another mistake
            return compose_job(name, [], config_dir)

    try:
        for job in jobs:
            config = compose_job(name, job, config_dir, quick)
            chosen = {
                group: choice
                for group, choice in config.hydra.runtime.choices.items()
                if group != "experiment" and not group.startswith("hydra/")
            }
            values = resolved(config)
            # Hydra keeps no choices of groups that take several; their nodes are called as the shipped files are
            listed = {
                group: [key for key in values.get(group) or () if (CONFIG_DIR / group / f"{key}.yaml").is_file()]
                for group in ("logger", "callbacks")
            }
            key = tuple(sorted((g, str(c)) for g, c in {**chosen, **listed}.items()))
            groups = [f"{group}={choice}" for group, choice in chosen.items() if choice is not None]
            if key not in shipped and config_dir is None and {*job} <= {*groups}:  # nothing but choices
                shipped[key] = copy.deepcopy(values)
            if key not in shipped:
                groups += [f"{group}=[{','.join(names)}]" for group, names in listed.items() if names]
                shipped[key] = resolved(compose_job(name, groups, config_dir, quick))
                HydraConfig.instance().set_config(config)
            check(values, shipped[key])
            check_added(values, shipped[key])
            configs.append(values)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, without)) from error
    except (ValueError, TypeError, AssertionError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        # Hydra's own, such as where a group is given a number, null or nothing
        raise UserError(f"{one_line(Exception(' '.join(job)))}: cannot be composed ({explain(error)})") from error
    return configs


DRY_RUN = "--dry-run"


def flags_parser() -> Parser:
    """Hydra's flags and ours, with our errors."""
    parser = Parser(parents=[argument_parser()], add_help=False)
    parser.add_argument(DRY_RUN, action="store_true", help="of a named sweep: list what would happen to each job")
    return parser


def read_arguments(argv: list[str], folders: bool = False) -> argparse.Namespace:
    """Hydra's flags and overrides, in any order.

    Args:
        folders: words may name folders, as run= does.

    Raises:
        UserError: an unknown flag, or folders in both ways.
    """
    parser = flags_parser()
    for flag, after in pairwise([*argv, ""]):
        _refuse_key(flag, after, parser)
    arguments = parser.parse_intermixed_args(argv)
    found, others = split_folders(arguments.overrides) if folders else ([], arguments.overrides)
    arguments.overrides = [_quoted(override) for override in others]
    if found and any(override.startswith("run=") for override in others):
        raise UserError(f"{found[0]} and run=: name all folders in one of the two ways")
    if found:
        named = ",".join(map(quote, found))
        arguments.overrides.append(f"run={named}" if len(found) == 1 else f"run=[{named}]")
    return arguments


def _refuse_key(flag: str, after: str, parser: Parser) -> None:
    """Say of a key that is written like a flag how it is given.

    Args:
        after: the word behind it, perhaps its value.
    """
    name, _, value = flag.removeprefix("--").partition("=")
    if not flag.startswith("--") or any(option.startswith(f"--{name}") for option in parser.options):
        return
    key = name.replace("-", "_")
    if row(key) is not None or key in _groups():
        value = value or (after if re.fullmatch(r"[^-=][^=]*", after) else "VALUE")
        raise UserError(f"{flag} is no flag; write {key}={value}")


NOT_TAKEN = {
    "trainer.logger": "use logger=",
    "trainer.callbacks": "use callbacks=",
    "trainer.accelerator": "use accelerator=",
    "trainer.devices": "use accelerator.devices=",
    "trainer.num_nodes": "a run has one machine; use accelerator.devices=",
    "trainer.strategy": "use accelerator.strategy=",
    "trainer.default_root_dir": "use hydra.run.dir=",
    "trainer.enable_progress_bar": "it would be a second display",
    "trainer.enable_model_summary": "use callbacks=[model_summary]",
    "trainer.enable_checkpointing": "use checkpoint.every_n_steps=",
    "trainer.plugins": "exact resume needs ours",
    "trainer.num_sanity_val_steps": "it would draw noise before training",
    "trainer.barebones": "use figures=false logger=[]",
    "trainer.fast_dev_run": "use trainer.max_steps=",
    "optimizer.params": "they are the model's",
    "optimizer.maximize": "the loss is minimized",
    "optimizer.differentiable": "no gradient goes through a step",
    "optimizer.capturable": "steps are not captured in a CUDA graph",
    "lr_scheduler.scheduler.optimizer": "use optimizer=",
}
"""Arguments of other libraries that are not taken as `+NODE.KEY`: why, or what to use instead."""


def check_added(values: dict, shipped: dict) -> None:
    """Check keys that the user has added to nodes that reach constructors of other libraries. Only where there are
    some is the library imported.

    Raises:
        UserError: the constructor does not know the key.
    """
    known = dict(leaves(shipped))
    for path, _ in leaves(values):
        node, _, key = path.rpartition(".")
        if path in known or key.startswith("_") or path.split(".")[0] not in OPEN:
            continue
        if path in NOT_TAKEN:
            raise UserError(f"+{path} is not taken; {NOT_TAKEN[path]}")
        accepted = _arguments("lightning.Trainer" if node == "trainer" else _target_of(values, node))
        if accepted is not None and key not in accepted:
            keys = [name for name in accepted if f"{node}.{name}" not in NOT_TAKEN]
            raise UserError(f"{node} takes no {key}{nearest(key, keys)} (keys: {', '.join(keys)})")


def _target_of(values: dict, node: str) -> str | None:
    """What a node instantiates; None for a node that is only a part of one."""
    for name in node.split("."):
        values = values.get(name, {}) if isinstance(values, dict) else {}
    return values.get("_target_") if isinstance(values, dict) else None


def _arguments(target: str | None) -> list[str] | None:
    """The arguments that a class takes; None where any are, or where there is no such class."""
    if target is None:
        return None
    try:
        parameters = inspect.signature(get_class(target)).parameters
    except Exception:  # instantiation will say what is wrong with it
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return sorted(parameters)


def only_asks(arguments: argparse.Namespace) -> bool:
    """Whether Hydra is asked for information instead of a run."""
    return any((arguments.help, arguments.hydra_help, arguments.cfg, arguments.info, arguments.shell_completion))


def _quoted(override: str) -> str:
    """Hydra's grammar takes text beyond ASCII or with = in quotes only; /home/jürgen/0-lr=1 should need none."""
    key, equals, value = override.partition("=")
    if key == "notes" and value not in ("", "null") and unquote(value) == value:
        return f"notes={quote(value)}"  # a text, whatever is in it
    bare = equals and (not value.isascii() or "=" in value) and not re.search(r"[,\[\](){}'\"]", value)
    return f"{key}={quote(value)}" if bare else override


def plain(node: Any) -> Any:
    """A config node as resolved plain Python."""
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, (DictConfig, ListConfig)) else node


def parse_values(overrides: list[str], mark: Mark, command: str) -> list[tuple[str, object]]:
    """Overrides of single values as (key, value).

    Raises:
        UserError: one that cannot be read, or whose key does not carry `mark`.
    """
    accepted = marked(mark)
    try:
        parsed = OverridesParser.create().parse_overrides([_quoted(override) for override in overrides])
    except HydraException as error:
        raise UserError(explain(error)) from error
    for override in parsed:
        if override.key_or_group not in accepted or override.is_delete():
            raise UserError(
                f"{override.key_or_group} cannot change with {command}: the folder says what the run is "
                f"(only {', '.join(accepted)} may)"
            )
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: wanted one value")
    return [(override.key_or_group, override.value()) for override in parsed]


def choice(group: str, name: object) -> dict:
    """What a shipped choice of a group holds.

    Raises:
        UserError: there is no such choice.
    """
    file = CONFIG_DIR / group / f"{name}.yaml"
    choices = sorted(path.stem for path in file.parent.glob("*.yaml"))
    if name not in choices:
        raise UserError(f"{group}={name}: no such choice (one of {', '.join(choices)})")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def put_values(config: DictConfig, values: list[tuple[str, object]]) -> None:
    """Put the values of `parse_values` into a stored config; a group's choice brings what is shipped."""
    for key, value in values:
        if key in ("accelerator", "logger"):
            names = value if isinstance(value, list) else [value]
            config[key] = OmegaConf.merge({}, *(choice(key, name) for name in names))
        else:
            OmegaConf.update(config, key, value)
