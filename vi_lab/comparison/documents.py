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
from vi_lab.comparison.tables import columns, explanation, run_rows


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


def _render(template: str, comparison: Comparison, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=template.endswith(".tex.j2"),
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown": markdown_text, "tex": tex_text, "tex_number": tex_number}
    environment.tests["same"] = lambda one, other: one is other
    values |= {"columns": columns(comparison), "explanation": " ".join(explanation(comparison))}
    return environment.get_template(template).render(comparison=comparison, **values)


def markdown(comparison: Comparison) -> str:
    """The tables with their notes, for a README or a pull request."""
    return _render("table.md.j2", comparison).rstrip() + "\n"


def latex(comparison: Comparison) -> str:
    r"""A table for each section, for \usepackage{booktabs}."""
    return _render("table.tex.j2", comparison)


def html(comparison: Comparison, figures: list[Curves]) -> str:
    """One file: tables, notes, left-out runs, curves as SVG. No script, nothing from elsewhere."""
    settings = differing(comparison.groups)
    runs = run_rows(comparison).astype(object)
    tables = {"every run": runs.where(runs.notna(), "")}
    if settings:
        names = [group.name for group in comparison.groups]
        tables["settings in which the groups differ"] = pandas.DataFrame(
            [[key, *values] for key, values in settings.items()], columns=["setting", *names]
        )
    return _render(
        "page.html.j2",
        comparison,
        runs=sum(len(group.records) for group in comparison.groups),
        groups=len(comparison.groups),
        figures=[{"caption": f.caption, "svg": Markup(f.svg())} for f in figures],  # the labels in it are escaped
        tables=tables,
    )
