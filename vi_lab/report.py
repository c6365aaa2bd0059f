"""A comparison as text: for the terminal, as CSV, Markdown, LaTeX, and as one HTML file that needs nothing else.

Names and values may come from a stranger's run folder. Characters that steer a terminal are gone already
(`vi_lab.compare.printable`); each format escapes its own specials here, and the HTML runs no script at all.
"""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import pandas
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vi_lab import curves
from vi_lab.compare import CONFIDENCE, Comparison, Difference, Group, Section, differing, mean_and_error, printable
from vi_lab.snapshot import write_text

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}

DIGITS = {"test/bits_per_dimension": 4, "test/active_units": 1}
METRICS = {
    "train/loss": "train",
    "train/loss_unrelaxed": "unrelaxed",
    "train/relaxation_gap": "gap",
    "val/loss": "val",
    "test/loss": "test",
    "test/nll": "NLL",
    "test/bits_per_dimension": "bits/dim",
    "test/active_units": "active units",
}
COMPARED = ("test/loss", "test/nll")
"""Metrics that are held against the reference."""
DISPENSABLE = (
    *("active units", "bits/dim", "train", "gap", "unrelaxed", "evaluations", "s/epoch", "latent"),
    *("NLL - reference", "NLL", "tried", "test - reference"),
)
"""Columns that a narrow terminal does without, first to last."""


class Column(NamedTuple):
    heading: str
    cell: Callable[[Section, Group], str]
    numeric: bool = True


def columns(comparison: Comparison) -> list[Column]:
    """What the tables show: only what some run has."""
    result = [
        Column("group", lambda _, g: g.name, False),
        Column("latent", lambda _, g: g.latent, False),
        Column("seeds", lambda _, g: str(len(g.seeds))),
    ]
    if comparison.selected:
        result.append(Column("tried", lambda _, g: str(1 + len(g.rivals))))
    for metric, heading in METRICS.items():
        if not comparison.has(metric):
            continue
        digits = DIGITS.get(metric, 2)
        result.append(Column(heading, lambda _, g, m=metric, d=digits: _mean(*mean_and_error(g.metric(m)), d)))
        if metric in COMPARED and any(len(section.groups) > 1 for section in comparison.sections):
            result.append(Column(f"{heading} - reference", lambda s, g, m=metric: _difference(s, g, m)))
    if any(math.isfinite(group.decoder_evaluations) for group in comparison.groups):
        result.append(Column("evaluations", lambda _, g: _number(g.decoder_evaluations, "g")))
    if any(math.isfinite(group.epoch_seconds) for group in comparison.groups):
        result.append(Column("s/epoch", lambda _, g: _number(g.epoch_seconds, ".1f")))
    return result


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def _mean(mean: float, error: float, digits: int) -> str:
    if not math.isfinite(mean):
        return ""
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if math.isfinite(error) else "")


def _difference(section: Section, group: Group, metric: str) -> str:
    difference = section.difference(group, metric)
    if difference is None:
        return "reference" if group is section.reference else ""
    if not difference.seeds:
        return "no common seed"
    text = f"{difference.mean:+.2f}"
    if difference.seeds == 1:
        return f"{text} (n=1)"
    text += f" [{difference.low:.2f}, {difference.high:.2f}]"
    unequal = len({tuple(g.seeds) for g in section.groups}) > 1
    return f"{text} (n={difference.seeds})" if unequal else text


def explanation(comparison: Comparison) -> list[str]:
    """What the numbers are, in a few sentences."""
    level = f"{CONFIDENCE:.0%}".replace("%", " %")
    selection = " and ".join(sorted({s.selection for s in comparison.sections}, reverse=True))
    sentences = ["Nats per image, lower is better; mean ± standard error over seeds."]
    if comparison.selected:
        sentences.append(
            f"Of each estimator the best of all settings tried, by mean {selection}; reported on test images."
        )
    else:
        sentences.append(f"Ordered by mean {selection}; the first of a table is its reference unless named otherwise.")
    if any(len(section.groups) > 1 for section in comparison.sections):
        sentences.append(
            f"Differences are paired by seed, with Student's {level} interval for each on its own: among many, some "
            "leave zero out by chance."
        )
    if comparison.has("test/nll"):
        samples = {str(record.likelihood("samples")) for group in comparison.groups for record in group.records}
        sentences.append(
            f"NLL: importance sampling with K = {printable(' or '.join(sorted(samples)))} samples per image, an upper "
            "bound in expectation, which falls with K."
        )
    if any(math.isfinite(group.decoder_evaluations) for group in comparison.groups):
        sentences.append(
            "Evaluations: how often the estimator calls the decoder, per image and training step; backward passes and "
            "the logged unrelaxed loss are not counted."
        )
    return sentences


# --- terminal --------------------------------------------------------------------------------------------------------


def show(comparison: Comparison, console: Console) -> None:
    """The tables and what to know about them. On a narrow terminal the least needed columns are left out."""
    chosen = columns(comparison)
    for heading in DISPENSABLE:
        wide = console.options.update(width=10_000)
        widest = max(console.measure(_table(s, chosen), options=wide).minimum for s in comparison.sections)
        if widest <= console.width:
            break
        chosen = [column for column in chosen if column.heading != heading]
    for section in comparison.sections:
        console.print(_table(section, chosen))
    for sentence in explanation(comparison):
        console.print(sentence, style="dim", **PLAIN)
    for note in comparison.notes:
        console.print(f"! {note}", style="yellow", **PLAIN)
    for folder, reason in comparison.left_out:
        console.print(f"left out: {folder} ({reason})", **PLAIN)


def _table(section: Section, chosen: list[Column]) -> Table:
    table = Table(title=Text(section.title), title_justify="left")
    for column in chosen:
        cells = [column.heading, *(column.cell(section, group) for group in section.groups)]
        if column.numeric:
            table.add_column(column.heading, justify="right", no_wrap=True, min_width=max(map(len, cells)))
        else:
            table.add_column(column.heading, overflow="fold", min_width=12)
    for group in section.groups:
        table.add_row(*(Text(column.cell(section, group)) for column in chosen))
    return table


# --- CSV -------------------------------------------------------------------------------------------------------------


FORMULA = ("=", "+", "-", "@")


def csv_text(value: str) -> str:
    """Text that a spreadsheet takes as text: what begins like a formula gets an apostrophe before it (OWASP, CSV
    injection)."""
    return f"'{value}" if unicodedata.normalize("NFKC", value.lstrip())[:1] in FORMULA else value


def group_rows(comparison: Comparison) -> pandas.DataFrame:
    """One row per group: means, standard errors, paired differences with intervals, settings, in full precision."""
    metrics = _metrics(comparison)
    settings = differing(comparison.groups)
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
                "settings_tried": 1 + len(group.rivals),
                "seeds": len(group.seeds),
                "seed_list": csv_text(printable(" ".join(map(str, group.seeds)))),
                "decoder_evaluations": group.decoder_evaluations,
                "epoch_seconds": group.epoch_seconds,
            }
            for metric in metrics:
                row[metric], row[f"{metric} standard error"] = mean_and_error(group.metric(metric))
            for metric in ("val/loss", *COMPARED):
                if metric in metrics:
                    difference = section.difference(group, metric) or Difference(math.nan, math.nan, math.nan, 0)
                    columns = ("difference", "difference low", "difference high", "difference seeds")
                    row |= {f"{metric} {c}": v for c, v in zip(columns, difference, strict=True)}
            index = comparison.groups.index(group)
            row |= {csv_text(f"setting {key}"): csv_text(values[index]) for key, values in settings.items()}
            rows.append(row)
    return pandas.DataFrame(rows)


def run_rows(comparison: Comparison) -> pandas.DataFrame:
    """One row per run: seed, folder and every final metric."""
    rows = [
        {
            "group": csv_text(group.name),
            "seed": csv_text(printable(record.seed)),
            "folder": csv_text(printable(record.run.folder)),
            "step": record.numbers.get("step"),
            "epoch_seconds": record.run.epoch_seconds,
            "decoder_evaluations": record.decoder_evaluations,
            **{metric: record.numbers.get(metric) for metric in _metrics(comparison)},
        }
        for group in comparison.groups
        for record in group.records
    ]
    return pandas.DataFrame(rows)


def _metrics(comparison: Comparison) -> list[str]:
    found = {m for group in comparison.groups for r in group.records for m in r.numbers if m != "step"}
    return [*(m for m in METRICS if m in found), *sorted(found - set(METRICS))]


# --- Markdown and LaTeX ----------------------------------------------------------------------------------------------


def markdown_text(value: str) -> str:
    """Text without meaning in Markdown, its tables and its HTML. An underscore inside a word means nothing."""
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~#$!])|(?<!\w)_|_(?!\w)", lambda found: "\\" + found[0], value)


def markdown(comparison: Comparison) -> str:
    """The tables with their notes, for a README or a pull request."""
    chosen = columns(comparison)
    lines = []
    for section in comparison.sections:
        lines += [f"**{markdown_text(section.title)}**", ""]
        lines += ["| " + " | ".join(markdown_text(column.heading) for column in chosen) + " |"]
        lines += ["| " + " | ".join("---:" if column.numeric else "---" for column in chosen) + " |"]
        for group in section.groups:
            lines.append("| " + " | ".join(markdown_text(c.cell(section, group)) for c in chosen) + " |")
        lines.append("")
    lines += [" ".join(explanation(comparison)), ""]
    lines += [f"- {markdown_text(note)}" for note in comparison.notes]
    lines += [f"- left out: {markdown_text(f'{folder} ({reason})')}" for folder, reason in comparison.left_out]
    return "\n".join(lines).rstrip() + "\n"


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "±": r"$\pm$",
}  # fmt: skip


def tex_text(value: str) -> str:
    """Text without meaning in LaTeX. Brackets too: after a line break they would be its argument."""
    return "".join(TEX.get(c, c) for c in value)


def _tex_cell(column: Column, value: str) -> str:
    return re.sub(r"-(?=\d)", "$-$", tex_text(value)) if column.numeric else tex_text(value)


def latex(comparison: Comparison) -> str:
    r"""A table for each section, for \usepackage{booktabs}."""
    chosen = columns(comparison)
    lines = [r"% \usepackage{booktabs}; for quotation marks in names \usepackage[T1]{fontenc}"]
    for section in comparison.sections:
        caption = " ".join([f"{section.title}.", *explanation(comparison)])
        cells = [[_tex_cell(column, column.cell(section, group)) for column in chosen] for group in section.groups]
        lines += [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{tex_text(caption)}}}",
            rf"  \begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in chosen)}}}",
            r"    \toprule",
            "    " + " & ".join(tex_text(column.heading) for column in chosen) + r" \\",
            r"    \midrule",
            *("    " + " & ".join(row) + r" \\" for row in cells),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


# --- HTML ------------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vi_lab comparison</title>
<style>
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --warn: #e69f0033; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem;
  background: Canvas; color: CanvasText; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
th.n, td.n { text-align: right; white-space: nowrap; }
tbody tr:hover { background: var(--soft); }
tr.reference { font-weight: 600; }
ul.notes { background: var(--warn); border-left: 4px solid #e69f00; padding: .6rem 1rem .6rem 2rem; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { font-weight: 600; }
td, li, p { overflow-wrap: anywhere; }
td { min-width: 9rem; } td:first-child { min-width: 13rem; } td.n { min-width: 0; }
</style>
</head>
<body>
<h1>Comparison: {{ runs }} run{{ "" if runs == 1 else "s" }}, {{ groups }} group{{ "" if groups == 1 else "s" }}</h1>
<p>{{ explanation }}</p>
{% if comparison.notes %}<ul class="notes">
{% for note in comparison.notes %}<li>{{ note }}</li>
{% endfor %}</ul>{% endif %}
{% for section in comparison.sections %}<div class="scroll"><table>
<caption>{{ section.title }}</caption>
<thead><tr>
{%- for c in columns %}<th scope="col"{{ ' class="n"' | safe if c.numeric }}>{{ c.heading }}</th>{% endfor -%}
</tr></thead>
<tbody>
{% for group in section.groups %}<tr{{ ' class="reference"' | safe if group is same(section.reference) }}>
{%- for c in columns %}<td{{ ' class="n"' | safe if c.numeric }}>{{ c.cell(section, group) }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}
{% for figure in figures %}<figure>
<figcaption>{{ figure.caption }}</figcaption>
{{ figure.svg }}
</figure>
{% endfor %}
{% if comparison.left_out %}<h2>Left out</h2>
<div class="scroll"><table>
<thead><tr><th scope="col">run folder</th><th scope="col">why</th></tr></thead>
<tbody>
{% for folder, reason in comparison.left_out %}<tr><td>{{ folder }}</td><td>{{ reason }}</td></tr>
{% endfor %}</tbody>
</table></div>{% endif %}
<h2>More</h2>
{% for title, table in tables.items() %}<details><summary>{{ title }}</summary><div class="scroll"><table>
<thead><tr>{% for c in table.columns %}<th scope="col">{{ c }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.itertuples(index=False, name=None) %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div></details>
{% endfor %}
</body>
</html>
"""


def html(comparison: Comparison, figures: list[curves.Curves]) -> str:
    """One file: tables, notes, left-out runs, curves as SVG. No script, nothing from elsewhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.tests["same"] = lambda one, other: one is other
    settings = differing(comparison.groups)
    runs = run_rows(comparison).astype(object)
    tables = {"every run": runs.where(runs.notna(), "")}
    if settings:
        names = [group.name for group in comparison.groups]
        tables["settings in which the groups differ"] = pandas.DataFrame(
            [[key, *values] for key, values in settings.items()], columns=["setting", *names]
        )
    return environment.from_string(PAGE).render(
        comparison=comparison,
        columns=columns(comparison),
        explanation=" ".join(explanation(comparison)),
        runs=sum(len(group.records) for group in comparison.groups),
        groups=len(comparison.groups),
        figures=[{"caption": f.caption, "svg": Markup(f.svg())} for f in figures],  # the labels in it are escaped
        tables=tables,
    )


# --- all of it -------------------------------------------------------------------------------------------------------


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """All files into `folder`, which is made; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = curves.draw(comparison)
    texts = {
        "comparison.csv": group_rows(comparison).to_csv(index=False, lineterminator="\n"),
        "comparison_runs.csv": run_rows(comparison).to_csv(index=False, lineterminator="\n"),
        "comparison.md": markdown(comparison),
        "comparison.tex": latex(comparison),
        "comparison.html": html(comparison, figures),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [*(folder / name for name in texts), *(figure.write(folder) for figure in figures)]
