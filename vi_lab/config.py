"""Composing and checking configs, before anything heavy is imported.

The yaml files are the schema: an override may not add keys that they lack nor change a value's type, and the table
`RULES` holds the ranges. Every mistake is a `UserError` of one line that names what is accepted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vi_lab.errors import UserError, one_line

_HERE = Path(__file__).resolve().parent
CONFIG_DIR = next(p for p in (_HERE / "configs", _HERE.parent / "configs") if (p / "train.yaml").is_file())
"""The shipped groups: beside the package in a checkout, inside it in a wheel."""

OmegaConf.register_new_resolver("default", lambda value, other: other if value is None else value, replace=True)


# --- values ------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What a value must satisfy, and the words for it."""

    holds: Callable[[Any], bool]
    wanted: str


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(*names: str) -> Rule:
    return Rule(lambda v: v in names, "one of " + ", ".join(names))


def _optional(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.holds(v), f"{rule.wanted}, or null")


POSITIVE = Rule(lambda v: _number(v) and 0 < v < float("inf"), "a number above 0")
NOT_NEGATIVE = Rule(lambda v: _number(v) and 0 <= v < float("inf"), "a number of at least 0")
FRACTION = Rule(lambda v: _number(v) and 0 <= v < 1, "a number in [0, 1)")
COUNT = Rule(lambda v: _integer(v) and v >= 1, "a whole number of at least 1")
COUNT_OR_ZERO = Rule(lambda v: _integer(v) and v >= 0, "a whole number of at least 0")
SIZES = Rule(lambda v: isinstance(v, list) and all(COUNT.holds(i) for i in v), "a list of whole numbers above 0")
FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
PART = Rule(
    lambda v: (_integer(v) and v >= 1) or (isinstance(v, float) and 0 < v <= 1),
    "a fraction above 0 and at most 1.0, or a whole number of batches",
)
ACTIVATION = _one_of("relu", "leaky_relu", "elu", "silu", "gelu", "tanh")

PRECISIONS = ("32", "64", "16", "bf16", "32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")

RULES: dict[str, Rule] = {
    "run": Rule(lambda v: v is None or isinstance(v, str), "a run folder"),
    "weights": _one_of("last", "best"),
    "split": _one_of("test", "val"),
    "audit.estimators": Rule(
        lambda v: v is None or (isinstance(v, list) and v != [] and all(isinstance(i, str) for i in v)),
        "a list of estimators such as [gumbel_softmax,rloo], or null",
    ),
    "audit.samples": Rule(lambda v: _integer(v) and v >= 40, "a whole number of at least 40"),
    "audit.every_n_steps": _optional(COUNT),
    "audit.batch": COUNT,
    "audit.warmup": COUNT_OR_ZERO,
    "audit.max_states": COUNT,
    "audit.reference_error": POSITIVE,
    "audit.reference_draws": COUNT,
    "audit.temperatures": Rule(
        lambda v: isinstance(v, list) and all(POSITIVE.holds(i) for i in v), "a list of numbers above 0"
    ),
    "seed": Rule(lambda v: _integer(v) and 0 <= v < 2**63, "a whole number from 0 to 2^63 - 1"),
    "temperature": POSITIVE,
    "samples": _optional(COUNT),
    "threads": _optional(COUNT),
    "name": Rule(
        lambda v: isinstance(v, str) and v.isprintable() and re.fullmatch(r"(?!\.+$)[^/\\]+", v) is not None,
        "a name that can be a folder's: printable, without slashes",
    ),
    "data.source": _one_of("mnist", "fashion_mnist", "kmnist", "digits"),
    "data.root": Rule(lambda v: v is None or isinstance(v, str), "a folder"),
    "data.batch_size": COUNT,
    "data.eval_batch_size": COUNT,
    "data.validation": COUNT_OR_ZERO,
    "data.binarization": _one_of("dynamic", "fixed", "threshold", "none"),
    "latent.variables": COUNT,
    "latent.classes": COUNT,
    "latent.dim": COUNT,
    "estimator.samples": COUNT,
    "estimator.backward_temperature": _optional(POSITIVE),
    "estimator.learn_temperature": FLAG,
    "estimator.*temperature": POSITIVE,
    "estimator.gap": NOT_NEGATIVE,
    "estimator.inner_samples": COUNT,
    "estimator.eta": NOT_NEGATIVE,
    "estimator.baseline.decay": FRACTION,
    "estimator.max_states": COUNT,
    "estimator.hidden": COUNT,
    "estimator.baseline.hidden": COUNT,
    "estimator.top_k": COUNT,
    "estimator.chunk": COUNT,
    "estimator.commitment": NOT_NEGATIVE,
    "network.*.hidden": SIZES,
    "network.*.channels": SIZES,
    "network.*.activation": ACTIVATION,
    "network.*.output_activation": _optional(ACTIVATION),
    "likelihood.scale": POSITIVE,
    "objective.kl": _one_of("analytic", "monte_carlo", "path"),
    "objective.beta": NOT_NEGATIVE,
    "schedule.rate": NOT_NEGATIVE,
    "schedule.steps": COUNT,
    "schedule.interval": COUNT,
    "schedule.*": POSITIVE,
    "optimizer.lr": POSITIVE,
    "optimizer.momentum": FRACTION,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "accelerator.accelerator": _one_of("cpu", "gpu", "cuda", "mps", "auto"),
    "accelerator.devices": COUNT,
    "trainer.max_epochs": COUNT,
    "trainer.max_steps": Rule(lambda v: _integer(v) and (v >= 1 or v == -1), "a whole number above 0, or -1"),
    "trainer.precision": Rule(
        lambda v: str(v) in PRECISIONS,
        "one of 32-true, bf16-mixed, 16-mixed, bf16-true, 16-true, 64-true",
    ),
    "trainer.gradient_clip_val": _optional(POSITIVE),
    "trainer.limit_*_batches": PART,
    "trainer.check_val_every_n_epoch": COUNT,
    "resume": Rule(lambda v: v is None or isinstance(v, str), "a run folder or a sweep folder"),
    "figures_every_n_epochs": _optional(COUNT),
    "evaluation.samples": _optional(COUNT),
    "evaluation.images": _optional(COUNT),
    "checkpoint.every_n_steps": _optional(COUNT),
    "trainer.log_every_n_steps": COUNT,
}

OPEN = ("trainer", "optimizer", "hydra")
"""Nodes to which `+NODE.KEY=VALUE` may add: they reach constructors of other libraries."""


def _rule(path: str) -> Rule | None:
    return next((rule for pattern, rule in RULES.items() if fnmatchcase(path, pattern)), None)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in nested mappings."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _same_type(value: Any, shipped: Any) -> bool:
    if value is None or shipped is None:
        return True  # null stands for any type; RULES say where null is not accepted
    if isinstance(shipped, bool) or isinstance(value, bool):
        return isinstance(shipped, bool) and isinstance(value, bool)
    if isinstance(shipped, (int, float)):
        return isinstance(value, (int, float))
    return isinstance(value, type(shipped))


_WORDS = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


_INNER = ("_target_", "_partial_", "latents", "model", "hydra")  # not for users to set


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check(values: dict, shipped: dict) -> None:
    """Check a resolved config against what the chosen groups ship and against `RULES`.

    Raises:
        UserError: an unknown key, a wrong type, a value out of range, or an estimator and a latent that don't fit.
    """
    known = dict(leaves(shipped))
    for path, value in leaves(values):
        node, _, key = path.rpartition(".")
        if path not in known:
            if path.split(".")[0] in OPEN:
                continue
            if any(p.startswith(f"{path}.") for p in known):
                raise UserError(f"{path}={_show(value)}: wanted a mapping")
            prefix = f"{node}." if node else ""
            siblings = {p.removeprefix(prefix).split(".")[0] for p in known if p.startswith(prefix)}
            siblings = sorted(siblings.difference(_INNER))
            where = f"{node} has no key {key}" if node else f"there is no key {key}"
            raise UserError(f"{where}{_nearest(key, siblings)} (keys: {', '.join(siblings) or 'none'})")
        wanted = _WORDS.get(type(known[path]), "another type")
        rule = None if key.startswith("_") else _rule(path)
        if rule and not rule.holds(value):
            raise UserError(f"{path}={_show(value)}: wanted {rule.wanted}")
        if not rule and (not _same_type(value, known[path]) or (value is None and known[path] is not None)):
            raise UserError(f"{path}={_show(value)}: wanted {wanted}")
    if "estimator" in values:
        _check_pair(values)


def _show(value: Any) -> str:
    return "null" if value is None else repr(value)


def _check_pair(values: dict) -> None:
    """An estimator names the latents that it can estimate for."""
    estimator, latent = values["estimator"], values["latent"]
    kind = latent["_target_"].rpartition(".")[2].lower()
    accepted = estimator["latents"]
    if kind not in accepted:
        raise UserError(
            f"estimator {values['name']} does not work with a {kind} latent; leave latent= out or use "
            + " or ".join(f"latent={name}" for name in accepted)
        )
    objective, schedule = (values.get(key, {}).get("_target_", "") for key in ("objective", "schedule"))
    if objective.endswith(".RelaxedELBO") and "prior_temperature" not in estimator:
        raise UserError(f"objective=relaxed needs estimator=concrete, not {values['name']}; leave objective= out")
    if estimator.get("learn_temperature") and schedule.rpartition(".")[2] not in ("", "Constant"):
        raise UserError("estimator.learn_temperature=true leaves nothing to a schedule; leave schedule= out")
    if "max_states" in estimator:
        states = latent.get("classes", 2) ** latent["variables"]
        if states > estimator["max_states"]:
            raise UserError(
                f"estimator {values['name']} sums over all states: this latent has {states:.3g}, more than "
                f"estimator.max_states={estimator['max_states']}; use a smaller latent, such as latent=1x10 or 2x10"
            )


TRUSTED = re.compile(
    r"vi_lab\.(estimators\.\w+|latents|networks|likelihoods|objectives|schedules|models|data)\.[A-Z]\w*"
    r"|torch\.optim\.[A-Z]\w*"
)
"""What the config of somebody else's run folder may name in `_target_`. Attributes of modules that our modules import,
such as vi_lab.snapshot.subprocess.run, do not match."""


def _is_trusted(target: str) -> bool:
    own = [package for package in os.environ.get("VI_LAB_TRUST", "").split(",") if package]
    return bool(TRUSTED.fullmatch(target)) or any(target.startswith(f"{package}.") for package in own)


def check_targets(values: Any, where: str) -> None:
    """Refuse a config that would make us call anything but the parts of a model, or of the packages that the user
    names in the environment variable VI_LAB_TRUST (comma-separated).

    Raises:
        UserError: it names another `_target_`.
    """
    for path, value in leaves(values):
        if isinstance(value, list):
            for index, inner in enumerate(value):
                check_targets(inner, f"{where}: {path}[{index}]")
        if path.rpartition(".")[2] == "_target_" and not _is_trusted(str(value)):
            raise UserError(
                f"{where}: {path}={value}: not a part of vi_lab, so it is not run; where it is your own, set "
                f"VI_LAB_TRUST={str(value).partition('.')[0]}"
            )


@cache
def _shipped_train() -> tuple[dict, set[str]]:
    """train.yaml without Hydra: the values that stand in it, and the names of the groups. Read once: a comparison
    checks many runs."""
    shipped = yaml.safe_load((CONFIG_DIR / "train.yaml").read_text(encoding="utf-8"))
    groups = {name for item in shipped["defaults"] if isinstance(item, dict) for name in item} - {"experiment"}
    return {name: node for name, node in shipped.items() if name not in ("defaults", "hydra")}, groups


def check_stored(values: Any, where: str, made_by: str) -> None:
    """Refuse the config of a run folder unless this version of vi_lab would have written it. Needs no Hydra.

    Args:
        values: the file's content as plain Python.
        where: the file, for the message.
        made_by: the version of vi_lab that wrote it, for the message.

    Raises:
        UserError: not a training run's, of another version, or naming what is not run.
    """
    nodes, groups = _shipped_train()
    if not isinstance(values, dict) or not all(isinstance(values.get(group), dict) for group in groups):
        raise UserError(f"{where}: not the config of a training run")
    check_targets(values, where)
    wanted = {path for path, _ in leaves(nodes)}
    found = dict(leaves(values))
    missing = sorted(path for path in wanted if path not in found and path.split(".")[0] != "trainer")
    unknown = sorted(set(values) - set(nodes) - groups)
    if missing or unknown:
        problem = f"it lacks {missing[0]}" if missing else f"{unknown[0]} is not known here"
        raise UserError(
            f"{where}: made by another version of vi_lab ({made_by}): {problem}; use that version, or retrain"
        )
    for path, value in found.items():
        if "${" in str(value):
            raise UserError(f"{where}: {path}={value}: wanted a plain value")
        rule = None if path.rpartition(".")[2].startswith("_") else _rule(path)
        if rule and not rule.holds(value):
            raise UserError(f"{where}: {path}={_show(value)}: wanted {rule.wanted}")
    if not isinstance(values["estimator"].get("latents"), list):
        raise UserError(f"{where}: estimator.latents: wanted a list")
    _check_pair(values)


# --- composing ---------------------------------------------------------------------------------------------------


def explain(error: Exception) -> str:
    """Hydra's and OmegaConf's errors in one line that says what is accepted."""
    text = str(error).split("Config search path:")[0].split("\nSee https://")[0]
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}; write KEY=VALUE, and quote values with spaces or commas"
    if found := re.search(r"Could not find '([^']+)/([^/']*)'\s+Available options in '.+?':\s+(.*)", text, re.DOTALL):
        group, choice, rest = found.groups()
        options = [line.strip() for line in rest.splitlines() if line.strip()]
        hint = ""
        if group == "latent" and (size := re.fullmatch(r"(\d+)x(\d+)", choice)):
            hint = f"; use latent=categorical latent.variables={size[1]} latent.classes={size[2]}"
        return f"{group}={choice}: no such choice{_nearest(choice, options)} (one of {', '.join(options)}){hint}"
    if found := re.search(r"Could not override '(.+?)'", text):
        return f"there is no key {found[1]}{_known_keys(found[1])}"
    if found := re.search(r"Could not append to config\. An item is already at '(.+?)'", text):
        return f"+{found[1]}: the key is there already; leave out the +"
    if found := re.search(r"Environment variable '(.+?)' not found", text):
        return f"environment variable {found[1]} is not set"
    where = re.search(r"full_key: (\S+)", text)
    text = re.sub(r"\s*(full_key|object_type|reference_type)[:=].*", "", text)
    return one_line(Exception(f"{where[1]}: {text}" if where else text))


def _known_keys(path: str) -> str:
    """The keys beside a misspelt one, from the default config."""
    try:
        node, _, key = path.rpartition(".")
        config = compose_job("train", [])
        parent = OmegaConf.select(config, node) if node else config
        keys = [str(k) for k in parent if k not in _INNER] if isinstance(parent, DictConfig) else []
        keys += [] if node else ["experiment"]
    except Exception:  # only a hint: never a second error
        return ""
    return f"{_nearest(key, keys)} (keys{f' of {node}' if node else ''}: {', '.join(keys)})" if keys else ""


def _initialized() -> AbstractContextManager:
    """Hydra's global state, fresh, with the shipped configs."""
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(CONFIG_DIR), version_base="1.3")


def compose_job(name: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """Compose one job, hydra's own node included, so that `${hydra:...}` resolves."""
    search = [f"hydra.searchpath=[{quote('file://' + str(Path(config_dir).resolve()))}]"] if config_dir else []
    with _initialized():
        config = compose(name, [*overrides, *search], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def quote(text: str) -> str:
    """`text` as a value in an override, whatever it holds."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def resolved(config: DictConfig) -> dict:
    """The user's part of a composed config as plain Python, every interpolation filled in."""
    keys = [key for key in config if key != "hydra"]
    return OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True, throw_on_missing=True)


def split_sweep(overrides: list[str]) -> list[list[str]]:
    """The jobs of a sweep as Hydra's basic sweeper makes them."""
    with _initialized():  # glob(*) looks into the groups
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        return [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]


_SHIPPED: dict[str, dict[tuple, dict]] = {}  # command -> choices -> their values as shipped


def check_overrides(name: str, overrides: list[str], multirun: bool, config_dir: str | None = None) -> list[dict]:
    """Compose and check every job that `overrides` describe.

    Raises:
        UserError: the first mistake that is found.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder")
    shipped = _SHIPPED.setdefault(name, {}) if config_dir is None else {}
    configs = []
    job = overrides
    try:
        for job in split_sweep(overrides) if multirun else [overrides]:
            config = compose_job(name, job, config_dir)
            chosen = {
                group: choice
                for group, choice in config.hydra.runtime.choices.items()
                if group != "experiment" and not group.startswith("hydra/")
            }
            key = tuple(sorted((g, str(c)) for g, c in chosen.items()))
            if key not in shipped:
                groups = [f"{group}={choice}" for group, choice in chosen.items() if choice is not None]
                shipped[key] = resolved(compose_job(name, groups, config_dir))
                HydraConfig.instance().set_config(config)
            values = resolved(config)
            check(values, shipped[key])
            configs.append(values)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except (ValueError, TypeError, AssertionError, KeyError, AttributeError) as error:
        # Hydra's own, such as where a group is given a number, null or nothing
        raise UserError(f"{one_line(Exception(' '.join(job)))}: cannot be composed ({explain(error)})") from error
    return configs


def read_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags and overrides in any order; returns what they are and argv with the flags first.

    Raises:
        UserError: an unknown flag.
    """
    parser = get_args_parser()

    def fail(message: str) -> None:
        raise UserError(f"{message}; --help shows what there is")

    parser.error = fail
    arguments = parser.parse_intermixed_args(argv)
    flags = list(argv)
    for override in arguments.overrides:
        flags.remove(override)
    arguments.overrides = [_quote_unicode(override) for override in arguments.overrides]
    return arguments, [*flags, *arguments.overrides]


def _quote_unicode(override: str) -> str:
    """Hydra's grammar takes text beyond ASCII in quotes only; a path such as /home/jürgen should need none."""
    key, equals, value = override.partition("=")
    bare = equals and not value.isascii() and not re.search(r"[,\[\](){}'\"]", value)
    return f"{key}={quote(value)}" if bare else override


def plain(node: Any) -> Any:
    """A config node as resolved plain Python."""
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, (DictConfig, ListConfig)) else node
