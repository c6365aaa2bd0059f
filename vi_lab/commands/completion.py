"""`vi-lab -sc install=SHELL`, `vi-lab -sc query=SHELL`: what TAB completes, quickly and without a word on errors.

The shell asks `query` with the line until the cursor in COMP_LINE. Groups, choices and keys are as Hydra knows them;
commands, flags, folders, and the values of keys that have few are ours.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import yaml

from vi_lab.arguments import Parser
from vi_lab.commands import COMMANDS
from vi_lab.config import complete_override, flags_parser
from vi_lab.errors import UserError
from vi_lab.runs.files import CONFIG_FILE
from vi_lab.schema import CONFIG_DIR, FOLDER, INNER, REPRODUCE, has, marked, row

BASH = r"""_vi_lab() {
    local answer
    COMPREPLY=()
    while IFS= read -r answer; do
        COMPREPLY+=("$answer")
    done < <(COMP_LINE="${COMP_LINE:0:$COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null </dev/null)
    # a blank behind what is complete, where the shell can say so for one word
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} != *[=./] ]] && compopt +o nospace 2>/dev/null
    return 0
}
complete -o nospace -F _vi_lab vi-lab
"""
ZSH = """(( $+functions[compdef] )) || { autoload -U compinit && compinit; }
autoload -U +X bashcompinit && bashcompinit
"""
FISH = r"""complete -c vi-lab -e
complete -c vi-lab -f -a '(COMP_LINE=(commandline -cp) vi-lab -sc query=fish 2>/dev/null </dev/null)'
"""
SCRIPTS = {
    "install=bash": BASH,
    "install=zsh": ZSH + BASH,
    "install=fish": FISH,
    "uninstall=bash": "complete -r vi-lab; unset -f _vi_lab\n",
    "uninstall=zsh": "compdef -d vi-lab; unset -f _vi_lab\n",
    "uninstall=fish": "complete -c vi-lab -e\n",
}
HYDRAS = ("train", "tune", "evaluate", "audit")
"""Commands that take overrides."""
HIDDEN = set(INNER) - {"model", "hydra"}


def main(arguments: list[str]) -> int:
    """Print a script for a shell, or what the shell asks for.

    Raises:
        UserError: another word than those.
    """
    wanted = arguments[-1]
    if wanted in ("query=bash", "query=zsh", "query=fish"):
        with suppress(Exception, SystemExit):  # there is nothing to complete, and nobody to read why
            line = os.environ.get("COMP_LINE", "")
            for answer in complete(line, os.environ.get("COMP_WORDBREAKS", "") if wanted == "query=bash" else ""):
                print(answer)
        return 0
    if wanted not in SCRIPTS:
        raise UserError(f"{wanted}: wanted one of {', '.join(SCRIPTS)}")
    print(SCRIPTS[wanted], end="")
    return 0


def complete(line: str, breaks: str = "") -> list[str]:
    """What the last word of a command line may become.

    Args:
        line: until the cursor.
        breaks: where the shell begins a new word; what stands before it is not repeated.
    """
    *before, word = _words(line)
    quote = word[0] if word[:1] in ("'", '"') else ""
    if not quote and re.search(r"""(?<!\\)['"]""", word):
        return []  # opened within the word
    word = word[1:] if quote else re.sub(r"\\(.)", r"\1", word)
    answers = sorted(
        {answer for answer in _answers(before[1:], word) if answer.startswith(word) and answer.isprintable()}
    )
    if quote:  # what the shell would not take as it stands between the quotes is not offered: it might be run
        return [answer for answer in answers if not set(answer) & set("'" if quote == "'" else '"$`\\!')]
    kept = max((word.rfind(mark) + 1 for mark in breaks if mark in "=:"), default=0)
    return [re.sub(r"([^\w./=:,+~@%\[\]-])", r"\\\1", answer[kept:]) for answer in answers]


def _words(line: str) -> list[str]:
    """The words of a line; the last, which may be empty or lack its closing quote, as it stands."""
    words = re.findall(r"""(?:'[^']*(?:'|$)|"[^"]*(?:"|$)|\\.|[^\s'"\\])+""", line)
    last = words.pop() if words and line.endswith(words[-1]) else ""
    return [*(re.sub(r"""\\(.)|['"]""", r"\1", word) for word in words), last]


def _answers(before: list[str], word: str) -> list[str]:
    """What may stand in the place of `word`.

    Args:
        before: the words of the line before it, without `vi-lab`.
    """
    if not before:
        return [*COMMANDS, "--help", "--version"]
    name, *before = before
    hydras = name in HYDRAS
    parser: Parser = flags_parser() if hydras else importlib.import_module(COMMANDS[name][0]).parser()
    flag = parser.options.get(before[-1]) if before else None
    if flag is not None and flag.nargs is None:  # it takes a value
        names_folder = flag.metavar == "FOLDER" or flag.dest == "config_dir"
        return list(flag.choices or ()) or (_folders(word) if names_folder else [])
    if word.startswith("-"):
        return [*parser.options, "--debug"]
    if word.startswith("run=") and name != "train":
        return [f"run={folder}" for folder in _folders(word.removeprefix("run="))]
    if not hydras:
        keys = [f"{key}=" for key in marked(REPRODUCE)] if name == "reproduce" else []
        return [*keys, *_folders(word)]
    folders = _folders(word) if name != "train" else []
    return [*folders, *_overrides(name, word, before)]


def _overrides(name: str, word: str, before: list[str]) -> list[str]:
    """GROUP=CHOICE and KEY=VALUE, also behind the comma of a sweep or of a list."""
    key, equals, value = word.partition("=")
    if equals and has(key.lstrip("+"), FOLDER):
        return [f"{key}={folder}" for folder in _folders(value)]
    done = max(value.rfind(","), value.rfind("[")) + 1
    known = row(key.lstrip("+"))
    if equals and known is not None and known.rule is not None and known.rule.names:
        return [f"{key}={value[:done]}{other}" for other in known.rule.names]
    multirun = not {"-m", "--multirun"}.isdisjoint(before)
    config_dir = next((after for flag, after in pairwise(before) if flag in ("-cd", "--config-dir")), None)
    overrides = [other for other in before if re.match(r"[^-=][^=]*=.", other)]
    asked = f"{key}={value[done:]}" if equals else word
    found = complete_override(name, asked, overrides, multirun, config_dir)
    if equals:
        return [f"{key}={value[:done]}{other.removeprefix(f'{key}=')}" for other in found]
    return [other for other in _with_choices(name, word, found) if other.rstrip("=.").rpartition(".")[2] not in HIDDEN]


def _with_choices(name: str, word: str, found: list[str]) -> Iterator[str]:
    """Hydra's answers, but choices of the command's own groups only. Of a group first comes GROUP= alone; GROUP.KEY and
    GROUP/SUBGROUP where the group's name is there already."""
    sign = word[0] if word.startswith(("+", "~")) else ""
    groups = {f"{sign}{group}" for group in _groups(name)}
    for other in found:
        bare = other.rstrip("./=")
        if bare in groups and bare != word:
            yield f"{bare}="
        elif other == bare and bare in groups:  # it has subgroups, too
            yield from (f"{bare}=", f"{bare}/")
        elif other.endswith(".") or bare.partition("/")[0] in groups or not (CONFIG_DIR / bare.lstrip(sign)).is_dir():
            yield other


def _groups(name: str) -> Iterator[str]:
    """Of which groups a command takes choices."""
    for entry in yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]:
        if isinstance(entry, dict):
            yield from entry
        elif entry != "_self_":
            yield from _groups(entry)


def _folders(word: str) -> list[str]:
    """Folders that begin with `word`: a run as it is, others with a slash, for what is in them."""
    place, _, start = word.rpartition("/")
    place += "/" if place or word.startswith("/") else ""
    found = []
    for path in Path(os.path.expanduser(place) or ".").iterdir():
        if path.is_dir() and path.name.startswith(start) and path.name.startswith(".") <= start.startswith("."):
            found.append(f"{place}{path.name}" + ("" if (path / CONFIG_FILE).is_file() else "/"))
    return found
