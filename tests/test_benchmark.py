"""The benchmark: every measurement runs, and its table replaces the one that stands in the documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import MEASUREMENTS  # noqa: E402
from benchmarks.common import Options, Result, ratio, rewrite  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"
OPTIONS = Options([], 2, 10, (), Path())


def test_the_page_has_a_place_for_every_measurement() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in MEASUREMENTS:
        inside = text.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]
        assert f"python scripts/benchmark.py {name}" in inside


def test_a_table_replaces_the_one_of_its_name_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\nkept\n<!-- /two -->\n")
    for value in ("1", "2"):
        result = Result(["x", "y"], [["row", value]])
        rewrite(page, "one", ["one", "data.root=/somewhere/private", "--rounds", "2"], result, OPTIONS)
    text = page.read_text()
    assert "| row | 2 |" in text
    assert "| row | 1 |" not in text
    assert "old" not in text
    assert "python scripts/benchmark.py one data.root=FOLDER --rounds 2" in text
    assert "private" not in text
    assert text.endswith("b\n<!-- two -->\nkept\n<!-- /two -->\n")
    with pytest.raises(ValueError, match="<!-- three -->"):
        rewrite(page, "three", [], result, OPTIONS)


def test_a_ratio_is_taken_within_each_round() -> None:
    assert ratio([1.0, 10.0, 100.0], [0.5, 5.0, 50.0]) == 2.0


def test_matrix_products_are_recorded_forward_and_backward() -> None:
    import torch
    from benchmarks.parts import Products

    layer = torch.nn.Linear(4, 3)
    with Products() as recorded:
        layer(torch.ones(2, 4, requires_grad=True)).sum().backward()
    assert len(recorded.calls) == 3  # the output, and the gradients of weight and input
    recorded.repeat()


SMALL = {
    "estimators": ["--estimators", "gaussian,exact"],
    "evaluation": ["evaluation.samples=10"],
    "runner": ["--estimators", "gumbel_softmax"],
    "stacked": ["--estimators", "gaussian"],
}
"""The others start many processes, compile, or train for long."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_measurement_runs(name: str) -> None:
    given = ["data=digits", "--rounds", "1", "--steps", "4", *SMALL[name]]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", name, *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert MEASUREMENTS[name].split()[0] in done.stdout
