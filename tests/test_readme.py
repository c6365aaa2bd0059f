"""What README shows works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vi_lab.config import check_overrides, read_arguments
from vi_lab.schema import CONFIG_DIR

README = Path(__file__).resolve().parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.split("#")[0].removeprefix("vi-lab train"))
    for block in re.findall(r"```sh\n(.*?)```", TEXT.replace("\\\n", " "), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("vi-lab train")
]


def test_the_standalone_snippet_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    assert names["logits"].grad.abs().sum() > 0
    assert names["estimate"].cost.shape == (4, 8)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_compose(command: list[str]) -> None:
    arguments = read_arguments(command)
    if not arguments.help and arguments.config_dir is None and "accelerator=gpu" not in arguments.overrides:
        overrides = [o for o in arguments.overrides if not o.startswith("hydra")]
        check_overrides("train", overrides, arguments.multirun)


def test_the_estimator_table_is_complete() -> None:
    section = TEXT.split("## Estimators")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
    assert named == {path.stem for path in (CONFIG_DIR / "estimator").glob("*.yaml")}


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (README.parent / target).exists(), target
