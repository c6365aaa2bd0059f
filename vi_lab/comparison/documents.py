"""A comparison as Markdown, LaTeX, and one HTML file that needs nothing else. What they look like: the templates *.j2.

Names and values may come from a stranger's run folder. Characters that steer a terminal are gone already
(`vi_lab.errors.printable`); each format escapes its own specials here, and the HTML runs no script at all.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pandas
from markupsafe import Markup

from vi_lab.comparison.curves import Curves
from vi_lab.comparison.groups import Comparison, differing
from vi_lab.comparison.notes import notes
from vi_lab.comparison.pictures import pictures
from vi_lab.comparison.tables import METRICS, Column, columns, explanation, run_rows


def markdown_text(value: str) -> str:
    """Text without meaning in Markdown, its tables and its HTML. An underscore inside a word means nothing."""
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~#$!])|(?<!\w)_|_(?!\w)", lambda found: "\\" + found[0], value)


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "±": r"$\pm$",
}  # fmt: skip


def tex_text(value: str) -> str:
    """Text without meaning in LaTeX. Brackets too: after a line break they would be its argument."""
    return "".join(TEX.get(c, c) for c in value)


def tex_number(value: str) -> str:
    """`tex_text` with true minus signs."""
    return re.sub(r"-(?=\d)", "$-$", tex_text(value))


def tex_name(value: str) -> str:
    """`tex_text` that may be broken where a setting's key has a dot or ends."""
    return re.sub(r"(?<=[a-z])[.=]", r"\g<0>\\allowbreak{}", tex_text(value))


def unbroken(value: str) -> Markup:
    """A number as HTML that is broken before its error or its interval at most."""
    parts = re.split(r" (?=[\[±])", value)
    return Markup(" ").join(Markup("<span>{}</span>").format(part) for part in parts)


def render(template: str, **values: Any) -> str:
    """A document from one of the templates beside this file; each format escapes its own specials."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=template.endswith(".tex.j2"),
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": markdown_text, "tex": tex_text, "tex_number": tex_number, "tex_name": tex_name}
    environment.filters["unbroken"] = unbroken
    environment.tests["same"] = lambda one, other: one is other
    return environment.get_template(template).render(**values)


def _render(template: str, comparison: Comparison, shown: list[Column], **values: Any) -> str:
    sentences = explanation(comparison, shown, hints=not template.endswith(".tex.j2"))
    values |= {"columns": shown, "explanation": " ".join(sentences), "notes": list(notes(comparison))}
    return render(template, comparison=comparison, **values)


def markdown(comparison: Comparison) -> str:
    """The tables with their notes, for a README or a pull request."""
    return _render("table.md.j2", comparison, columns(comparison)).rstrip() + "\n"


PAGE = ("latent", "seeds", "test", "test - reference", "NLL", "epochs")
"""What fits the page of a paper; of these the caption says what is the same for all groups."""
LONGEST = 24
"""Names of more letters are broken."""


def latex(comparison: Comparison) -> str:
    r"""A table for each section, for \usepackage{array, booktabs}."""
    shown = columns(comparison)
    constant = ""
    if not comparison.columns:
        shown = [column for column in shown if column.heading in ("group", *PAGE)]
        cells = {c: {c.cell(s, g) for s in comparison.sections for g in s.groups} for c in shown[1:]}
        same = {c: next(iter(texts)) for c, texts in cells.items() if len(texts) == 1 and c.csv not in METRICS}
        shown = [column for column in shown if column not in same]
        constant = ", ".join(f"{column.heading}: {text}" for column, text in same.items() if text)
    return _render(
        "table.tex.j2",
        comparison,
        shown,
        constant=f"{constant.capitalize()}. " if constant else "",
        long=any(len(group.name) > LONGEST for group in comparison.groups),
    )


def _without_same(rows: pandas.DataFrame) -> tuple[pandas.DataFrame, str]:
    """Rows without the columns that are the same in all of several, and these in a sentence."""
    same = [name for name in rows if len(rows) > 1 and rows[name].nunique() == 1]
    known = ", ".join(f"{name} {value}" for name in same if (value := rows[name].iloc[0]) != "")
    return rows.drop(columns=same), f"The same in all runs: {known}." if known else ""


def html(comparison: Comparison, figures: list[Curves]) -> str:
    """One file: tables, notes, left-out runs, curves as SVG, pictures. No script, nothing from elsewhere."""
    settings = differing(comparison.groups)
    runs = run_rows(comparison).astype(object)
    tables = [("Every run", *_without_same(runs.where(runs.notna(), "")))]
    if settings:
        names = [group.name for group in comparison.groups]
        rows = [[key, *values] for key, values in settings.items()]
        tables.append(("Settings in which the groups differ", pandas.DataFrame(rows, columns=["setting", *names]), ""))
    return _render(
        "page.html.j2",
        comparison,
        columns(comparison),
        runs=sum(len(group.records) for group in comparison.groups),
        groups=len(comparison.groups),
        figures=[{"caption": f.caption, "svg": Markup(f.svg())} for f in figures],  # the labels in it are escaped
        pictures=pictures(comparison),
        tables=tables,
    )
