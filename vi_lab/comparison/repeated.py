"""What there is of published rows in a sweep of `vi-lab verify`: our runs, and of each cell our number. From files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from glob import escape
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from vi_lab.errors import ViLabError, printable
from vi_lab.published import Cell, Row
from vi_lab.runs.files import AUDIT_FILE, CONFIG_FILE
from vi_lab.runs.jobs import settings_of
from vi_lab.runs.run import Run, rows_of
from vi_lab.runs.trust import read_json, read_yaml
from vi_lab.schema import INCIDENTAL, has

DIFFER = ("seed", "data.seed", "trainer.max_epochs")
"""In which the runs of a row differ."""


class Found(NamedTuple):
    """A run of a row that is there."""

    folder: Path
    seed: int
    epochs: int
    """That are written."""
    wanted: int
    """That it is to have."""
    state: str
    """As of `vi_lab.runs.run.Run`."""
    history: dict[float, dict[str, float]]
    final: dict[str, float]
    audit: dict[str, Any]
    """What one that has ended has written."""

    @property
    def diverged(self) -> bool:
        """Whether it has ended as its loss was no number any more."""
        return self.state == "failed" and str(Run(self.folder).status.get("reason")).startswith("the loss became")

    @property
    def complete(self) -> bool:
        """Whether it has ended well."""
        return self.state == "completed"


def prefix(row: Row) -> str:
    """How the names of the folders of a row's runs begin."""
    return f"{row.source}-{row.name}"


def find(sweep: Path, row: Row, config: dict) -> list[Found]:
    """The runs of a row that are there, whatever their state.

    Args:
        sweep: the folder that holds them.
        config: of one of them.
    """
    wanted = _same(config)
    runs = []
    folders = sorted(sweep.glob(f"{escape(prefix(row))}-s*"))
    for folder in (folder for folder in folders if not folder.is_symlink()):  # which would lead elsewhere
        with suppress(ViLabError, ValueError, KeyError, TypeError):
            stored = read_yaml(folder, CONFIG_FILE)
            if _same(stored) != wanted:
                continue
            if row.command == "audit":
                audit = _audited(folder)
                state = "completed" if audit else "unknown"
                runs.append(Found(folder, int(stored["seed"]), 0, 0, state, {}, {}, audit))
                continue
            run = Run(folder)
            history = {}
            with suppress(ViLabError):
                history = rows_of(run, "metrics.csv")
            epochs, most = int(max(history, default=0)), int(stored["trainer"]["max_epochs"])
            runs.append(Found(folder, int(stored["seed"]), epochs, most, run.state, history, run.final, {}))
    return runs


def values(row: Row, cell: Cell, runs: Sequence[Found]) -> dict[int, tuple[float, Path]]:
    """Of each seed what a cell is in our runs, and in which. NaN where a run should have the number and has none, as
    one whose loss has become infinite: it does not count less for that."""
    known = row.command == "audit" or any(cell.metric in {**run.final, **last(run)} for run in runs)
    found: dict[int, tuple[float, Path]] = {}
    for run in sorted(runs, key=lambda run: run.epochs) if known else ():
        if row.command == "audit":
            value = _of_audit(run.audit, cell)
        elif cell.epoch is not None and cell.epoch in run.history:
            value = run.history[cell.epoch].get(cell.metric, nan)
        elif cell.epoch is None and run.complete and run.wanted == row.epochs:
            value = run.final.get(cell.metric, nan)
        else:
            value = nan if run.diverged else None
        if value is not None:
            found[run.seed] = (float(value), run.folder)
    return found


def last(run: Found) -> dict[str, float]:
    """What a run knows of its last epoch."""
    return run.history[max(run.history)] if run.history else {}


def _same(config: dict) -> dict[str, str]:
    """What the runs of a row share: all that makes an experiment what it is, and how it is evaluated; neither the seed
    nor how long it trains, nor on what."""
    return {
        key: str(value)
        for key, value in settings_of(config).items()
        if value is not None
        and (key.startswith("evaluation.") or not has(key, INCIDENTAL))
        and not key.startswith("accelerator.")
        and key not in DIFFER
    }


def _audited(folder: Path) -> dict[str, Any]:
    """audit.json of a folder whose audit has ended; otherwise empty."""
    content = read_json(folder, AUDIT_FILE)
    return content if content.get("estimators") and not content.get("interrupted") else {}


def _of_audit(content: dict[str, Any], cell: Cell) -> float | None:
    """A cell in what an audit has written."""
    number = _measured(content, cell, cell.estimator)
    if cell.minus is None or number is None:
        return number
    other = _measured(content, cell, cell.minus)
    return None if other is None else number - other


def _measured(content: dict[str, Any], cell: Cell, estimator: str | None) -> float | None:
    temperature = cell.temperature
    for row in content.get("estimators" if temperature is None else "temperatures") or []:
        same = row.get("estimator") == estimator and row.get("group", "logits") == "logits"
        if same and (temperature is None or abs(row.get("temperature", 0.0) - temperature) <= 1e-9 * temperature):
            number = row.get(cell.metric)
            return float(number) if isinstance(number, (int, float)) else nan
    return None


def made_with(folders: Iterable[Path]) -> tuple[float, dict[str, list[str]]]:
    """Seconds of processor time in some run folders, and what they were made with."""
    total = 0.0
    found: dict[str, dict[str, None]] = {
        key: {} for key in ("processor", "cpu_count", "device", "vi_lab", "git_commit")
    }
    for folder in sorted(folders):
        run = Run(folder)
        seconds = run.status.get("seconds")
        with suppress(ViLabError):
            total += sum(row.get("seconds", 0.0) for row in rows_of(run, "timing.csv").values())
            seconds = 0.0
        total += seconds if isinstance(seconds, (int, float)) else 0.0
        for key, texts in found.items():
            if (value := run.environment.get(key)) is not None:
                texts[printable(str(value))[:100]] = None
    return total, {key: [*texts] for key, texts in found.items()}
