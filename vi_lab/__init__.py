"""vi_lab: a laboratory for variational inference with continuous and discrete latent variables.

Importing the package imports nothing heavy; its parts come when they are asked for. `vi_lab.estimators`,
`vi_lab.latents`, `vi_lab.objectives`, `vi_lab.evaluation`, `vi_lab.audit` and the rest of the mathematics are plain
PyTorch and work in a notebook, `vi_lab.models` are LightningModules, `vi_lab.cli` is the command.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vi_lab.version import __version__

if TYPE_CHECKING:
    from vi_lab import (
        audit,
        data,
        distributions,
        estimators,
        evaluation,
        latents,
        likelihoods,
        models,
        networks,
        noise,
        objectives,
        problems,
        schedules,
        seeding,
    )
    from vi_lab.runs import Run, find_runs, load_run

_RUNS = ("Run", "find_runs", "load_run")
__all__ = [
    "Run",
    "__version__",
    "audit",
    "data",
    "distributions",
    "estimators",
    "evaluation",
    "find_runs",
    "latents",
    "likelihoods",
    "load_run",
    "models",
    "networks",
    "noise",
    "objectives",
    "problems",
    "schedules",
    "seeding",
]


def __getattr__(name: str) -> Any:
    if name in _RUNS:
        return getattr(importlib.import_module("vi_lab.runs"), name)
    if name in __all__:
        return importlib.import_module(f"vi_lab.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
