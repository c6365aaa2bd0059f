"""Runs grouped by what they did, over seeds; selected by validation, reported on test.

Runs that differ in the seed only are one group. Groups whose losses mean the same (same data, binarization, likelihood)
stand in one section, best first; each is held against the section's reference group by paired differences: runs with
the same seed see the same images in the same order, so what they share cancels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vi_lab.comparison.groups import (
    Comparison,
    Group,
    LeftOut,
    Record,
    Section,
    alike,
    is_toy,
    kind_left_out,
    labels,
    read_record,
    show_value,
)
from vi_lab.comparison.notes import SAME_LOSS
from vi_lab.errors import UserError, ViLabError, one_line, printable
from vi_lab.runs.run import Run
from vi_lab.schema import OWN_FILES


def compare(
    runs: Iterable[Run], reference: str | None = None, select: bool = False, adjust: bool = False
) -> Comparison:
    """Group and order runs.

    Args:
        runs: finished or not; the others are left out, with the reason.
        reference: a group's or an estimator's name; None: the best group of each section.
        select: keep the best group of each estimator, by validation.
        adjust: widen the intervals of the differences until all of a section hold at once.

    Raises:
        UserError: no run has finished, or no group has that name.
    """
    groups: dict[tuple, dict[int | str, Record]] = {}
    left_out, count = [], 0
    for count, run in enumerate(runs, 1):  # noqa: B007
        try:
            record = read_record(run)
            same = groups.setdefault(run.key, {})
            if record.seed in same:  # no independent measurement
                raise ViLabError(f"the same settings and seed as {same[record.seed].run.folder}")
            same[record.seed] = record
        except Exception as error:  # one damaged or hostile folder must not hide the others
            kind = "" if isinstance(error, ViLabError) else f"{type(error).__name__}: "
            reason = printable(kind + one_line(error))[:500]
            left_out.append(LeftOut(printable(run.folder), reason, kind_left_out(run)))
    if not groups:
        reasons = "; ".join(f"{run.folder}: {run.reason}" for run in left_out[:3])
        raise UserError(f"none of the {count} runs has finished ({reasons}{'; ...' if count > 3 else ''})")
    named = [Group(sorted(g.values(), key=lambda r: (isinstance(r.seed, str), r.seed))) for g in groups.values() if g]
    for group, name in zip(named, labels([group.settings for group in named]), strict=True):
        group.name = name
    sections = _sections(named, reference, select)
    for section in sections:
        section.adjusted = adjust
    return Comparison(sections, left_out, select)


def _sections(groups: list[Group], reference: str | None, select: bool) -> list[Section]:
    kinds: dict[tuple, list[Group]] = {}
    for group in groups:
        kinds.setdefault(_kind(group.settings), []).append(group)
    sections = []
    for members in kinds.values():
        # without validation in one of them they are ordered, and selected, by what they are reported on
        held_out = all("val/loss" in record.numbers for group in members for record in group.records)
        selection = "val/loss" if held_out else "test/loss"
        members = sorted(members, key=lambda group: group.mean(selection))
        if select:
            best: dict[str, Group] = {}
            for group in members:
                if (chosen := best.setdefault(group.estimator, group)) is not group:
                    chosen.rivals.append(group)
            members = list(best.values())
        evaluated = iter(alike([record for group in members for record in group.records]))
        for group in members:
            group.records = [next(evaluated) for _ in group.records]
        sections.append(Section(_title(members[0].settings), members, members[0], selection))
    if reference is not None:
        section, group = _find(reference, sections)
        section.reference, section.named = group, True
    return sections


def _kind(settings: dict[str, Any]) -> tuple[str, ...]:
    """What must agree for losses to be the same quantity; of a toy problem all of its cost and its variables."""
    own = [key for key in settings if key.startswith(("latent.", "likelihood."))] if is_toy(settings) else []
    return tuple(str(settings.get(key)) for key in [*SAME_LOSS, *sorted(own)])


def _title(settings: dict[str, Any]) -> str:
    if is_toy(settings):
        own = {key.removeprefix("likelihood."): value for key, value in settings.items() if "likelihood." in key}
        cost = show_value(own.pop("_target_"), "_target_")
        numbers = (
            f"{key} {show_value(value, key)}" for key, value in own.items() if key != "start" and key != "spread"
        )
        return printable(f"toy problem {cost} ({', '.join(numbers)})")
    binarization, beta = settings["data.binarization"], settings.get("objective.beta", 1)
    kinds = {"none": "gray pixels", "dequantize": "dequantized pixels"}
    pixels = kinds.get(binarization, f"{binarization} binarization")
    if binarization == "none" and settings["data.source"] in ("cifar10", "svhn", *OWN_FILES):  # in color, perhaps
        pixels = "pixels of 256 levels"
    likelihood = show_value(settings["likelihood._target_"], "_target_")
    title = f"{settings['data.source']}, {pixels}, {likelihood} likelihood"
    part = settings.get("trainer.limit_test_batches", 1)
    title += "" if beta == 1 else f", KL times {beta}"
    return printable(title + ("" if part == 1 else f", {part} of the test batches"))


def _find(name: str, sections: list[Section]) -> tuple[Section, Group]:
    pairs = [(section, group) for section in sections for group in section.groups]
    for test in (lambda g: g.name == name, lambda g: g.estimator == name):
        found = [pair for pair in pairs if test(pair[1])]
        if len(found) == 1:
            return found[0]
        if found:
            pairs = found
            break
    names = ", ".join(repr(group.name) for _, group in pairs)
    problem = "several groups have this name" if found else "no group has this name"
    raise UserError(f"--reference {name}: {problem} (groups: {names})")
