"""The table at the end of a run: rows that compare, each with its unit."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vi_lab.console import Heading, Terminal, number, print_tables

SPLITS = ("train", "val", "test")

NATS = (
    "loss",
    "loss as optimized",
    "relaxation_gap",
    "expected_cost",
    "reconstruction",
    "kl",
    "nll",
    "mutual_information",
    "marginal_kl",
)
UNITS = {
    **dict.fromkeys(NATS, "nats"),
    "bits_per_dimension": "bits",
    "active_units": "variables",
    "posterior_perplexity": "classes",
    "code_perplexity": "codes",
}
"""Of a row, in the order of the table; rows that are not here follow without one."""

DIGITS = {"nats": ".2f", "cost": ".6f", "bits": ".4f", "variables": "g"}


def report(terminal: Terminal, final: Mapping[str, float]) -> None:
    """Print what came out: per image, or of a toy problem the expected cost.

    Args:
        final: the metrics, as SPLIT/NAME; others are left out.
    """
    values = {split: _rows(final, split) for split in SPLITS if any(key.startswith(f"{split}/") for key in final)}
    found = {name: None for rows in values.values() for name in rows}
    of_splits = [Heading(split, priority=int(split == "train")) for split in values]
    headings = [Heading("metric", numeric=False), *of_splits, Heading("unit", numeric=False, priority=2)]
    table = []
    toy = "expected_cost" in found
    for name in [*(name for name in UNITS if name in found), *(name for name in found if name not in UNITS)]:
        unit = "cost" if toy and name in NATS else UNITS.get(name, "")
        error = final.get(f"test/{name}_error", math.nan)
        form = DIGITS.get(unit, ".4g")
        cells = [_cell(rows.get(name), form, error if split == "test" else math.nan) for split, rows in values.items()]
        table.append([name, *cells, unit])
    title = "cost: lower is better" if toy else "per image; nats: lower is better"
    print_tables(terminal, headings, [(title, table)])


def _rows(final: Mapping[str, float], split: str) -> dict[str, float]:
    """A split's metrics under the names of rows: its loss is always the one at samples of the true posterior, and what
    is optimized has a row where it is another; a gap that is none has no row."""
    rows = {key.partition("/")[2]: value for key, value in final.items() if key.startswith(f"{split}/")}
    optimized = rows.pop("loss_relaxed", rows["loss"] if split == "train" and "loss" in rows else None)
    rows["loss"] = rows.pop("loss_unrelaxed", rows.get("loss", math.nan))
    if optimized is not None and optimized != rows["loss"]:
        rows["loss as optimized"] = optimized
    if rows.get("relaxation_gap") == 0:
        del rows["relaxation_gap"]
    return {name: value for name, value in rows.items() if not name.endswith("_error")}


def _cell(value: float | None, form: str, error: float) -> str:
    return "" if value is None else number(value, form, error)
