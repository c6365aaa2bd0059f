"""What MkDocs does to the pages besides: equations become MathML, and the configuration page lists the yaml files.

Equations are written between dollars, as GitHub shows them. `pymdownx.arithmatex` finds them, `latex2mathml` turns
them into MathML, which browsers show without any script or font from elsewhere.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
import yaml
from mkdocs.exceptions import PluginError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MARK = "<!-- the groups of configs/ -->"

_SPACE = '<mspace width="0.167em" />'
_REPAIRS = (
    (r"<m[io]>&#x0007E;</m[io]>", "<mo>&#x0223C;</mo>"),  # "is drawn from", not an accent
    (r'<mn mathvariant="double-struck">1</mn>', "<mi>&#x1D7D9;</mi>"),  # the indicator
    (r"<mo>([A-Za-z]{2,})</mo>", r"<mi>\1</mi>"),  # names of functions: no space before a bracket,
    (r"<mi>(log|exp)</mi>(?!<mo[^>]*>&#x00028;|</mrow><mo)", rf"{_SPACE}<mi>\1</mi>{_SPACE}"),  # some before a letter
)
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def mathml(latex: str, block: bool) -> str:
    """An equation as MathML.

    Raises:
        ValueError: it holds a command that latex2mathml does not know and would print as it stands.
    """
    result = latex2mathml.converter.convert(latex, display="block" if block else "inline")
    if found := re.search(r"\\\w+|<mi>&amp;</mi>|<mi>&</mi>|\\begin", html.unescape(result)):
        raise ValueError(f"the equation {latex.strip()!r} has no MathML for {found[0]}")
    for pattern, replacement in _REPAIRS:
        result = re.sub(pattern, replacement, result)
    return result


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """The equations of a page as MathML."""

    def convert(match: re.Match[str]) -> str:
        block = match[1] == "div"
        try:
            result = mathml(html.unescape(match[2]), block)
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: {error}") from error
        return f'<div class="equation">{result}</div>' if block else result

    return _EQUATION.sub(convert, content)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The listing of the groups in place of its mark."""
    return markdown.replace(MARK, groups(CONFIGS)) if MARK in markdown else markdown


def groups(configs: Path) -> str:
    """Markdown: each config group with its choices, what the first comment of each file says, and the files."""
    found = (folder for folder in configs.rglob("*") if folder.is_dir() and folder.name != "published")  # rows of data
    folders = sorted(folder for folder in found if list(folder.glob("*.yaml")))
    parts = []
    for folder in folders:
        name = folder.relative_to(configs).as_posix()
        parts.append(f"### `{name}`\n")
        for file in sorted(folder.glob("*.yaml")):
            text = file.read_text(encoding="utf-8").strip()
            yaml.safe_load(text)
            body = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
            parts.append(f'??? note "`{name}={file.stem}`{_summary(text)}"\n\n    ```yaml\n{body}\n    ```\n')
    return "\n".join(parts)


def _summary(text: str) -> str:
    """The first sentence of the comment that a yaml file opens with."""
    comments = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        words = line.lstrip("# ")
        if words and not words.startswith(("@package", "vi-lab ")):
            comments.append(words)
    sentence = re.split(r"(?<=[.:])\s", " ".join(comments))[0].rstrip(".:").replace('"', "'")
    return f": {sentence}" if sentence else ""
