"""What the tables of a comparison show: columns, cells, explanations; rows in full precision for CSV."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas

from vi_lab.comparison.groups import Comparison, Group, Section, differing
from vi_lab.comparison.stats import CONFIDENCE, Difference, mean_and_error
from vi_lab.console import number
from vi_lab.errors import UserError, printable

DIGITS = {"test/bits_per_dimension": 4, "test/active_units": 1}
"""Decimals of what is no loss; of losses see `Section.digits`."""
METRICS = {
    "train/loss": ("train", 12),
    "train/loss_unrelaxed": ("unrelaxed", 10),
    "train/relaxation_gap": ("gap", 11),
    "val/loss": ("val", 3),
    "test/loss": ("test", 0),
    "test/nll": ("NLL", 4),
    "test/bits_per_dimension": ("bits/dim", 13),
    "test/active_units": ("active units", 14),
}
"""Their headings, and what a narrow terminal does without first: the largest."""
COMPARED = {"test/loss": ("difference", 2), "test/nll": ("NLL-difference", 6)}
"""Metrics that are held against the reference: names and priorities of their differences."""
LOWER_IS_BETTER = ("val/loss", "test/loss", "test/nll", "test/bits_per_dimension")


class Column(NamedTuple):
    """One column of the tables, the same in every format; each escapes heading and cells itself."""

    heading: str
    cell: Callable[[Section, Group], str]
    """What stands in a group's row: plain text, empty where the group has no such number."""
    priority: int = 0
    """See `vi_lab.console.Heading`."""
    numeric: bool = True
    """Whether it is set flush right."""
    csv: str = ""
    """What comparison.csv calls it, where that is another name."""
    name: str = ""
    """What --columns calls it; the heading otherwise."""

    def best(self, section: Section) -> Group | None:
        """The group with the lowest mean, where low is good and there are several."""
        known = [g for g in section.groups if math.isfinite(g.mean(self.csv))] if self.csv in LOWER_IS_BETTER else []
        return min(known, key=lambda group: group.mean(self.csv)) if len(known) > 1 else None


def columns(comparison: Comparison, wanted: Sequence[str] = ()) -> list[Column]:
    """What the tables show: only what some run has.

    Args:
        wanted: names, headings or names in comparison.csv, in any case; none for what the comparison wants to show.

    Raises:
        UserError: there is no such column.
    """
    every = _columns(comparison)
    accepted = {n.casefold(): column for column in every for n in (column.csv, column.heading, column.name) if n}
    wanted = wanted or comparison.columns
    for name in wanted:
        if name.casefold() not in accepted:
            names = ", ".join((column.name or column.heading).casefold() for column in every)
            raise UserError(f"--columns: these runs have no {name!r} (there are: {names})")
    chosen = dict.fromkeys(["group", *(accepted[name.casefold()].heading for name in wanted)])
    return [accepted[heading.casefold()] for heading in chosen] if wanted else every


def _columns(comparison: Comparison) -> list[Column]:
    alike = len({group.latent for group in comparison.groups}) == 1
    result = [
        Column("group", lambda _, g: g.name, numeric=False),
        Column("latent", lambda _, g: g.latent, 16 if alike else 7, numeric=False),
        Column("seeds", lambda _, g: str(len(g.seeds)), 1),
    ]
    if comparison.selected:
        result.append(Column("tried", lambda _, g: str(1 + len(g.rivals)), 5, csv="settings_tried"))
    for metric, (heading, priority) in METRICS.items():
        if not comparison.has(metric):
            continue
        result.append(Column(heading, _metric_cell(metric, DIGITS.get(metric)), priority, csv=metric))
        if metric in COMPARED and any(len(section.groups) > 1 for section in comparison.sections):
            name, priority = COMPARED[metric]
            cell = _difference_cell(metric)
            result.append(Column(f"{heading} - reference", cell, priority, csv=f"{metric} difference", name=name))
    if any(math.isfinite(group.decoder_evaluations) for group in comparison.groups):
        cell = lambda _, g: _number(g.decoder_evaluations, "g")  # noqa: E731
        result.append(Column("evaluations", cell, 9, csv="decoder_evaluations"))
    result.append(Column("epochs", lambda _, g: _number(g.mean("epoch"), "g"), 15))
    if any(math.isfinite(group.epoch_seconds) for group in comparison.groups):
        result.append(Column("s/epoch", lambda _, g: _number(g.epoch_seconds, ".1f"), 8, csv="epoch_seconds"))
    return result


def _metric_cell(metric: str, digits: int | None) -> Callable[[Section, Group], str]:
    return lambda section, group: _mean(*mean_and_error(group.metric(metric)), digits or section.digits)


def _difference_cell(metric: str) -> Callable[[Section, Group], str]:
    return lambda section, group: _difference(section, group, metric)


def _number(value: float, form: str) -> str:
    return number(value, form) if math.isfinite(value) else ""


def _mean(mean: float, error: float, digits: int) -> str:
    if not math.isfinite(mean):
        return ""
    return number(mean, f".{digits}f", error)


def _difference(section: Section, group: Group, metric: str) -> str:
    difference = section.difference(group, metric)
    if difference is None:
        return "reference" if group is section.reference else ""
    if not difference.seeds:
        return "no common seed"
    form = f".{section.digits}f"
    text = number(difference.mean, f"+{form}")
    if difference.seeds == 1:
        return f"{text} (n=1)"
    text += f" [{number(difference.low, form)}, {number(difference.high, form)}]"
    unequal = len({tuple(g.seeds) for g in section.groups}) > 1
    return f"{text} (n={difference.seeds})" if unequal else text


def explanation(comparison: Comparison, shown: list[Column] | None = None, hints: bool = True) -> list[str]:
    """What the numbers are, in a few sentences.

    Args:
        shown: the columns of the tables.
        hints: with the options that would have made other tables.
    """
    shown = columns(comparison) if shown is None else shown
    has = {column.csv for column in shown}
    level = f"{CONFIDENCE:.0%}".replace("%", " %")
    selection = " and ".join(sorted({s.selection for s in comparison.sections}, reverse=True))
    folds = any(group.settings.get("data.folds") for group in comparison.groups)
    over = "seeds and folds, of which each holds out other images; folds share most of theirs" if folds else "seeds"
    unit = " or ".join(sorted({section.unit for section in comparison.sections}, reverse=True))
    sentences = [f"{unit[:1].upper()}{unit[1:]}, lower is better; mean ± standard error over {over}."]
    if comparison.selected:
        sentences.append(
            f"Of each estimator the best of all settings tried, by mean {selection}; reported "
            f"{'exactly' if all(section.toy for section in comparison.sections) else 'on test images'}."
        )
    else:
        sentences.append(f"Ordered by mean {selection}; the first of a table is its reference unless named otherwise.")
    if has & {f"{metric} difference" for metric in COMPARED}:
        alone = "for each on its own: among many, some leave zero out by chance"
        alone += " (--adjust widens them)" if hints else ""
        all_of_them = "widened so that all of a table hold at once (Bonferroni)"
        adjusted = comparison.sections[0].adjusted
        sentences.append(
            f"Differences are paired by seed, with Student's {level} interval {all_of_them if adjusted else alone}."
        )
        if not all(section.named or len(section.groups) == 1 for section in comparison.sections):
            remedy = ", which the widening allows for" if adjusted else "; --reference names one" if hints else ""
            sentences.append(
                f"The reference was chosen by {selection}, in part for the luck of its seeds, so that the others look "
                f"worse than they are{remedy}."
            )
    if "test/nll" in has:
        records = [record for group in comparison.groups for record in group.records if "test/nll" in record.numbers]
        samples = {str(record.likelihood("samples")) for record in records}
        sentences.append(
            f"NLL: importance sampling with K = {printable(' or '.join(sorted(samples)))} samples per image, an upper "
            "bound in expectation, which falls with K."
        )
    if "decoder_evaluations" in has:
        sentences.append(
            "Evaluations: how often the estimator calls the decoder, per image and training step; backward passes and "
            "the logged unrelaxed loss are not counted."
        )
    return sentences


# --- rows ------------------------------------------------------------------------------------------------------------


FORMULA = ("=", "+", "-", "@")


def csv_text(value: str) -> str:
    """Text that a spreadsheet takes as text: what begins like a formula gets an apostrophe before it (OWASP, CSV
    injection)."""
    return f"'{value}" if unicodedata.normalize("NFKC", value.lstrip())[:1] in FORMULA else value


def group_rows(comparison: Comparison) -> pandas.DataFrame:
    """One row per group: means, standard errors, paired differences with intervals, settings, in full precision; and
    notes, where a run has any."""
    metrics = _metrics(comparison)
    settings = differing(comparison.groups)
    noted = any(group.notes for group in comparison.groups)
    rows = []
    for section in comparison.sections:
        for group in section.groups:
            row: dict[str, Any] = {
                "group": csv_text(group.name),
                "estimator": csv_text(group.estimator),
                "latent": csv_text(group.latent),
                "section": csv_text(section.title),
                "reference": csv_text(section.reference.name),
                "selected_by": section.selection,
                "confidence": section.confidence,
                "settings_tried": 1 + len(group.rivals),
                "seeds": len(group.seeds),
                "seed_list": csv_text(printable(" ".join(map(str, group.seeds)))),
                "decoder_evaluations": group.decoder_evaluations,
                "epochs": group.mean("epoch"),
                "epoch_seconds": group.epoch_seconds,
            }
            for metric in metrics:
                row[metric], row[f"{metric} standard error"] = mean_and_error(group.metric(metric))
            for metric in ("val/loss", *COMPARED):
                if metric in metrics:
                    difference = section.difference(group, metric) or Difference(math.nan, math.nan, math.nan, 0)
                    parts = ("difference", "difference low", "difference high", "difference seeds")
                    row |= {f"{metric} {part}": value for part, value in zip(parts, difference, strict=True)}
            index = comparison.groups.index(group)
            row |= {csv_text(f"setting {key}"): csv_text(values[index]) for key, values in settings.items()}
            row |= {"notes": csv_text(group.notes)} if noted else {}
            rows.append(row)
    return pandas.DataFrame(rows)


def run_rows(comparison: Comparison) -> pandas.DataFrame:
    """One row per run: seed, folder, every final metric, and its notes where a run has any."""
    noted = any(group.notes for group in comparison.groups)
    metrics = _metrics(comparison)
    rows = [
        {
            "group": csv_text(group.name),
            "seed": csv_text(printable(record.seed)),
            "folder": csv_text(printable(record.run.folder)),
            "step": record.numbers.get("step"),
            "epoch_seconds": record.run.epoch_seconds,
            "decoder_evaluations": record.decoder_evaluations,
            **{metric: record.numbers.get(metric) for metric in metrics},
            **({"notes": csv_text(record.notes)} if noted else {}),
        }
        for group in comparison.groups
        for record in group.records
    ]
    return pandas.DataFrame(rows)


def _metrics(comparison: Comparison) -> list[str]:
    found = {m for group in comparison.groups for r in group.records for m in r.numbers} - {"step", "epoch"}
    return [*(m for m in METRICS if m in found), *sorted(found - set(METRICS))]
