"""What to know before reading the numbers of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

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


def names(groups: list[Group], most: int = 4) -> str:
    """The groups' names in a sentence."""
    shown = [group.name for group in groups[:most]]
    return ", ".join(shown) + (f" and {len(groups) - most} more" if len(groups) > most else "")


def _spread(groups: list[Group], value: Callable[[Record], Any]) -> str:
    """Such as "1000: a, b; 500: c" where groups differ in a value, otherwise nothing."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        values = dict.fromkeys(show_value(value(record), "") for record in group.records)
        found.setdefault(printable(" and ".join(values)), []).append(group)
    mixed = any(" and " in value for value in found)
    return "; ".join(f"{v}: {names(g)}" for v, g in found.items()) if len(found) > 1 or mixed else ""


def _setting(key: str) -> Callable[[Record], Any]:
    return lambda record: record.run.settings.get(key)


def _shown(key: str) -> Callable[[Record], str]:
    return lambda record: show_value(record.run.settings.get(key), key)


def _likelihood(key: str) -> Callable[[Record], Any]:
    return lambda record: record.likelihood(key)


def _environment(*keys: str) -> Callable[[Record], Any]:
    return lambda record: ", ".join(str(record.environment(key)) for key in keys)


def notes(comparison: Comparison) -> Iterator[str]:
    """What makes numbers of this comparison not compare, or compare less well, in plain sentences."""
    groups, sections = comparison.groups, comparison.sections
    if len(sections) > 1:
        why = []
        for key, word in SAME_LOSS.items():
            if spread := _spread(groups, _shown(key)):
                why.append(f"{word} ({spread})")
        yield (
            f"These runs differ in {'; in '.join(why)}. Losses do not compare between them: each kind has a table and "
            "a reference of its own."
        )
    for section in sections:
        where = f" ({section.title})" if len(sections) > 1 else ""
        yield from (f"{note[:-1]}{where}." for note in _section_notes(section, comparison))
    if comparison.has("test/nll"):
        for key, word in (("samples", "samples K per image"), ("images", "test images")):
            if spread := _spread(groups, _likelihood(key)):
                yield f"The NLL was estimated with different {word} ({spread}): fewer samples give a larger value."
    if spread := _spread(groups, _environment("processor", "device", "threads")):
        yield f"Wall times come from different machines or numbers of threads ({spread})."
    if unknown := [g for g in groups if math.isnan(g.decoder_evaluations)]:
        yield f"Decoder evaluations were not recorded by {names(unknown)}: not in that column or figure."


def _section_notes(section: Section, comparison: Comparison) -> Iterator[str]:
    groups = section.groups
    gray = groups[0].settings["data.binarization"] == "none"
    gaussian = str(groups[0].settings["likelihood._target_"]).endswith(".Gaussian")
    if gaussian:
        yield "A Gaussian likelihood is a density: its losses may be negative, and do not compare with a Bernoulli's."
    elif gray:
        yield "A Bernoulli likelihood of gray pixels is not normalized: its losses bound no log-likelihood."
    if section.selection != "val/loss":
        how = "selected" if comparison.selected else "ordered"
        yield (
            f"Nothing was held out in some of these runs, so they are {how} by the test loss itself, which flatters "
            "the best."
        )
    if spread := _spread(groups, lambda r: str(r.environment("data", "sha256"))[:8]):
        yield f"The data files differ (sha256 {spread}): their losses do not compare."
    budget = {
        "training steps": lambda r: int(r.numbers.get("step", 0)),
        "batch size": _setting("data.batch_size"),
        "validation images": _setting("data.validation"),
    }
    unequal = [f"{word} ({spread})" for word, value in budget.items() if (spread := _spread(groups, value))]
    if unequal:
        yield f"Unequal budgets: {'; '.join(unequal)}. Differences are not those of the methods alone."
    if uneven := [g for g in groups if any(len(rival.seeds) != len(g.seeds) for rival in g.rivals)]:
        yield f"The settings that were tried had different numbers of seeds: {names(uneven)}. Few seeds win by luck."
    single = [group for group in groups if len(group.seeds) == 1]
    if single:
        yield f"One seed only: {names(single)}. There is no standard error and no interval."
    if len({tuple(group.seeds) for group in groups}) > 1:
        spread = "; ".join(f"{g.name}: {' '.join(map(str, g.seeds[:12]))}" for g in groups[:8])
        more = "; ..." if len(groups) > 8 else ""
        yield f"Seeds differ ({printable(spread)}{more}): paired differences use common seeds only, n of them."
