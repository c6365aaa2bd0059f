"""The terminal: tables that fit it."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from vi_lab.commands import audit, evaluate
from vi_lab.console import Heading, Terminal, number, print_tables

WIDTHS = (60, 80, 100, 140)


def terminal(width: int) -> Terminal:
    return Terminal(width=width, record=True, force_terminal=True, file=io.StringIO())


def lines(console: Terminal) -> list[str]:
    found = console.export_text().splitlines()
    assert all(len(line) <= console.width for line in found)
    assert not any("…" in line for line in found)
    return found


@pytest.mark.parametrize("width", [30, *WIDTHS])
def test_names_are_folded_and_numbers_left_out_but_never_cut(width: int) -> None:
    headings = [Heading("group", numeric=False), Heading("wide", priority=2), Heading("test"), Heading("y", priority=1)]
    rows = [
        ["gumbel_softmax temperature=0.5 schedule=Constant", "1" * 60, "105.23 ± 0.33", "7"],
        ["Q" * 90, "", "", ""],
    ]
    console = terminal(width)
    print_tables(console, headings, [("[red]one", rows), ("two", rows[:1])], "a.csv has them")
    text = "\n".join(lines(console))
    assert text.count("105.23 ± 0.33") == 2
    assert text.count(" test ") == 2
    assert text.count("Q") == 90
    assert "[red]one" in text
    assert (f"too narrow for: {'wide' if width > 30 else 'wide, y'}" in text) == (width < 140)
    assert "\x1b" not in text.replace("\x1b[", "")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_an_audit_fits(width: int) -> None:
    numbers = dict.fromkeys(
        ("relative_bias", "relative_bias_low", "relative_bias_high", "variance", "signal_to_noise", "cosine",
         "mean_squared_error", "decoder_evaluations", "milliseconds"), 0.123456)  # fmt: skip
    row = {"estimator": "straight_through_gumbel", "group": "logits", "target": "bound of 5 samples", **numbers}
    console = terminal(width)
    print_tables(console, audit.HEADINGS, [("gradient", audit.rows_of_logits([row]))], "audit.csv has them")
    text = "\n".join(lines(console))
    assert "straight_through_gumbel"[:22] in text
    assert "MSE" in text
    assert "relative" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_of_several_evaluations_fit_and_name_seeds(width: int) -> None:
    common = {"name": "rloo", "data.seed": 0}
    runs, reports = [], []
    for seed, nll in enumerate((90.0, 92.0)):
        settings = common | {"seed": seed, "data.seed": seed}
        runs.append(SimpleNamespace(settings=settings, key=("rloo",), folder=None))
        metrics = {"nll": nll, "nll_error": 0.5, "negative_elbo": nll + 5, "negative_elbo_error": 0.5, "kl": 20.0,
                   "mutual_information": -0.001, "marginal_kl": 15.0, "active_units": 7}  # fmt: skip
        reports.append({"metrics": metrics, "images": 360, "images_in_split": 360, "split": "test", "source": "digits",
                        "binarization": "dynamic", "samples": 5, "weights": "last", "interrupted": False})  # fmt: skip
    console = terminal(width)
    evaluate.show(console, runs, reports)
    text = "\n".join(lines(console))
    assert "rloo s0 " in text
    assert "rloo s1 " in text
    assert "90.00 ± 0.50" in text
    assert "91.00 ± 1.00" in text  # over seeds
    assert "means over seeds" in text
    assert "-0.00" not in text
    one = terminal(width)
    evaluate.show(one, runs[:1], reports[:1])
    rows = lines(one)
    for cells in (("mutual_information", " 0.00 "), ("negative_elbo", "95.00 ± 0.50")):
        assert any(all(cell in line for cell in cells) for line in rows)


def test_what_is_rounded_to_zero_has_no_sign() -> None:
    assert [number(value, ".2f") for value in (-0.004, -0.006, -0.0, 7.0)] == ["0.00", "-0.01", "0.00", "7.00"]
    assert [number(-0.001, form) for form in ("+.2f", "g")] == ["+0.00", "-0.001"]


def test_columns_says_how_wide_a_log_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from vi_lab.console import make_console

    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console(width=333).width == 333
    monkeypatch.setenv("COLUMNS", "80")
    assert make_console(width=333).width == 80
    for nonsense in ("0", "²", "-5", "wide"):
        monkeypatch.setenv("COLUMNS", nonsense)
        assert make_console(width=333).width == 333
