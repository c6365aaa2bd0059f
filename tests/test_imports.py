"""Imports point one way: commands -> training, comparison -> runs, build, figures -> the mathematics. No circle.

Deferred imports count like all others; those for type checkers do not, as they are never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vi_lab"

ROOMS = [
    {"version", "errors", "machine", "adapters"},
    {"arguments", "console", "schema", "published", "atlas", "seeding", "noise", "distributions", "schedules"},
    {"estimators"},
    {"latents", "priors", "likelihoods", "networks", "objectives", "problems", "data"},
    {"models", "evaluation", "audit"},
    {"config"},
    {"build"},
    {"runs"},
    {"figures"},
    {"training", "comparison"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
]
"""From the ground up: a room imports from its own and from those above it in this list, never from those below."""

MATHEMATICS = {"seeding", "noise", "distributions", "schedules", "estimators", "latents", "priors", "likelihoods",
               "networks", "objectives", "problems", "evaluation", "audit"}  # fmt: skip
ONLY_IN = {
    "lightning": {"models", "data.module", "adapters.lightning", *[f"training.{file.stem}" for file in
                  (PACKAGE / "training").glob("*.py") if file.stem not in ("__init__", "execution", "process")]},
    "hydra": {"config", "build", "adapters.hydra", *[f"commands.{file.stem}" for file in
              (PACKAGE / "commands").glob("*.py")]},
}  # fmt: skip
"""Where a library may be imported."""


def module_of(file: Path) -> str:
    """vi_lab/runs/run.py -> runs.run, vi_lab/runs/__init__.py -> runs, vi_lab/__init__.py -> __init__"""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(node: ast.AST) -> Iterator[str]:
    """Every dotted name that code imports when it is run, at whatever depth."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (f"{node.module}.{name.name}" for name in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def own(name: str) -> str | None:
    """The module of this package that a dotted name lies in."""
    if not name.startswith("vi_lab."):
        return "__init__" if name == "vi_lab" else None
    name = name.removeprefix("vi_lab.")
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or "__init__"


NAMES = {module: set(imported(ast.parse(file.read_text(encoding="utf-8")))) for module, file in FILES.items()}
ARROWS = {module: {other for name in names if (other := own(name))} - {module} for module, names in NAMES.items()}


def level(module: str) -> int:
    room = module.split(".")[0]
    return next(number for number, rooms in enumerate(ROOMS) if room in rooms)


def test_every_module_has_a_room() -> None:
    assert {module.split(".")[0] for module in FILES} == set().union(*ROOMS)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module: str) -> None:
    upward = {other for other in ARROWS[module] if level(other) > level(module)}
    assert not upward, f"{module} imports {upward}"


def test_training_and_comparison_do_not_know_each_other() -> None:
    both = {module: ARROWS[module] for module in FILES if module.startswith(("training", "comparison"))}
    for module, others in both.items():
        room = module.split(".")[0]
        assert not {o for o in others if o.startswith(("training", "comparison")) and not o.startswith(room)}, module


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in ARROWS[module]:
                walk(other, (*path, module))
            done.add(module)

    for module in FILES:
        walk(module, ())


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_in_its_rooms_only(library: str) -> None:
    users = {module for module, names in NAMES.items() if any(name.split(".")[0] == library for name in names)}
    assert users <= ONLY_IN[library]


@pytest.mark.parametrize("module", [module for module in FILES if module.split(".")[0] in MATHEMATICS])
def test_the_mathematics_is_plain_pytorch(module: str) -> None:
    libraries = {name.split(".")[0] for name in NAMES[module]}
    assert not libraries & {"hydra", "omegaconf", "lightning", "rich", "matplotlib", "pandas"}


def test_private_parts_of_other_libraries_are_used_in_the_adapters_only() -> None:
    for module, names in NAMES.items():
        private = {n for n in names if not n.startswith("vi_lab") and any(p[:1] == "_" != p[:2] for p in n.split("."))}
        private -= {n for n in private if n.startswith("__future__")}
        assert not private or module.startswith("adapters."), f"{module}: {private}"
