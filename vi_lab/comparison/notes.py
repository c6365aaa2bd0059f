"""What to know before reading the numbers of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from vi_lab.comparison.groups import Comparison, Group, Record, Section, show_value
from vi_lab.errors import printable

SAME_LOSS = {
    "data.source": "data",
    "data.binarization": "binarization",
    "likelihood._target_": "likelihood",
    "objective.beta": "weight of the KL (objective.beta)",
    "trainer.limit_test_batches": "part of the test images",
}
"""Where runs differ in one of these, their losses are different quantities."""


class Note(NamedTuple):
    """A plain sentence, and what it is about."""

    kind: str
    text: str
    section: str = ""
    """The title of the table that it is about, where there are several."""
    column: str = ""
    """What comparison.csv calls the column that it is about, where it is about one."""


class _Names:
    """Groups and values in a sentence, the first few or all.

    Args:
        most: so many, then how many more there are.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most

    def listed(self, parts: list[str], separator: str) -> str:
        shown = separator.join(parts[: self.most])
        return shown if len(parts[: self.most]) == len(parts) else f"{shown} and {len(parts) - (self.most or 0)} more"

    def __call__(self, groups: list[Group]) -> str:
        return self.listed([group.name for group in groups], ", ")

    def spread(self, groups: list[Group], value: Callable[[Record], Any]) -> str:
        """Such as "1000: a, b; 500: c" where groups differ in a value, otherwise nothing."""
        found: dict[str, list[Group]] = {}
        for group in groups:
            values = dict.fromkeys(show_value(value(record), "") for record in group.records)
            found.setdefault(printable(" and ".join(values)), []).append(group)
        differ = len(found) > 1 or any(" and " in value for value in found)
        return self.listed([f"{v}: {self(g)}" for v, g in found.items()], "; ") if differ else ""


def _setting(key: str) -> Callable[[Record], Any]:
    return lambda record: record.run.settings.get(key)


def _shown(key: str) -> Callable[[Record], str]:
    return lambda record: show_value(record.run.settings.get(key), key)


def _likelihood(key: str) -> Callable[[Record], Any]:
    return lambda record: record.likelihood(key)


def _environment(*keys: str) -> Callable[[Record], Any]:
    return lambda record: ", ".join(str(record.environment(key)) for key in keys)


def notes(comparison: Comparison, most: int | None = None) -> Iterator[Note]:
    """What makes numbers of this comparison not compare, or compare less well.

    Args:
        most: how many groups, and values, a note names; None: all.
    """
    groups, sections, names = comparison.groups, comparison.sections, _Names(most)
    if len(sections) > 1:
        why = []
        for key, word in SAME_LOSS.items():
            if spread := names.spread(groups, _shown(key)):
                why.append(f"{word} ({spread})")
        yield Note(
            "Several tables",
            f"These runs differ in {'; in '.join(why)}. Losses do not compare between them: each kind has a table and "
            "a reference of its own.",
        )
    for section in sections:
        where = section.title if len(sections) > 1 else ""
        for kind, text in _section_notes(section, comparison, names):
            yield Note(kind, f"{text[:-1]} ({where})." if where else text, where)
    if comparison.has("test/nll"):
        for key, word in (("samples", "samples K per image"), ("images", "test images")):
            if spread := names.spread([g for g in groups if len(g.metric("test/nll"))], _likelihood(key)):
                text = f"The NLL was estimated with different {word} ({spread}): fewer samples give a larger value."
                yield Note(f"Different {word}", text, column="test/nll")
    if spread := names.spread(groups, _environment("processor", "device", "threads")):
        text = f"Wall times come from different machines or numbers of threads ({spread})."
        yield Note("Wall times", text, column="epoch_seconds")
    if stacked := [g for g in groups if any(record.run.settings.get("stack") for record in g.records)]:
        text = f"Wall times of {names(stacked)} are those of all runs that were trained with them as one stack."
        yield Note("Wall times of stacks", text, column="epoch_seconds")
    if unknown := [g for g in groups if math.isnan(g.decoder_evaluations)]:
        text = f"Decoder evaluations were not recorded by {names(unknown)}: not in that column or figure."
        yield Note("Decoder evaluations", text, column="decoder_evaluations")


def gathered(found: Iterable[Note]) -> Iterator[str]:
    """A line for each kind of note: its text, or what several tables share and how many they are."""
    kinds: dict[str, list[Note]] = {}
    for note in found:
        kinds.setdefault(note.kind, []).append(note)
    for kind, same in kinds.items():
        titles = _Names(2).listed([note.section for note in same], "; ")
        yield same[0].text if len(same) == 1 else f"{kind}, in {len(same)} tables ({titles})."


def _section_notes(section: Section, comparison: Comparison, names: _Names) -> Iterator[tuple[str, str]]:
    groups = section.groups
    gray = groups[0].settings["data.binarization"] in ("none", "dequantize")
    likelihood = str(groups[0].settings["likelihood._target_"])
    gaussian = likelihood.endswith(".Gaussian")
    if gaussian:
        what = "A Gaussian likelihood is a density: its losses may be negative, and do not compare with a Bernoulli's"
        yield what, f"{what}."
    elif gray and likelihood.endswith(".Bernoulli"):
        what = "A Bernoulli likelihood of gray pixels is not normalized: its losses bound no log-likelihood"
        yield what, f"{what}."
    if section.selection != "val/loss":
        how = "selected" if comparison.selected else "ordered"
        what = f"so they are {how} by the test loss itself, which flatters the best"
        yield f"Nothing was held out in some runs, {what}", f"Nothing was held out in some of these runs, {what}."
    if spread := names.spread(groups, lambda r: str(r.environment("data", "sha256"))[:8]):
        yield (
            "The data files differ: losses do not compare",
            f"The data files differ (sha256 {spread}): their losses do not compare.",
        )
    budget = {
        "training steps": lambda r: int(r.numbers.get("step", 0)),
        "batch size": _setting("data.batch_size"),
        "validation images": _setting("data.validation"),
    }
    unequal = {word: spread for word, value in budget.items() if (spread := names.spread(groups, value))}
    if unequal:
        end = "Differences are not those of the methods alone."
        text = "; ".join(f"{word} ({spread})" for word, spread in unequal.items())
        yield "Unequal budgets: differences are not those of the methods alone", f"Unequal budgets: {text}. {end}"
    if uneven := [g for g in groups if any(len(rival.seeds) != len(g.seeds) for rival in g.rivals)]:
        yield (
            "The settings that were tried had different numbers of seeds: few seeds win by luck",
            f"The settings that were tried had different numbers of seeds: {names(uneven)}. Few seeds win by luck.",
        )
    single = [group for group in groups if len(group.seeds) == 1]
    if single:
        yield (
            "One seed only for some groups: no standard error and no interval",
            f"One seed only{f': {names(single)}' if len(single) < len(groups) else ''}. "
            "There is no standard error and no interval.",
        )
    if len({tuple(group.seeds) for group in groups}) > 1:
        spread = names.listed([f"{g.name}: {names.listed(list(map(str, g.seeds)), ' ')}" for g in groups], "; ")
        yield (
            "Seeds differ: paired differences use common seeds only, n of them",
            f"Seeds differ ({printable(spread)}): paired differences use common seeds only, n of them.",
        )
