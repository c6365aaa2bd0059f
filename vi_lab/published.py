"""Published numbers as data: the files `configs/published/*.yaml`, a source each, read and checked. Needs no torch.

A source has rows, a row is one set-up of `vi-lab train` (or of `vi-lab audit`) with the numbers that were published for
it: its cells. What the keys mean stands in docs/published.md. `vi-lab verify` trains them and compares.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from vi_lab.errors import UserError, one_line
from vi_lab.schema import CONFIG_DIR, check_keys

FOLDER = "published"
"""Below a folder of configs."""
PROVENANCES = {
    "read": "read in the paper",
    "computed": "computed from logs that the authors committed",
    "figure": "read off a figure",
    "quoted": "quoted by another source",
    "exact": "follows from a formula",
}
COMMANDS = ("train", "audit")
RUNS = 3
"""Of ours, where a row says nothing."""
MOST = {"runs": 1000, "seeds": 10**6, "searched": 10**6}
LARGEST = 1e100
"""Of published numbers; what is beyond is none."""


@dataclass(frozen=True)
class Cell:
    """One published number.

    Attributes:
        metric: as vi_lab names it; losses in nats.
        value: the middle of the range where one was read off a figure.
        half: half the width of that range, or half a unit of the last digit that was published; and the tolerance where
            one is given, as for what a source's float32 loses.
        sd: standard deviation over seeds; None where it is not known.
        epoch: after which; None: of the finished run.
        upper: whether it was published as a bound from above.
        estimator, temperature: of an audit.
        minus: of an audit, the estimator whose number is taken off: "A is below B" is a bound of 0 from above.
    """

    metric: str
    value: float
    half: float
    sd: float | None = None
    epoch: int | None = None
    upper: bool = False
    estimator: str | None = None
    temperature: float | None = None
    minus: str | None = None

    @property
    def label(self) -> str:
        """As "test/loss, epoch 5"."""
        minus = f"less {self.minus}" if self.minus else None
        who = [self.estimator, minus, None if self.temperature is None else f"at {self.temperature:g}"]
        what = f"{self.metric}" + (f", epoch {self.epoch}" if self.epoch is not None else "")
        return ": ".join(filter(None, [" ".join(filter(None, who)), what]))


@dataclass(frozen=True)
class Row:
    """One set-up, with the cells that were published for it.

    Attributes:
        source: the name of its file.
        settings: overrides of `command`.
        seeds: runs behind the published numbers; None: they are exact.
        searched: settings that were tried on the same seeds, of which the best was published.
        runs: of ours, unless the user says how many.
        seconds: of an epoch on one core, measured; of an audit: in all.
        epochs: of the source's whole run; None where it is not known.
        quick: the last epoch of `vi-lab verify --quick`; 0: none.
        unstated: what the source does not say; then nothing is decided.
        lacks: why vi_lab cannot run it; "" where it can.
    """

    source: str
    name: str
    command: str
    settings: tuple[str, ...]
    cells: tuple[Cell, ...]
    seeds: int | None
    searched: int = 1
    runs: int = RUNS
    seconds: float | None = None
    epochs: int | None = None
    quick: int = 0
    unstated: str = ""
    lacks: str = ""
    note: str = ""

    @property
    def label(self) -> str:
        """As wang_bui2026/reinmax-8x4."""
        return f"{self.source}/{self.name}"

    def last_epoch(self, cell: Cell) -> int | None:
        """How many epochs a cell needs; None where that is not known."""
        return self.epochs if cell.epoch is None else cell.epoch


@dataclass(frozen=True)
class Source:
    """A paper, or its code, with what was published there."""

    name: str
    paper: str
    where: str
    provenance: str
    set_up: str
    ours: str
    rows: tuple[Row, ...]


def sources(config_dir: str | None = None) -> list[Source]:
    """All that there are.

    Args:
        config_dir: of the user's own, which has a folder `published` too; a file there stands for the shipped one of
            its name.

    Raises:
        UserError: a file is damaged.
    """
    files = {file.stem: file for file in sorted((CONFIG_DIR / FOLDER).glob("*.yaml"))}
    if config_dir is not None:
        own = Path(config_dir) / FOLDER
        if not own.is_dir():
            raise UserError(f"--config-dir {config_dir}: no folder {FOLDER} in it")
        files |= {file.stem: file for file in sorted(own.glob("*.yaml"))}
    return [read(file) for file in files.values()]


KEYS = {"paper", "source", "provenance", "set_up", "ours", "command", "settings", "rows"}
SHARED = {"epochs", "seconds", "seeds", "searched", "runs", "quick", "unstated", "lacks", "note"}
"""What a row may have of its own, or its file for all."""
OF_CELL = {"metric", "value", "range", "sd", "tolerance", "epoch", "bound", "estimator", "minus", "temperature"}


def read(file: Path) -> Source:
    """Read a file of rows.

    Raises:
        UserError: it is damaged, or says something that nobody understands; says where.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)})") from error
    where = f"published/{file.name}"
    check_keys(values, KEYS | SHARED, where)
    if str(values.get("provenance")) not in PROVENANCES:
        raise UserError(f"{where}: provenance: wanted one of {', '.join(PROVENANCES)}, got {values.get('provenance')}")
    if str(values.get("command", "train")) not in COMMANDS:
        raise UserError(f"{where}: command: wanted train or audit, got {values['command']}")
    rows = values.get("rows")
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{where}: rows: wanted a mapping of names to rows")
    texts = [str(values.get(key) or "").strip() for key in ("paper", "source", "set_up", "ours")]
    paper, source, set_up, ours = texts
    made = tuple(_row(file.stem, str(name), row, values, f"{where}: {name}") for name, row in rows.items())
    return Source(file.stem, paper, source, values["provenance"], set_up, ours, made)


def _row(source: str, name: str, row: Any, shared: dict[str, Any], where: str) -> Row:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name, re.ASCII):
        raise UserError(f"{where}: wanted a name of letters, digits and ._-")
    check_keys(row, SHARED | {"settings", "values"}, where)
    own = {key: row.get(key, shared.get(key)) for key in SHARED}
    settings = [*_list(shared.get("settings"), where), *_list(row.get("settings"), where)]
    if not all(isinstance(word, str) and "=" in word for word in settings):
        raise UserError(f"{where}: settings: wanted overrides, such as [estimator=rloo]")
    if vain := [word for word in settings if word.lstrip("+").startswith(("seed=", "trainer.max_epochs="))]:
        raise UserError(f"{where}: settings: {vain[0]}: the seed and the epochs are those of the numbers; leave it out")
    cells = row.get("values")
    if not isinstance(cells, list) or not cells:
        raise UserError(f"{where}: values: wanted a list of published numbers")
    for key, least in (("epochs", 1), ("seeds", 1), ("searched", 1), ("runs", 1), ("quick", 0)):
        value = own[key]
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST.get(key, 10**9)
        if value is not None and not whole and (key, value) != ("seeds", "exact"):
            raise UserError(f"{where}: {key}: wanted a whole number from {least} on, got {value}")
    if own["seconds"] is not None and not _positive(own["seconds"]):
        raise UserError(f"{where}: seconds: wanted a number above 0, got {own['seconds']}")
    return Row(
        source,
        name,
        shared.get("command", "train"),
        tuple(settings),
        tuple(_cell(cell, own["seeds"] == "exact", f"{where}: values") for cell in cells),
        None if own["seeds"] == "exact" else own["seeds"] or 1,
        own["searched"] or 1,
        own["runs"] or RUNS,
        own["seconds"],
        own["epochs"],
        own["quick"] or 0,
        *(str(own[key] or "").strip() for key in ("unstated", "lacks", "note")),
    )


def _list(value: Any, where: str) -> list[Any]:
    if value is None or isinstance(value, list):
        return value or []
    raise UserError(f"{where}: settings: wanted a list of overrides, such as [estimator=rloo]")


def _positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _cell(cell: Any, exact: bool, where: str) -> Cell:
    check_keys(cell, OF_CELL, where)
    if not isinstance(cell.get("metric"), str):
        raise UserError(f"{where}: wanted a metric, got {cell}")
    where = f"{where}: {cell['metric']}"
    if ("value" in cell) == ("range" in cell):
        raise UserError(f"{where}: wanted either value or range")
    ends = cell["range"] if "range" in cell else [cell["value"], cell["value"]]
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)) and ends[0] <= ends[1]):
        raise UserError(f"{where}: wanted numbers: a value, or a range [LOW, HIGH]; got {ends}")
    low, high = ends
    tolerance, sd, temperature = cell.get("tolerance", 0.0), cell.get("sd"), cell.get("temperature")
    for key, number in (("tolerance", tolerance), ("sd", sd), ("temperature", temperature)):
        if number is not None and not (_is_number(number) and (number > 0 or (number == 0 and key != "temperature"))):
            raise UserError(f"{where}: {key}: wanted numbers from 0 on, got {number}")
    epoch = cell.get("epoch")
    if epoch is not None and not (isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 1):
        raise UserError(f"{where}: epoch: wanted a whole number from 1 on, got {epoch}")
    if cell.get("bound", "upper") != "upper":
        raise UserError(f"{where}: bound: wanted upper, got {cell['bound']}")
    rounded = 1e-6 * abs(low) if exact else _last_digit(low) / 2  # what is exact is written with some eight digits
    return Cell(
        cell["metric"],
        (low + high) / 2,
        max((high - low) / 2, rounded) + tolerance,
        sd,
        epoch,
        "bound" in cell,
        cell.get("estimator"),
        temperature,
        cell.get("minus"),
    )


def _last_digit(value: float) -> float:
    """One unit of the last digit that is written: 0.1 of 107.2, 1 of 107. (A trailing zero is lost: then too wide.)"""
    digits, _, exponent = repr(value).partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def select(found: Sequence[Source], patterns: Iterable[str]) -> list[Row]:
    """The rows that any of some patterns names: of a source, of a row, or of SOURCE/ROW; all rows without a pattern.

    Raises:
        UserError: a pattern names none.
    """
    rows = [row for source in found for row in source.rows]
    patterns = list(patterns)
    chosen: dict[str, Row] = {}
    for pattern in patterns:
        hits = [row for row in rows if any(fnmatchcase(name, pattern) for name in (row.source, row.name, row.label))]
        if not hits:
            names = dict.fromkeys([*(row.source for row in rows), *(row.label for row in rows)])
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else f" (sources: {', '.join(s.name for s in found)})"
            raise UserError(f"{pattern}: no published row has this name{hint}")
        chosen |= {row.label: row for row in hits}
    return [row for row in rows if not patterns or row.label in chosen]
