"""`--help` of the commands that take overrides: groups, and each key with its default and the comment on it in the yaml
files, which are the only place where keys are explained."""

from __future__ import annotations

import argparse
import re
import shutil
import string
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from vi_lab.config import choices_of_groups, compose_job
from vi_lab.schema import CONFIG_DIR, INNER, MAY_BE_EMPTY

COLUMN = 34
"""Where comments begin."""
KEY = re.compile(r"(\s*)([\w/]+):(.*?)(?:\s# (.*))?")
"""A line of a yaml file: indent, key, value, comment."""


def help_text(name: str, arguments: argparse.Namespace) -> str:
    """The help of the command `name`, of the config that the overrides choose, as wide as the terminal."""
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    config = compose_job(name, arguments.overrides, arguments.config_dir)
    template = string.Template(config.hydra.help.template)
    folders = [CONFIG_DIR, *([Path(arguments.config_dir)] if arguments.config_dir else [])]
    choices = {group: [choice] for group, choice in config.hydra.runtime.choices.items() if choice is not None}
    listed = {group: list(config.get(group) or ()) for group in MAY_BE_EMPTY}
    files = [(folder / f"{command}.yaml", "") for command in _chain(name) for folder in folders]
    for group, names in {**choices, **listed}.items():
        package = group.replace("/", ".")
        files += [(folder / group / f"{choice}.yaml", package) for choice in names for folder in folders]
    comments = {key: text for file, package in reversed(files) for key, text in read_comments(file, package).items()}
    values = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    groups = (f"{group}: {', '.join(names)}" for group, names in choices_of_groups(name, arguments.config_dir).items())
    shown = [textwrap.fill(line, width, subsequent_indent="    ", break_on_hyphens=False) for line in groups]
    return template.substitute(APP_CONFIG_GROUPS="\n".join(shown), CONFIG="\n".join(_rows(values, comments, width)))


def read_comments(file: Path, package: str = "") -> dict[str, str]:
    """The comments of a yaml file by dotted key, and of the files that it builds on: on a key's own line, above a node,
    and for the file itself its first lines.

    Args:
        package: the node that the file fills; "" for the config as a whole.
    """
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for base in (yaml.safe_load(text) or {}).get("defaults") or ():
        if package and isinstance(base, str) and base != "_self_":
            for folder in (CONFIG_DIR / package.replace(".", "/"), file.parent):  # one's own builds on a shipped one
                found |= read_comments(folder / f"{base}.yaml", package)
    above: list[str] = []
    path: list[tuple[int, str]] = [(-1, package)] if package else []
    first = True  # nothing but comments yet
    for line in text.splitlines():
        if comment := re.fullmatch(r"\s*# (?!@package)(.*)", line):
            above.append(comment[1])
            continue
        key = KEY.fullmatch(line)
        if first and package and above:
            found[package] = " ".join(above)
        elif key and above and not first:
            key = KEY.fullmatch(f"{line} # {' '.join(above)}")
        first, above = first and line.startswith("#"), []
        if key is None:
            continue
        indent = len(key[1])
        path = [*(part for part in path if part[0] < indent), (indent, key[2])]
        if key[4]:
            found[".".join(name for _, name in path)] = key[4]
    return found


def _chain(name: str) -> Iterator[str]:
    """The commands on whose config this one's builds, itself first."""
    yield name
    for base in yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]:
        if isinstance(base, str) and base != "_self_":
            yield from _chain(base)


def _rows(node: Any, comments: dict[str, str], width: int, prefix: str = "") -> Iterator[str]:
    """Nested values as lines, indented as in yaml, with the comments beside them."""
    indent = "  " * prefix.count(".")
    for key, value in node.items():
        if key in INNER or key.startswith("_"):
            continue
        inner = list(_rows(value, comments, width, f"{prefix}{key}.")) if isinstance(value, dict) else []
        if inner or not isinstance(value, dict):
            shown = f"{indent}{key}:" + ("" if inner else f" {_show(value)}")
            yield from _beside(shown, comments.get(f"{prefix}{key}", ""), width)
            yield from inner


def _beside(left: str, comment: str, width: int) -> Iterable[str]:
    """A line and its comment, which is wrapped in a column of its own; below a line that reaches into it."""
    lines = textwrap.wrap(comment, width - COLUMN, break_on_hyphens=False, break_long_words=False)
    if len(left) >= COLUMN - 1 and lines:
        lines.insert(0, "")
    rows = [f"{left if not number else '':<{COLUMN}}{line}".rstrip() for number, line in enumerate(lines)]
    return rows or [left]


def _show(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()
