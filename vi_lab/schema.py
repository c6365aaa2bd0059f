"""What each key of a config may be and may do, once: one row of `KEYS` each. Needs neither Hydra nor torch.

The yaml files are the schema of which keys there are and of their types: an override may not add keys that they lack
nor change a value's type. A row adds the range, and as marks what else is known of the key: whether a resumed or
repeated run may change it, whether runs that differ in it are still the same experiment. Every mistake is a
`UserError` of one line that names what is accepted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator
from enum import Flag, auto
from fnmatch import fnmatchcase
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from vi_lab.errors import UserError

_HERE = Path(__file__).resolve().parent
CONFIG_DIR = next(p for p in (_HERE / "configs", _HERE.parent / "configs") if (p / "train.yaml").is_file())
"""The shipped groups: beside the package in a checkout, inside it in a wheel."""
NO_GROUPS = ("hydra", "published", "atlas")
"""Its folders that are no groups of a model's config: Hydra's own, published numbers, and comparisons of estimators."""


# --- what a value must satisfy ---------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What a value must satisfy, and the words for it."""

    holds: Callable[[Any], bool]
    wanted: str
    names: tuple[str, ...] = ()
    """All that there are, where they are few; a shell completes them."""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(*names: str) -> Rule:
    return Rule(lambda v: v in names, "one of " + ", ".join(names), names)


def _optional(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.holds(v), f"{rule.wanted}, or null", rule.names and (*rule.names, "null"))


def _text(wanted: str) -> Rule:
    return Rule(lambda v: v is None or isinstance(v, str), wanted)


def _named(wanted: str) -> Rule:
    return Rule(lambda v: v is None or (isinstance(v, str) and v != ""), wanted)


def _whole(low: int, high: int) -> Rule:
    return Rule(lambda v: _integer(v) and low <= v <= high, f"a whole number from {low:,} to {high:,}")


def _between(low: float, high: float) -> Rule:
    return Rule(lambda v: _number(v) and low <= v <= high, f"a number from {low:g} to {high:g}")


def _list_of(rule: Rule, wanted: str, least: int = 0, most: int = 100) -> Rule:
    return Rule(lambda v: isinstance(v, list) and least <= len(v) <= most and all(map(rule.holds, v)), wanted)


# The upper ends are far beyond what anybody means: they are where slips such as 1e12 stop. What is within them and too
# much for this machine is told by `vi_lab.training.rehearsal`.
POSITIVE = _between(1e-6, 1e6)  # of temperatures and scales: beyond, their squares and exponentials leave float32
WEIGHT = _between(0, 1e6)
FACTOR = Rule(lambda v: _number(v) and 0 < v < 1, "a number between 0 and 1")
FRACTION = Rule(lambda v: _number(v) and 0 <= v < 1, "a number in [0, 1)")
SIZE = _whole(1, 10**6)
WIDTH = _whole(1, 10**5)
PIXELS = _whole(1, 4096)
STEPS = _whole(1, 10**9)
STEPS_OR_ZERO = _whole(0, 10**9)
LEARNING_RATE = _between(1e-30, 1e6)
SEED = Rule(lambda v: _integer(v) and 0 <= v < 2**63, "a whole number from 0 to 2^63 - 1")
LARGEST = 2.0**128  # where float32 ends
SIZES = _list_of(WIDTH, f"a list of whole numbers from 1 to {10**5:,}")
BETAS = _list_of(FRACTION, "a list of two numbers in [0, 1), such as [0.9,0.999]", 2, 2)
FLAG = Rule(lambda v: isinstance(v, bool), "true or false", ("true", "false"))
TEXT = Rule(lambda v: isinstance(v, str), "text")
DURATION = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"\d+(:\d\d){3}", v) is not None,
    "days:hours:minutes:seconds in quotes, such as '00:12:00:00'",
)
PART = Rule(
    lambda v: STEPS.holds(v) or (isinstance(v, float) and 0 < v <= 1),
    f"a fraction above 0 and at most 1.0, or {STEPS.wanted}",
)
NAMES = Rule(
    lambda v: isinstance(v, list) and v != [] and all(isinstance(i, str) for i in v),
    "a list of names such as [gumbel_softmax,rloo]",
)
TAGS = _list_of(
    Rule(lambda v: isinstance(v, str) and re.fullmatch(r"[\w.+-]{1,40}", v) is not None, ""),
    "a list of words of letters, digits and _.+- such as [paper,baseline]",
)
ACTIVATION = _one_of("relu", "leaky_relu", "leaky_relu_0.2", "leaky_relu_0.3", "elu", "silu", "gelu", "tanh")
PRECISIONS = ("32", "64", "16", "bf16", "32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")


# --- the keys --------------------------------------------------------------------------------------------------------


class Mark(Flag):
    """What is known of a key besides its range."""

    RESUME = auto()  # may change where a run is resumed
    REPRODUCE = auto()  # may change where a run is repeated
    SWEEP = auto()  # may change where a sweep is resumed, besides those of RESUME
    AUDIT = auto()  # may be given where a run is audited, which says all the rest
    INCIDENTAL = auto()  # runs that differ in it are the same experiment, or repetitions of it
    SHOWN = auto()  # distinguishes runs in TensorBoard's table of hyperparameters
    FOLDER = auto()  # names a folder, which a shell completes
    STACK = auto()  # runs that differ in it are trained as one stack
    JOB = auto()  # says where and how a job of a named sweep is run, and not what it is


class Key(NamedTuple):
    """A row: what the key's value must satisfy (None: only be of the shipped value's type), and its marks."""

    rule: Rule | None
    marks: Mark = Mark(0)


RESUME, REPRODUCE, SWEEP, AUDIT, INCIDENTAL, SHOWN, FOLDER, STACK, JOB = Mark
_EVERYWHERE = RESUME | REPRODUCE | SWEEP | AUDIT | INCIDENTAL | JOB

KEYS: dict[str, Key] = {
    # of all commands, and of Hydra
    "accelerator": Key(TEXT, RESUME | AUDIT),  # the group's choice
    "hydra/launcher": Key(TEXT, SWEEP),
    "hydra.launcher.n_jobs": Key(TEXT, SWEEP),
    "hydra": Key(TEXT, AUDIT),
    "debug": Key(FLAG, _EVERYWHERE),
    "threads": Key(_optional(_whole(1, 1024)), _EVERYWHERE),
    "run": Key(
        Rule(
            lambda v: v is None or isinstance(v, str) or (isinstance(v, list) and all(isinstance(i, str) for i in v)),
            "a folder, or a list of them",
        ),
        AUDIT | FOLDER,
    ),
    "init_from": Key(_named("a run folder"), SHOWN | FOLDER),
    "resume": Key(_text("a run folder or a sweep folder"), INCIDENTAL | FOLDER | JOB),
    "sweep": Key(
        Rule(
            lambda v: v is None or (isinstance(v, str) and re.fullmatch(r"(?!\.)[\w.+-]{1,100}", v) is not None),
            "a name of letters, digits and _.+-",
        ),
        INCIDENTAL | JOB,
    ),
    "trials": Key(_whole(1, 10**6), JOB),
    "sampler": Key(_one_of("tpe", "random", "cmaes", "grid"), JOB),
    "pruner": Key(_one_of("none", "median", "hyperband"), JOB),
    "retries": Key(_whole(0, 1000), INCIDENTAL | JOB),
    "weights": Key(_one_of("last", "best")),
    "split": Key(_one_of("test", "val")),
    # what a run is called and repeats
    "name": Key(
        Rule(
            lambda v: isinstance(v, str) and v.isprintable() and re.fullmatch(r"(?!\.+$)[^/\\]+", v) is not None,
            "a name that can be a folder's: printable, without slashes",
        ),
        INCIDENTAL | AUDIT,
    ),
    "tags": Key(TAGS, RESUME | REPRODUCE | SWEEP | INCIDENTAL | SHOWN | STACK | JOB),
    "notes": Key(
        Rule(lambda v: v is None or (isinstance(v, str) and len(v) <= 10_000), "a text of up to 10,000 characters"),
        RESUME | REPRODUCE | SWEEP | INCIDENTAL | SHOWN | STACK | JOB,
    ),
    "seed": Key(SEED, INCIDENTAL | AUDIT | SHOWN | STACK),
    # data
    "data.source": Key(TEXT, SHOWN),  # of the shipped data sets; see `check_parts`
    "data.root": Key(_text("a folder or a file"), _EVERYWHERE | FOLDER),
    "data.download": Key(FLAG, _EVERYWHERE),
    "data.seed": Key(SEED, INCIDENTAL | STACK),
    "data.batch_size": Key(SIZE, SHOWN),
    "data.eval_batch_size": Key(SIZE),
    "data.validation": Key(_whole(0, 10**6)),
    "data.folds": Key(_optional(_whole(2, 1000)), SHOWN),
    "data.fold": Key(_whole(0, 999), INCIDENTAL | SHOWN),
    "data.binarization": Key(_one_of("dynamic", "fixed", "threshold", "none", "dequantize"), SHOWN),
    "data.size": Key(
        Rule(
            lambda v: PIXELS.holds(v) or (isinstance(v, list) and len(v) == 2 and all(map(PIXELS.holds, v))),
            "a number of pixels up to 4,096, or [ROWS,COLUMNS]",
        ),
        SHOWN,
    ),
    "data.channels": Key(Rule(lambda v: _integer(v) and v in (1, 3), "1 (gray) or 3 (color)", ("1", "3")), SHOWN),
    "data.drop_last": Key(FLAG),
    "data.steps": Key(_whole(1, 10**6), SHOWN),
    "data.test_every_epoch": Key(FLAG),
    # the model
    "latent.variables": Key(WIDTH, SHOWN),
    "latent.classes": Key(_whole(2, 10**5), SHOWN),
    "latent.dim": Key(WIDTH, SHOWN),
    "latent.layers": Key(_whole(1, 10), SHOWN),
    "latent.hidden": Key(SIZES, SHOWN),
    "latent.activation": Key(ACTIVATION, SHOWN),
    "latent.embedding": Key(_one_of("one_hot", "integer"), SHOWN),
    "latent.values": Key(_one_of("bits", "signs"), SHOWN),
    "prior.components": Key(WIDTH, SHOWN),
    "prior.size": Key(WIDTH, SHOWN),
    "network.center": Key(FLAG, SHOWN),
    "network.output_bias": Key(FLAG, SHOWN),
    "network.*.hidden": Key(SIZES, SHOWN),
    "network.*.channels": Key(SIZES, SHOWN),
    "network.*.activation": Key(ACTIVATION, SHOWN),
    "network.*.norm": Key(_optional(_one_of("layer")), SHOWN),
    "network.*.blocks": Key(_whole(0, 1000), SHOWN),
    "network.*.output_activation": Key(_optional(ACTIVATION), SHOWN),
    "likelihood.target": Key(_between(-1e6, 1e6), SHOWN),
    "likelihood.power": Key(_between(1, 100), SHOWN),
    "likelihood.start": Key(_between(-100, 100), SHOWN),
    "likelihood.spread": Key(_between(0, 100), SHOWN),
    "likelihood.instance": Key(SEED, SHOWN),
    "likelihood.probabilities": Key(
        _optional(_list_of(FACTOR, "a list of numbers between 0 and 1 with the sum 1", 1, 1000)), SHOWN
    ),
    "likelihood.scale": Key(POSITIVE, SHOWN),
    "likelihood.learn_scale": Key(FLAG, SHOWN),
    # the bound and its gradient
    "objective.kl": Key(_one_of("analytic", "monte_carlo", "path"), SHOWN),
    "objective.beta": Key(WEIGHT, SHOWN),
    "samples": Key(_optional(SIZE), SHOWN),
    "estimator.samples": Key(SIZE),
    "estimator.inner_samples": Key(SIZE),
    "estimator.learn_temperature": Key(FLAG),
    "estimator.conditional": Key(FLAG),
    "estimator.backward_temperature": Key(_optional(POSITIVE)),
    "estimator.temperature": Key(POSITIVE, STACK),
    "estimator.*temperature": Key(POSITIVE),
    "estimator.beta": Key(WEIGHT),
    "estimator.gap": Key(WEIGHT),
    "estimator.eta": Key(WEIGHT),
    "estimator.hidden": Key(WIDTH),
    "estimator.max_states": Key(SIZE),
    "estimator.top_k": Key(SIZE),
    "estimator.chunk": Key(SIZE),
    "estimator.commitment": Key(WEIGHT),
    "estimator.embedding": Key(_one_of("one_hot", "integer")),
    "estimator.baseline.decay": Key(FRACTION),
    "estimator.baseline.hidden": Key(WIDTH),
    "estimator.baseline.normalize_variance": Key(FLAG),
    "temperature": Key(POSITIVE, SHOWN | STACK),
    "schedule.rate": Key(_between(0, 1e3), SHOWN | STACK),
    "schedule.steps": Key(STEPS, SHOWN | STACK),
    "schedule.interval": Key(STEPS, SHOWN | STACK),
    "schedule.factor": Key(FACTOR, SHOWN | STACK),
    "schedule.*": Key(POSITIVE, SHOWN | STACK),
    "beta_schedule.rate": Key(_between(0, 1e3), SHOWN | STACK),
    "beta_schedule.steps": Key(STEPS, SHOWN | STACK),
    "beta_schedule.interval": Key(STEPS, SHOWN | STACK),
    "beta_schedule.factor": Key(FACTOR, SHOWN | STACK),
    "beta_schedule.*": Key(WEIGHT, SHOWN | STACK),
    # the optimizer
    "optimizer.lr": Key(LEARNING_RATE, SHOWN | STACK),
    "optimizer.momentum": Key(FRACTION),
    "optimizer.weight_decay": Key(WEIGHT, SHOWN),
    "optimizer.betas": Key(BETAS),
    "optimizer.alpha": Key(FRACTION),
    "optimizer.fused": Key(FLAG),
    "optimizer_groups.*.lr": Key(_optional(LEARNING_RATE), SHOWN),
    "optimizer_groups.*.weight_decay": Key(_optional(WEIGHT), SHOWN),
    "lr_scheduler.interval": Key(_one_of("epoch", "step")),
    "lr_scheduler.frequency": Key(STEPS),
    "lr_scheduler.monitor": Key(_optional(TEXT)),
    "lr_scheduler.scheduler.step_size": Key(STEPS, SHOWN),
    "lr_scheduler.scheduler.T_max": Key(STEPS, SHOWN),
    "lr_scheduler.scheduler.patience": Key(STEPS_OR_ZERO, SHOWN),
    "lr_scheduler.scheduler.gamma": Key(POSITIVE, SHOWN),
    "lr_scheduler.scheduler.factor": Key(POSITIVE, SHOWN),
    "lr_scheduler.scheduler.eta_min": Key(WEIGHT, SHOWN),
    "lr_scheduler.scheduler.schedule.start": Key(_optional(FRACTION), SHOWN),
    "lr_scheduler.scheduler.schedule.steps": Key(STEPS, SHOWN),
    "lr_scheduler.scheduler.schedule.then.steps": Key(STEPS, SHOWN),
    "lr_scheduler.scheduler.schedule.then.*": Key(WEIGHT, SHOWN),
    "lr_scheduler.scheduler*": Key(None, SHOWN),
    # Lightning
    "accelerator.accelerator": Key(_one_of("cpu", "gpu", "cuda", "mps", "auto"), AUDIT),
    "accelerator.devices": Key(_whole(1, 1024), AUDIT),
    "accelerator.strategy": Key(TEXT, AUDIT),
    "trainer.max_epochs": Key(STEPS, RESUME | SHOWN),
    "trainer.max_steps": Key(
        Rule(lambda v: STEPS.holds(v) or (_integer(v) and v == -1), f"{STEPS.wanted}, or -1"),
    ),
    "trainer.precision": Key(
        Rule(lambda v: str(v) in PRECISIONS, "one of 32-true, bf16-mixed, 16-mixed, bf16-true, 16-true, 64-true"),
    ),
    "trainer.gradient_clip_val": Key(_optional(POSITIVE)),
    "trainer.accumulate_grad_batches": Key(SIZE),
    "trainer.limit_*_batches": Key(PART),
    "trainer.check_val_every_n_epoch": Key(STEPS),
    "trainer.log_every_n_steps": Key(STEPS, RESUME),
    "trainer.deterministic": Key(FLAG),
    "callbacks.*.patience": Key(STEPS_OR_ZERO),
    "callbacks.*.min_delta": Key(WEIGHT),
    "callbacks.*.decay": Key(FRACTION),
    "callbacks.*.start_epoch": Key(STEPS_OR_ZERO),
    "callbacks.*_threshold": Key(_optional(_between(-1e30, 1e30))),
    "callbacks.*.max_depth": Key(_whole(-1, 100)),
    "callbacks*": Key(None),
    "logger": Key(None, RESUME | REPRODUCE | INCIDENTAL),  # the group's choice
    "logger.*": Key(None, INCIDENTAL),
    "paths.*": Key(TEXT, INCIDENTAL | AUDIT | FOLDER | JOB),
    "compatible_latents": Key(NAMES),
    # what users add, where the library itself would find a mistake late or never
    "optimizer.eps": Key(FRACTION),
    "optimizer.dampening": Key(FRACTION),
    "trainer.val_check_interval": Key(PART),
    "trainer.min_epochs": Key(_optional(STEPS)),
    "trainer.min_steps": Key(_optional(STEPS)),
    "trainer.max_time": Key(DURATION),
    "trainer.detect_anomaly": Key(FLAG),
    "trainer.inference_mode": Key(FLAG),
    "trainer.benchmark": Key(_optional(FLAG)),
    # what is measured, drawn and kept
    "figures": Key(FLAG, RESUME | REPRODUCE | INCIDENTAL | AUDIT),
    "figures_every_n_epochs": Key(_optional(STEPS), RESUME | INCIDENTAL),
    "projector": Key(FLAG, RESUME | INCIDENTAL),
    "compile": Key(FLAG),
    "stack": Key(_optional(_whole(1, 10**4)), INCIDENTAL),
    "evaluation.samples": Key(_optional(_whole(1, 10**7)), RESUME | INCIDENTAL),
    "evaluation.images": Key(_optional(SIZE), RESUME | INCIDENTAL),
    "checkpoint.every_n_steps": Key(_optional(STEPS), RESUME | INCIDENTAL),
    "audit": Key(TEXT, AUDIT),
    "audit.estimators": Key(_optional(NAMES), AUDIT),
    "audit.samples": Key(_whole(40, 10**7), AUDIT),
    "audit.every_n_steps": Key(_optional(STEPS), AUDIT),
    "audit.batch": Key(_whole(1, 10**4), AUDIT),
    "audit.warmup": Key(_whole(0, 10**6), AUDIT),
    "audit.max_states": Key(SIZE, AUDIT),
    "audit.reference_error": Key(POSITIVE, AUDIT),
    "audit.reference_draws": Key(SIZE, AUDIT),
    "audit.temperatures": Key(
        _list_of(POSITIVE, "a list of numbers from 1e-06 to 1e+06"),
        AUDIT,
    ),
}
"""Dotted path, or a pattern for several -> its row; the first that matches counts."""

LATER: dict[str, Any] = {
    "init_from": None,
    "prior._target_": "vi_lab.priors.Fixed",
    "beta_schedule._target_": None,
    "network.center": False,
    "network.output_bias": False,
    **{f"optimizer_groups.{part}.{key}": None for part in ("prior", "baseline", "control_variate")
       for key in ("lr", "weight_decay")},
    "trainer.accumulate_grad_batches": 1,
}  # fmt: skip
"""Keys that configs of older run folders lack -> the value that stands for what was done then."""

_ONE_LAYER: dict[str, Any] = {"layers": 1, "hidden": [], "activation": "tanh"}
LATER_OF_LATENTS: dict[str, dict[str, Any]] = {
    "vi_lab.latents.Categorical": {**_ONE_LAYER, "embedding": "one_hot"},
    "vi_lab.latents.Bernoulli": {**_ONE_LAYER, "values": "bits"},
}
"""Likewise, by the latent's `_target_`."""

OPEN = ("trainer", "optimizer", "lr_scheduler", "callbacks", "logger", "hydra")
"""Nodes to which `+NODE.KEY=VALUE` may add: they reach constructors of other libraries."""

MAY_BE_EMPTY = ("logger", "callbacks")
"""Groups of which a run may have none."""

BRINGING = ("experiment", "problem", "size")
"""Groups without a node: their files choose from other groups and set values."""

INNER = ("_target_", "_partial_", "compatible_latents", "model", "hydra")
"""Keys that are not for users to set."""


@cache
def row(path: str) -> Key | None:
    """The row of a key; None for `_target_` and its like, and for most keys that users add to the `OPEN` nodes."""
    if path.rpartition(".")[2].startswith("_"):
        return None
    return next((key for pattern, key in KEYS.items() if fnmatchcase(path, pattern)), None)


@cache
def marked(mark: Mark) -> tuple[str, ...]:
    """The keys that carry a mark, or one of several, in the order of `KEYS`."""
    return tuple(pattern for pattern, key in KEYS.items() if mark & key.marks)


def has(path: str, mark: Mark) -> bool:
    """Whether a key carries a mark, or one of several."""
    key = row(path)
    return key is not None and bool(mark & key.marks)


# --- checking --------------------------------------------------------------------------------------------------------


def modernize(values: dict) -> dict:
    """A stored config with the keys of `LATER` that it lacks; changed in place. What is no mapping is left as it is."""
    for path, value in LATER.items():
        *nodes, key = path.split(".")
        node: Any = values
        for name in nodes:
            # a group that was there is not made up: its absence is for `vi_lab.runs.trust` to tell
            node = node.get(name) if name in ("network", "trainer") else node.setdefault(name, {})
            if not isinstance(node, dict):
                break
        else:
            node.setdefault(key, value)
    if isinstance(latent := values.get("latent"), dict) and isinstance(target := latent.get("_target_"), str):
        values["latent"] = {**LATER_OF_LATENTS.get(target, {}), **latent}
    return values


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in nested mappings."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


_WORDS = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def _same_type(value: Any, shipped: Any) -> bool:
    if value is None or shipped is None:
        return True  # null stands for any type; the rows say where null is not accepted
    if isinstance(shipped, bool) or isinstance(value, bool):
        return isinstance(shipped, bool) and isinstance(value, bool)
    if isinstance(shipped, (int, float)):
        return isinstance(value, (int, float))
    return isinstance(value, type(shipped))


def nearest(name: str, names: list[str]) -> str:
    """The hint "; did you mean NAME?", or nothing."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check_keys(node: Any, keys: Collection[str], where: str) -> None:
    """Refuse what is no mapping, or has other keys.

    Args:
        where: begins the message.

    Raises:
        UserError: names the first one.
    """
    if not isinstance(node, dict):
        raise UserError(f"{where}: wanted a mapping, got {type(node).__name__}")
    if unknown := [str(key) for key in node if key not in keys]:
        raise UserError(f"{where}: no such key as {unknown[0]}{nearest(unknown[0], [*keys])}")


def _show(value: Any) -> str:
    return "null" if value is None else repr(value)


def check_range(path: str, value: Any) -> bool:
    """Check a value against its row; False where that has no rule.

    Raises:
        UserError: it is out of range.
    """
    key = row(path)
    if key is None or key.rule is None:
        return False
    if not key.rule.holds(value):
        raise UserError(f"{path}={_show(value)}: wanted {key.rule.wanted}")
    return True


def check(values: dict, shipped: dict) -> None:
    """Check a resolved config against what the chosen groups ship and against `KEYS`.

    Raises:
        UserError: an unknown or missing key, a wrong type, a value out of range, or parts that don't fit each other.
    """
    known, found = dict(leaves(shipped)), dict(leaves(values))
    for path, value in found.items():
        node, _, key = path.rpartition(".")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not abs(number) < LARGEST:
                raise UserError(f"{path}={_show(value)}: wanted numbers that float32 can hold")
        if path not in known:
            if path.split(".")[0] in OPEN:
                check_range(path, value)
                continue
            if any(p.startswith(f"{path}.") for p in known):
                raise UserError(f"{path}={_show(value)}: wanted a mapping")
            prefix = f"{node}." if node else ""
            keys = {p.removeprefix(prefix).split(".")[0] for p in known if p.startswith(prefix)}
            siblings = sorted(keys.difference(INNER))
            where = f"{node} has no key {key}" if node else f"there is no key {key}"
            raise UserError(f"{where}{nearest(key, siblings)} (keys: {', '.join(siblings) or 'none'})")
        if check_range(path, value):
            continue
        if not _same_type(value, known[path]) or (value is None and known[path] is not None):
            raise UserError(f"{path}={_show(value)}: wanted {_WORDS.get(type(known[path]), 'another type')}")
    nodes = {node for path in found for node in _path_to(path)}
    for path in known:
        way = _path_to(path)
        if way[0] not in MAY_BE_EMPTY and not any(node in found for node in way):
            gone = next((node for node in way if node not in nodes), None)
            if gone is None:  # there are keys below it
                raise UserError(f"{path}: wanted a value, and no mapping")
            raise UserError(f"{gone} is missing, which is needed; leave out ~{gone}")
    if "estimator" in values:
        check_parts(values)


def _path_to(path: str) -> list[str]:
    """The nodes on the way to a key, and the key: a, a.b, a.b.c."""
    return list(accumulate(path.split("."), "{}.{}".format))


SOURCES = (
    *("mnist", "fashion_mnist", "kmnist", "digits", "binarized_mnist", "omniglot", "cifar10", "svhn"),
    *("folder", "arrays"),
)
"""The shipped data sets, and the kinds of files of one's own."""

OWN_FILES = ("folder", "arrays")
"""Of these, `data.root` says which data they are."""


_DISCRETE = ("categorical", "bernoulli", "vq")
PRIORS = {
    "Factorized": _DISCRETE,
    "Autoregressive": _DISCRETE,
    "Mixture": ("gaussian",),
    "VampPrior": ("gaussian",),
}
"""The shipped priors that do not go with every latent, and the latents that they go with."""


WATCHABLE = tuple(f"{split}/{name}" for split in ("val", "test") for name in ("loss", "reconstruction", "kl"))
"""The metrics that Lightning's callbacks are given."""


def latent_kind(values: dict) -> str | None:
    """The name by which estimators know the config's latent; None where it is a class of the user's own, which shows
    what it fits when the model is built."""
    module, _, name = values["latent"]["_target_"].rpartition(".")
    return name.lower() if module == "vi_lab.latents" else None


def _watched(values: dict) -> Iterator[tuple[str, Any]]:
    """The metrics that callbacks and the learning-rate schedule look at, with their keys."""
    for path, value in leaves(values.get("callbacks") or {}, "callbacks"):
        if path.endswith(".monitor"):
            yield path, value
    schedule = values["lr_scheduler"]
    if isinstance(schedule.get("scheduler"), dict) and "Plateau" in str(schedule["scheduler"].get("_target_")):
        yield "lr_scheduler.monitor", schedule.get("monitor")


def holds_out(data: Any) -> bool:
    """Whether images are held out, by the node `data` of a config."""
    return bool(data["validation"] or data.get("folds"))


def check_parts(values: dict) -> None:
    """Refuse parts that do not fit each other: an estimator and a latent, an objective, a schedule.

    Raises:
        UserError: says what would fit.
    """
    data, estimator, latent = values["data"], values["estimator"], values["latent"]
    if data["_target_"] == "vi_lab.data.MNISTDataModule" and data["source"] not in SOURCES:
        raise UserError(f"data.source={_show(data['source'])}: wanted one of {', '.join(SOURCES)}")
    folds, fold = data.get("folds"), data.get("fold", 0)
    if fold and not (folds and fold < folds):
        wanted = f"0 to {folds - 1}, as data.folds={folds}" if folds else "data.folds=K with it"
        raise UserError(f"data.fold={fold}: wanted {wanted}")
    for path, metric in _watched(values):
        split = str(metric).partition("/")[0]
        if split == "val" and not holds_out(data):
            raise UserError(f"{path}={metric}: nothing is held out (data.validation=0)")
        if split == "test" and not data["test_every_epoch"]:
            raise UserError(f"{path}={metric}: wanted a metric of every epoch; data.test_every_epoch=true makes it one")
        if metric not in WATCHABLE and values["model"]["_target_"].startswith("vi_lab."):
            raise UserError(f"{path}={_show(metric)}: wanted one of {', '.join(WATCHABLE)}")
    kind, accepted = latent_kind(values), values["compatible_latents"]
    if kind is not None and kind not in accepted:
        raise UserError(
            f"estimator {values['name']} does not work with a {kind} latent; leave latent= out or use "
            + " or ".join(f"latent={name}" for name in accepted)
        )
    prior = values["prior"]["_target_"].rpartition(".")[2] if values["prior"]["_target_"].startswith("vi_lab.") else ""
    if kind is not None and kind not in PRIORS.get(prior, (kind,)):
        fitting = " or ".join(f"latent={name}" for name in PRIORS[prior])
        raise UserError(f"prior {prior} does not work with a {kind} latent; leave prior= out or use {fitting}")
    if latent.get("hidden") and latent.get("layers", 1) == 1:
        raise UserError(
            f"latent.hidden={latent['hidden']}: is of the networks between stochastic layers, of which there is one; "
            "use network.encoder.hidden and network.decoder.hidden, or latent.layers=2"
        )
    if latent.get("layers", 1) > 1:
        for path, is_so in {
            "audit.every_n_steps": values["audit"]["every_n_steps"] is not None,
            "stack": values["stack"] is not None,
            "the audit": "estimators" in values["audit"],
        }.items():
            if is_so:
                raise UserError(f"{path}: knows models of one stochastic layer; got latent.layers={latent['layers']}")
    seen = latent.get("embedding", "one_hot")
    if estimator.get("embedding", seen) != seen and kind == "categorical":
        raise UserError(f"estimator.embedding={estimator['embedding']}: wanted that of latent.embedding={seen}")
    objective, schedule = (values.get(key, {}).get("_target_", "") for key in ("objective", "schedule"))
    if objective.endswith(".RelaxedELBO") and "prior_temperature" not in estimator:
        raise UserError(f"objective=relaxed needs estimator=concrete, not {values['name']}; leave objective= out")
    if objective.endswith(".RelaxedELBO") and prior == "Autoregressive":
        raise UserError("objective=relaxed needs a prior that can be relaxed: use prior=fixed or prior=factorized")
    if estimator.get("learn_temperature") and schedule.rpartition(".")[2] not in ("", "Constant"):
        raise UserError("estimator.learn_temperature=true leaves nothing to a schedule; leave schedule= out")
    for name, of in (("schedule", "temperature"), ("beta_schedule", "beta_schedule.start")):
        plan = values.get(name, {})
        start = plan.get("start")
        if start is not None and plan.get("floor", -1) >= start:
            raise UserError(f"{name}.floor={plan['floor']}: wanted below the start, {of}={start}")
        if start is not None and plan.get("end") == start:
            raise UserError(f"{name}.end={start}: the schedule cannot move from {of}={start}")
    if values.get("beta_schedule", {}).get("_target_") and "beta" in estimator:
        raise UserError(
            f"beta_schedule: estimator {values['name']} depends on one beta, estimator.beta={estimator['beta']}, "
            "throughout; leave beta_schedule= out"
        )
    epochs = values["trainer"].get("max_epochs")
    callbacks = values.get("callbacks") or {}
    averages = [n for n, node in callbacks.items() if str((node or {}).get("_target_")).endswith("WeightAveraging")]
    if len(averages) > 1:
        raise UserError(
            f"callbacks={averages}: both put averaged weights in place of the trained ones; choose one".replace("'", "")
        )
    for path, value in leaves(callbacks, "callbacks"):
        if path.endswith(".start_epoch") and _number(value) and _number(epochs) and value >= epochs:
            raise UserError(f"{path}={value}: wanted less than trainer.max_epochs={epochs}, or nothing is averaged")
    if "max_states" in estimator and kind is not None:
        states = latent.get("classes", 2) ** (latent["variables"] * latent.get("layers", 1))
        if states > estimator["max_states"]:
            shown = f"{states:.3g}" if states < LARGEST else f"2^{states.bit_length() - 1} or more"
            raise UserError(
                f"estimator {values['name']} sums over all states: this latent has {shown}, more than "
                f"estimator.max_states={estimator['max_states']}; use a smaller latent, such as latent=1x10 or 2x10"
            )
