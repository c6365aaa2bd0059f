"""What README and docs/ show works: every code block is run, composed or parsed, and the site builds without a warning.

A block that cannot be run says so in a comment above its fence, `<!-- not run: WHY -->`, and is counted here. A fence
with the language `text` is no code: output, or a folder tree.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from packaging.requirements import Requirement

from vi_lab import cli
from vi_lab.commands.tune import _Search
from vi_lab.config import check_overrides, quote, read_arguments

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

LANGUAGES = {"sh", "python", "py", "yaml", "toml", "text"}
NOT_RUN = 3
"""How many blocks may say that they are not run."""
TEXT = 1
"""How many blocks may be no code."""

SMALL = ["data=digits", "trainer.max_epochs=1", "figures=false", "evaluation.samples=null", "accelerator=cpu",
         "threads=1", "trainer.limit_train_batches=2"]  # fmt: skip


# --- blocks --------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    """The file that the block is, relative to the reader's folder; empty where it is a part."""
    text: str
    not_run: str
    """Why it is not run; empty where it is."""


FENCE = re.compile(
    r'^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


def blocks_of(page: Path) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    return [
        Block(page, source.count("\n", 0, m.start()) + 1, m["language"], m["title"] or "", m["text"], m["why"] or "")
        for m in FENCE.finditer(source)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block as words, without comments, `exec` and variables of the shell."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.title:  # a script: `bash -n` reads the rest
        lines = [line for line in lines if re.search(r"\bvi-lab\b", line.split("#")[0])]
    lines = [re.sub(r"\$\w+", "FOLDER", re.sub(r"\$SLURM\w+", "1", line)) for line in lines]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] if line[0] == "exec" else line for line in words if line]


COMMANDS = [(b.page, words) for b in BLOCKS if b.language == "sh" and not b.not_run for words in commands_of(b)]


def as_vi_lab(words: list[str]) -> list[str] | None:
    """The arguments of vi-lab; None where another program is called."""
    if words[0] == "vi-lab":
        return words[1:]
    return words[3:] if words[:3] == ["python", "-m", "vi_lab"] else None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; what pages import from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if module.split(".")[0] == "mypkg":
            del sys.modules[module]


def write_files(page: Path, folder: Path) -> None:
    """The files that the page tells its reader to write."""
    for block in blocks_of(page):
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")


def test_no_block_escapes() -> None:
    for page in PAGES:
        fences = sum(line.startswith(("```", "~~~")) for line in page.read_text(encoding="utf-8").splitlines())
        assert fences == 2 * len(blocks_of(page)), f"{name(page)}: a fence that is not read"
    unknown = [f"{name(b.page)}:{b.line}: {b.language!r}" for b in BLOCKS if b.language not in LANGUAGES]
    assert not unknown
    assert sum(bool(block.not_run) for block in BLOCKS) <= NOT_RUN
    assert sum(block.language == "text" for block in BLOCKS) <= TEXT


# --- shell ---------------------------------------------------------------------------------------------------------


SWEEP_OF_ALL = "estimator=glob(*)"
"""Composes every estimator, as tests/test_config.py does too."""


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(p, w, id=f"{name(p)}: {' '.join(w)}", marks=[pytest.mark.slow] if SWEEP_OF_ALL in w else [])
        for p, w in COMMANDS
    ],
)
def test_commands(page: Path, words: list[str], folder: Path, capsys: pytest.CaptureFixture) -> None:
    write_files(page, folder)
    arguments = as_vi_lab(words)
    if arguments is not None:
        check_vi_lab(arguments, capsys)
    elif words[0] == "export":
        assert re.fullmatch(r"[A-Z_]+=\S+", words[1])
    elif words[0].startswith("scripts/") or (words[0] == "python" and words[1].startswith("scripts/")):
        script, *rest = words if words[0] != "python" else words[1:]
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in rest:
            assert not option.startswith("--") or option in source
    elif "install" in words[:3] and words[0] in ("pip", "uv"):
        check_install(words[words.index("install") + 1 :])
    else:
        pytest.fail(f"{shlex.join(words)}: not a command that is known here")


def check_vi_lab(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    """The command exists and takes these arguments."""
    command, *rest = arguments
    assert command in cli.COMMANDS
    if command == "tune":
        pytest.importorskip("optuna")
        _Search(read_arguments(rest))
        return
    if command not in ("train", "audit", "evaluate"):
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
        usage = capsys.readouterr().out
        for option in rest:
            assert not option.startswith("-") or option in usage, option
        return
    multirun, config_dir, overrides = False, None, []
    rest = iter(rest)
    for word in rest:
        if word in ("--help", "--debug", "--dry-run"):
            continue
        if word in ("-m", "--multirun"):
            multirun = True
        elif word == "--cfg":
            assert next(rest) in ("job", "hydra", "all")
        elif word == "--config-dir":
            config_dir = next(rest)
        else:
            assert "=" in word or command != "train", word
            overrides.append(word if "=" in word else f"run={quote(word)}")
            multirun |= word.startswith("resume=")  # of a sweep, which may be given more values
    if config_dir and not Path(config_dir).is_dir():
        assert config_dir.isupper(), "a folder that the page does not make"
        return  # a placeholder: FOLDER
    if any("launcher" in override for override in overrides):  # plugins are no dependencies
        overrides = [o for o in overrides if not o.startswith(("hydra/launcher=", "hydra.launcher."))]
    check_overrides(command, overrides, multirun, config_dir)


def check_install(arguments: list[str]) -> None:
    source = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for argument in arguments:
        if argument.startswith("-"):
            continue
        path, _, extras = argument.partition("[")
        if (ROOT / path).is_dir():
            assert (ROOT / path / "pyproject.toml").is_file()
            for extra in filter(None, extras.rstrip("]").split(",")):
                assert re.search(rf"^{extra} = \[", source, re.MULTILINE), f"there is no extra {extra}"
        else:
            Requirement(argument)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh" and b.title], ids=lambda b: b.title)
def test_scripts_parse(block: Block) -> None:
    bash = shutil.which("bash") or pytest.skip("there is no bash")
    subprocess.run([bash, "-n"], input=block.text, text=True, check=True)


PACKAGES = [page for page in PAGES if any(block.title.startswith("mypkg/") for block in blocks_of(page))]


@pytest.mark.parametrize("page", PACKAGES, ids=name)
def test_classes_of_ones_own_train(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The pages on own classes are followed to the letter, but for the length of training."""
    write_files(page, folder)
    monkeypatch.setenv("VI_LAB_TRUST", "")  # put back afterwards
    for words in (words for where, words in COMMANDS if where == page):
        arguments = as_vi_lab(words)
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("=", 1))
        elif arguments is not None and "-m" not in arguments:
            chosen = {argument.split("=")[0] for argument in arguments}
            small = [o for o in SMALL if o.split("=")[0] not in chosen - {"trainer.max_epochs"}]
            small = small if arguments[0] == "train" else ["evaluation.images=100"]
            arguments = [a for a in arguments if a.split("=")[0] not in {o.split("=")[0] for o in small}]
            assert cli.main([*arguments, *small]) == 0, capsys.readouterr().err


# --- Python --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, as the pages that open one suppose."""
    run = tmp_path_factory.mktemp("docs") / "run"
    arguments = ["train", "estimator=rloo", *SMALL, "figures=true", f"hydra.run.dir={run}"]
    assert cli.main([a for a in arguments if a != "figures=false"]) == 0
    return run


PYTHON = [page for page in PAGES if any(block.language in ("python", "py") for block in blocks_of(page))]


@pytest.mark.parametrize("page", PYTHON, ids=name)
@pytest.mark.filterwarnings("default")  # Lightning has advice
def test_python(page: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    """The blocks of a page run one after the other, as its reader would run them."""
    write_files(page, folder)
    blocks = [b for b in blocks_of(page) if b.language in ("python", "py") and not b.title and not b.not_run]
    for run in re.findall(r'load_run\("([^"]+)"', "".join(block.text for block in blocks)):
        shutil.copytree(request.getfixturevalue("trained"), folder / run, dirs_exist_ok=True)
    names: dict = {"__name__": "__main__"}
    if page == README:
        names["x"] = torch.rand(2, 1, 28, 28)  # "x" there is any batch of images
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(compile("\n" * block.line + block.text, name(page), "exec"), names)
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.close("all")


# --- yaml ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda b: f"{name(b.page)}:{b.line} {b.title}"
)
def test_yaml(block: Block) -> None:
    """It parses; a whole file is a choice that a command on its page makes, which `test_commands` composes."""
    assert yaml.safe_load(block.text)
    if block.title:
        _, group, choice = Path(block.title).with_suffix("").parts
        made = [word for page, words in COMMANDS if page == block.page for word in words]
        assert any(re.fullmatch(rf"{group}=.*\b{choice}\b.*", word) for word in made)


# --- the rest of the pages -------------------------------------------------------------------------------------------


def table(page: Path, heading: str) -> set[str]:
    """The names in the first column of the tables below a heading."""
    section = page.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([\w/.]+)`", section, re.MULTILINE))


def choices(group: str) -> set[str]:
    return {path.stem for path in (CONFIGS / group).glob("*.yaml")}


def test_the_estimator_table_is_complete() -> None:
    assert table(README, "Estimators") == choices("estimator")


def test_every_estimator_has_its_place_among_the_methods() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "methods").glob("*.md"))
    named = set(re.findall(r"`estimator=(\w+)`|^\| `(\w+)` \| ", text, re.MULTILINE))
    assert {first or second for first, second in named} >= choices("estimator")


def test_the_configuration_page_names_every_group() -> None:
    groups = {p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*") if p.is_dir() and list(p.glob("*.yaml"))}
    groups -= {"published", "atlas"}  # data
    assert table(ROOT / "docs" / "reference" / "configuration.md", "Groups") == groups


def test_the_configuration_page_names_every_top_level_key() -> None:
    shipped = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
    keys = {key for key in shipped if key not in ("defaults", "hydra")}
    keys -= {p.name for p in CONFIGS.iterdir() if p.is_dir()}
    named = {key.split(".")[0] for key in table(ROOT / "docs" / "reference" / "configuration.md", "Top-level keys")}
    assert named >= keys - {"trainer"}


def test_links_and_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strictly, so that a broken link or anchor, a page outside the navigation, or an equation that is not understood
    fails; and nothing in it is fetched from elsewhere."""
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; the extra `docs` brings it")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, f"{page.name}: an equation that was left as it is"
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//[^"]*"', text)
        fetched += re.findall(r'<link[^>]*\bhref="(?:https?:)?//[^"]*"', text)
        assert not fetched, f"{page.name}: {fetched}"
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
