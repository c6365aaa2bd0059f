"""Words are spelled as torch spells them: optimizer, normalize, color."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ISE = (
    *(
        "binar",
        "categor",
        "character",
        "custom",
        "discret",
        "factor",
        "final",
        "general",
        "initial",
        "local",
        "marginal",
    ),
    *("material", "maxim", "memor", "minim", "normal", "optim", "organ", "parallel", "parameter", "penal", "quant"),
    *("random", "real", "recogn", "regular", "serial", "special", "stabil", "standard", "summar", "synchron", "token"),
    *("util", "vector", "visual"),
)
"""Verbs in -ize, by what stands before it."""
OTHERS = (
    *(
        "analys(ed|er|ing)",
        "analyse\\b",
        "artefact",
        "behaviour",
        "cancell(ed|ing)",
        "catalys",
        "centre",
        "centring",
        "colour",
    ),
    *(
        "defence",
        "emphasis(e|ing)",
        "favour",
        "flavour",
        "fulfil\\b",
        "grey",
        "honour",
        "judgement",
        "labell",
        "learnt",
    ),
    *("levell", "licence", "(centi|kilo|milli)metre", "modell(ed|ing)", "neighbour", "practis", "programme\\b"),
    *("signall", "spelt", "travell(ed|ing)", "whilst"),
)
BRITISH = re.compile(rf"\w*(({'|'.join(ISE)})is(e|ing|ation|able)|{'|'.join(OTHERS)})\w*", re.IGNORECASE)

NAMES = re.compile(r"DoublyReparameterised|normalise_variance|\bblue grey\b")
"""Names of before 0.2.0, and one of the palettes of Material for MkDocs."""

EXEMPT = ("LICENSE", "tests/test_spelling.py")
"""Others' words, and the list of what is looked for."""


@functools.cache
def is_british(word: str) -> bool:
    return BRITISH.search(word) is not None


def british(text: str) -> list[str]:
    """Each word is looked at once, of all files together: most come again and again."""
    return [word for word in re.findall(r"\w+", NAMES.sub("", text)) if is_british(word)]


def test_the_words_are_found() -> None:
    words = "optimiser binarisation reparameterised colour misspelt labelled quantisation learnt analysed greyish"
    assert british(words) == words.split()
    sound = "noise raise pathwise otherwise optimistic realistic organism emphasis analysis analyses meter disable"
    assert british(f"{sound} characteristic minimum programmer DoublyReparameterised factors labels") == []


def test_spelling_is_american() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if name.startswith(EXEMPT) or not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        found += [f"{name}:{i}: {word}" for i, line in enumerate(text.split("\n"), 1) for word in british(line)]
    assert found == []
