"""vi_lab: a laboratory for variational inference with continuous and discrete latent variables.

Importing the package imports nothing heavy; `vi_lab.estimators`, `vi_lab.latents`, `vi_lab.objectives` and the
rest are plain PyTorch and work in a notebook, `vi_lab.models` are LightningModules, `vi_lab.cli` is the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vi_lab.runs import Run, find_runs, load_run

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "find_runs", "load_run"]


def __getattr__(name: str) -> Any:
    if name in ("Run", "find_runs", "load_run"):
        from vi_lab import runs  # only when it is asked for: the package itself imports nothing

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
