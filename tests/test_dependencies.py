"""What the package imports is declared in pyproject.toml, and what is declared is imported."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from vi_lab import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"
pytestmark = pytest.mark.skipif(not PROJECT.is_file(), reason="not a checkout")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> dict[str, str]:
    """Every module of others that vi_lab imports, wherever in a file, and the first file that does."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "vi_lab").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in (name.partition(".")[0] for name in names):
                if name not in {*sys.stdlib_module_names, "_typeshed", "vi_lab"}:  # type checkers bring _typeshed
                    found.setdefault(name, str(file.relative_to(ROOT)))
    return found


def declared(*extras: str) -> set[str]:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonical(Requirement(line).name) for line in lines}


def test_every_import_is_declared() -> None:
    distributions = metadata.packages_distributions()
    undeclared = {
        name: file
        for name, file in imported().items()
        if not {canonical(one) for one in distributions.get(name, [])} & declared("tune")
    }
    assert undeclared == {}


def test_every_declared_package_is_imported() -> None:
    distributions = metadata.packages_distributions()
    used = {canonical(one) for name in imported() for one in distributions.get(name, [])}
    assert declared() - used == set()


def test_installed_versions_are_accepted() -> None:
    for line in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True), line


def test_the_version_stands_once_more_for_citations_and_in_the_changelog() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
