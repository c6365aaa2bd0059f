"""Whether a checkpoint is one that this very run would write, before anything of it is put to use.

Lightning and torch believe a checkpoint: an optimizer's state of another shape ends the process, a word where a number
should stand raises whatever comes of it. So it is held against an example: what the trainer would save now.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from vi_lab.errors import ViLabError, one_line
from vi_lab.models import VAE
from vi_lab.runs.run import check_weights

MOST_VALUES = 10_000_000
"""Plain values in a checkpoint, counted each time that they are met: few bytes can name one list many times."""
LARGEST_COUNT = 2**53


class _Misfit(Exception):
    pass


def check_fit(checkpoint: dict[str, Any], trainer: lightning.Trainer, model: VAE) -> None:
    """Refuse a checkpoint that is not of this run. Loads its weights into the model.

    Raises:
        ViLabError: names the first thing that does not fit.
    """
    check_weights(model, checkpoint)
    with suppress(KeyError, TypeError, AttributeError):  # which the comparison tells
        checkpoint["callbacks"]["Recorder"].setdefault("audited", {})  # older checkpoints have none
    budget = iter(range(MOST_VALUES))
    try:
        for name, example in _example(trainer, model).items():
            if name not in checkpoint:
                raise _Misfit(f"it lacks {name}")
            _compare(checkpoint[name], example, name, budget)
        _check_version(checkpoint.get("pytorch-lightning_version"))
        _check_rows(checkpoint)
    except _Misfit as error:
        raise ViLabError(f"not a checkpoint of this run: {one_line(error)[:300]}") from None


def _example(trainer: lightning.Trainer, model: VAE) -> dict[str, Any]:
    """What the trainer would save."""
    configured: Any = model.configure_optimizers()
    several = isinstance(configured, dict)
    optimizer = configured["optimizer"] if several else configured
    schedulers = [configured["lr_scheduler"]["scheduler"]] if several else []
    written: dict[str, Any] = {}
    model.on_save_checkpoint(written)
    loops = {
        "fit_loop": {**trainer.fit_loop.state_dict(), "state_dict": {"combined_loader": [{"next_batch": 0}]}},
        "validate_loop": trainer.validate_loop.state_dict(),
        "test_loop": trainer.test_loop.state_dict(),
        "predict_loop": trainer.predict_loop.state_dict(),
    }
    states = {one.state_key: state for one in trainer.callbacks if (state := one.state_dict())}  # type: ignore[attr-defined]
    scaler = trainer.precision_plugin.state_dict()
    return {
        "loops": _Counts(loops),
        "callbacks": states,
        "optimizer_states": [_Optimizer(optimizer, _stepped(model, optimizer))],
        "lr_schedulers": [scheduler.state_dict() for scheduler in schedulers],
        "means": written["means"],
        **({type(trainer.precision_plugin).__qualname__: scaler} if scaler else {}),
        "epoch": _Counts(0),
        "global_step": _Counts(0),
    }


class _Counts:
    """An example in which every number counts something."""

    def __init__(self, example: Any) -> None:
        self.example = example


class _Optimizer:
    """An example of an optimizer's state: its groups, and what it keeps for each parameter after a step."""

    def __init__(self, optimizer: torch.optim.Optimizer, stepped: dict[int, dict] | None) -> None:
        self.groups, self.stepped = optimizer.state_dict()["param_groups"], stepped


def _stepped(model: VAE, configured: torch.optim.Optimizer) -> dict[int, dict] | None:
    """What the optimizer keeps for each parameter; None where it does not step without a closure that learns."""
    learned = (parameter for group in configured.param_groups for parameter in group["params"])
    parameters = [nn.Parameter(torch.zeros_like(parameter)) for parameter in learned]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    if model.optimizer is None:
        return None
    optimizer = model.optimizer(parameters)
    if isinstance(optimizer, torch.optim.LBFGS):
        return None
    optimizer.step()
    return optimizer.state_dict()["state"]


def _numbers(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _compare(value: Any, example: Any, path: str, budget: Iterator[int], counts: bool = False) -> None:
    """Raise `_Misfit` where a value is of another kind than its example; an empty example stands for plain values."""
    if next(budget, None) is None:
        raise _Misfit("it holds too many values")
    if path.count("/") > 20:
        raise _Misfit(f"{path}: nested too deep")
    if isinstance(example, _Counts):
        _compare(value, example.example, path, budget, counts=True)
    elif isinstance(example, _Optimizer):
        _compare_optimizer(value, example, path, budget)
    elif isinstance(example, Tensor):
        if not _same_kind(value, example):
            raise _Misfit(f"{path}: wanted a tensor {tuple(example.shape)}, got {_shown(value)}")
    elif isinstance(example, dict) and example:
        if not isinstance(value, dict) or value.keys() != example.keys():
            raise _Misfit(f"{path}: wanted {', '.join(map(str, example))}, got {_shown(value)}")
        for key, inner in example.items():
            _compare(value[key], inner, f"{path}/{key}", budget, counts)
    elif isinstance(example, (list, tuple)) and example:
        if type(value) is not type(example) or len(value) != len(example):
            raise _Misfit(f"{path}: wanted {len(example)} values, got {_shown(value)}")
        for index, inner in enumerate(example):
            _compare(value[index], inner, f"{path}/{index}", budget, counts)
    elif example is None or isinstance(example, (dict, list, tuple)):
        if example is not None and not isinstance(value, type(example)):
            raise _Misfit(f"{path}: wanted a {type(example).__name__}, got {_shown(value)}")
        _compare_plain(value, path, budget, counts)
    elif isinstance(example, (bool, str)):
        if type(value) is not type(example) or (isinstance(value, str) and len(value) > 1000):
            raise _Misfit(f"{path}: wanted a {type(example).__name__}, got {_shown(value)}")
    elif not _numbers(value) or (counts and isinstance(value, float)):
        raise _Misfit(f"{path}: wanted a number such as {example!r}, got {_shown(value)}")
    else:
        _compare_plain(value, path, budget, counts)


def _compare_plain(value: Any, path: str, budget: Iterator[int], counts: bool) -> None:
    """Whatever there is no example of."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _compare(key, None, f"{path}/a key", budget)
            _compare(inner, None, f"{path}/{_shown(key)}", budget, counts)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _compare(inner, None, f"{path}/*", budget, counts)
    elif isinstance(value, int) and not (-(not counts) * LARGEST_COUNT <= value <= LARGEST_COUNT):
        raise _Misfit(f"{path}: wanted a {'count' if counts else 'number of fewer digits'}")
    elif isinstance(value, str) and len(value) > 1000:
        raise _Misfit(f"{path}: a text of {len(value)} characters")


def _compare_optimizer(value: Any, example: _Optimizer, path: str, budget: Iterator[int]) -> None:
    if not isinstance(value, dict) or value.keys() != {"state", "param_groups"} or not isinstance(value["state"], dict):
        raise _Misfit(f"{path}: wanted state and param_groups, got {_shown(value)}")
    _compare(value["param_groups"], example.groups, f"{path}/param_groups", budget)
    for index, (group, own) in enumerate(zip(value["param_groups"], example.groups, strict=True)):
        for key, inner in own.items():
            fixed = key == "params" or not isinstance(inner, (int, float, list, tuple)) or isinstance(inner, bool)
            if fixed and group[key] != inner:  # which way the optimizer works
                raise _Misfit(f"{path}/param_groups/{index}/{key}: wanted {inner}, got {_shown(group[key])}")
            if not fixed and not all(map(_finite, group[key] if isinstance(inner, (list, tuple)) else [group[key]])):
                raise _Misfit(f"{path}/param_groups/{index}/{key}: wanted finite numbers, got {_shown(group[key])}")
    for number, state in value["state"].items():
        where = f"{path}/state/{_shown(number)}"
        if example.stepped is None:
            _compare(state, None, where, budget)
        elif type(number) is not int or number not in example.stepped:
            raise _Misfit(f"{where}: there is no such parameter")
        else:
            _compare(state, example.stepped[number], where, budget)


def _finite(value: Any) -> bool:
    return _numbers(value) and math.isfinite(value)


def _same_kind(value: Any, example: Tensor) -> bool:
    """Whether a tensor can stand for another: precision aside, which the run converts."""
    if not isinstance(value, Tensor) or value.shape != example.shape:
        return False
    return value.dtype == example.dtype or (value.is_floating_point() and example.is_floating_point())


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_COUNT:
        return "a huge number"
    return repr(value)[:60]


def _check_version(version: Any) -> None:
    """Lightning converts checkpoints of other versions by theirs."""
    if not isinstance(version, str) or not re.fullmatch(r"2\.\d{1,3}(\.\w{1,9})*", version, re.ASCII):
        raise _Misfit(f"pytorch-lightning_version: wanted one of 2.*, got {_shown(version)}")


def _check_rows(checkpoint: dict[str, Any]) -> None:
    """The tables of the epochs: numbers under printable names, for as many epochs as were trained."""
    recorder = checkpoint["callbacks"].get("Recorder", {"rows": [], "timing": [], "audited": {}})
    fit = checkpoint["loops"]["fit_loop"]
    epochs = fit["epoch_progress"]["current"]["processed"]
    for name, needed in (("rows", ("epoch", "step")), ("timing", ("epoch", "step", "seconds"))):
        for index, row in enumerate(recorder[name]):
            where = f"callbacks/Recorder/{name}/{index}"
            if not isinstance(row, dict) or any(key not in row for key in needed):
                raise _Misfit(f"{where}: wanted {', '.join(needed)}, got {_shown(row)}")
            for key, value in row.items():
                if not isinstance(key, str) or not key.isprintable() or not _finite(value):
                    raise _Misfit(f"{where}/{_shown(key)}: wanted a finite number under a name, got {_shown(value)}")
        if len(recorder[name]) < epochs:
            raise _Misfit(f"callbacks/Recorder/{name}: {len(recorder[name])} epochs, where {epochs} were trained")
    for key, value in recorder["audited"].items():
        if not isinstance(key, str) or not key.startswith("audit/") or not key.isprintable() or not _finite(value):
            raise _Misfit(f"callbacks/Recorder/audited/{_shown(key)}: wanted a finite number, got {_shown(value)}")
    for name, means in checkpoint["means"].items():
        names, total, weight = (means.get(key) for key in ("names", "total", "weight"))
        shape = (len(names),)
        sums = isinstance(total, Tensor) and total.shape == shape and total.is_floating_point() and weight > 0
        if not all(isinstance(one, str) for one in names) or not (sums or (total is None and weight == 0)):
            raise _Misfit(f"means/{name}: wanted a number for each name")
