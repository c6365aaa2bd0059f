"""The table at the end of a run."""

from __future__ import annotations

from vi_lab.console import Terminal
from vi_lab.training.report import report


def shown(width: int = 80, **final: float) -> list[list[str]]:
    terminal = Terminal(width=width, record=True, file=None, quiet=False)
    with terminal.capture() as capture:
        report(terminal, {name.replace("__", "/"): value for name, value in final.items()})
    lines = [line for line in capture.get().splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]


def test_rows_compare_and_have_units() -> None:
    """The relaxed loss does not stand beside unrelaxed ones."""
    rows = shown(
        train__loss=100.0, train__loss_unrelaxed=103.0, train__relaxation_gap=3.0, train__kl=5.0,
        train__posterior_perplexity=4.5, val__loss=104.0, test__loss=105.0, test__nll=99.0, test__nll_error=0.25,
        test__bits_per_dimension=0.19, test__active_units=7, test__loss_relaxed=101.0, temperature=0.5,
    )  # fmt: skip
    assert rows == [
        ["metric", "train", "val", "test", "unit"],
        ["loss", "103.00", "104.00", "105.00", "nats"],
        ["loss as optimized", "100.00", "", "101.00", "nats"],
        ["relaxation_gap", "3.00", "", "", "nats"],
        ["kl", "5.00", "", "", "nats"],
        ["nll", "", "", "99.00 ± 0.25", "nats"],
        ["bits_per_dimension", "", "", "0.1900", "bits"],
        ["active_units", "", "", "7", "variables"],
        ["posterior_perplexity", "4.5", "", "", "classes"],
    ]


def test_a_narrow_terminal_does_without_units_first() -> None:
    final = {"train__loss": 100.0, "test__loss": 105.0, "test__posterior_perplexity": 4.5}
    assert shown(42, **final)[0] == ["metric", "train", "test"]
    assert shown(35, **final)[1:] == [["loss", "105.00"], ["posterior_perplexity", "4.5"]]


def test_what_is_not_relaxed_has_no_rows_for_it() -> None:
    rows = shown(train__loss=100.0, train__loss_unrelaxed=100.0, train__relaxation_gap=0.0, test__loss=101.0)
    assert rows == [["metric", "train", "test", "unit"], ["loss", "100.00", "101.00", "nats"]]


def test_losses_of_a_toy_problem_are_costs() -> None:
    rows = shown(train__loss=0.25, train__expected_cost=0.251, val__loss=0.24951, test__loss=0.24951)
    assert rows == [
        ["metric", "train", "val", "test", "unit"],
        ["loss", "0.250000", "0.249510", "0.249510", "cost"],
        ["expected_cost", "0.251000", "", "", "cost"],
    ]
