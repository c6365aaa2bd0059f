"""Arguments of commands: argparse with our errors, and folders, which all take as FOLDER and as run=FOLDER."""

from __future__ import annotations

import argparse
import difflib
import glob
import os
import re
from collections.abc import Iterable
from typing import NoReturn

from vi_lab.errors import UserError


class Parser(argparse.ArgumentParser):
    """Reports a mistake in the arguments as a `UserError`, in one line."""

    def error(self, message: str) -> NoReturn:
        """Where argparse would print usage and exit.

        Raises:
            UserError: always.
        """
        flag = re.search(r"(?<=: )--?[^\s=]+", message)  # of those that it does not know the first
        near = difflib.get_close_matches(flag[0], self.options, n=1) if flag else []
        raise UserError(f"{message}; {f'did you mean {near[0]}?' if near else '--help shows what there is'}")

    @property
    def options(self) -> dict[str, argparse.Action]:
        """What each flag does, by all its names."""
        return {flag: action for action in self._actions for flag in action.option_strings}


def folder_of(word: str) -> str:
    """The folder, or the pattern, that FOLDER or run=FOLDER names: a `type` for argparse."""
    return word if not word.startswith("run=") or _is_there(word) else unquote(word.removeprefix("run="))


def split_folders(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Folders, given as FOLDER, and all other words. What is there is a folder, whatever its name looks like: jobs of
    sweeps are called 0-rloo-temperature=0.5-s0."""
    folders: list[str] = []
    others: list[str] = []
    for word in words:
        is_folder = _is_there(word) or ("=" not in word and not word.startswith(("+", "~")))
        (folders if is_folder else others).append(word)
    return folders, others


def unquote(text: str) -> str:
    """`text` without the quotes around it, which Hydra takes."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _is_there(word: str) -> bool:
    return os.path.exists(word) or bool(glob.glob(word))
