"""The shape of the tests: rooms as in `vi_lab`, and no test that leans on another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vi_lab

TESTS = Path(__file__).resolve().parent
PACKAGE = Path(vi_lab.__file__).resolve().parent


def imported(module: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it, and the names that it takes from them, which may be modules."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.relative_to(TESTS.parent).parts[: -node.level] if node.level else ()
            source = ".".join([*package, *filter(None, [node.module])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def test_no_module_imports_a_test() -> None:
    """What tests share lies in modules that are no tests: each test module can change and go without the others."""
    for module in sorted(TESTS.rglob("*.py")):
        found = [name for name in imported(module) if any(part.startswith("test_") for part in name.split("."))]
        assert not found, f"{module.relative_to(TESTS)} imports {', '.join(found)}"


def test_an_import_of_a_test_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "tests" / "data" / "some.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(f"{__name__}.TESTS", tmp_path / "tests")
    for line in ("from tests.data.test_data import load", "import tests.data.test_data as t", "from . import test_data",
                 "from tests.data import test_data", "from .test_data import load",
                 "def f():\n    from tests.data.test_data import load"):  # fmt: skip
        module.write_text(line)
        assert any("test_data" in name.split(".") for name in imported(module)), line


def test_the_rooms_are_those_of_the_package() -> None:
    rooms = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")} - {"."}
    assert {room for room in rooms if not (PACKAGE / room / "__init__.py").is_file()} == set()
    assert all((TESTS / room / "__init__.py").is_file() for room in rooms)
