"""The band of `vi-lab verify`: its rate of false alarms and its power, by simulation; what it decides and what not."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest

from vi_lab.comparison.verdicts import FALSE_ALARM, judge
from vi_lab.published import Cell, Row

CELL = Cell("test/loss", 100.0, 0.05, sd=0.5)


def row(cell: Cell = CELL, seeds: int | None = 10, **values: object) -> Row:
    return replace(Row("paper", "name", "train", (), (cell,), seeds), **values)


def draw(random: random.Random, runs: int, mean: float = 0.0) -> list[float]:
    return [random.gauss(mean, 1.0) for _ in range(runs)]


def measured(published: list[float]) -> Cell:
    """What a paper says of its runs. By numpy: the exact arithmetic of `statistics` takes most of a simulation."""
    sd = float(np.std(published, ddof=1)) if len(published) > 1 else None
    return Cell("loss", statistics.fmean(published), 0.0, sd)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 10), (3, 10), (3, 5), (10, 1)])
def test_rate_of_false_alarms(ours: int, theirs: int) -> None:
    """Of pairs that are drawn alike a share of `rate` fails: 4,000 pairs at 0.05 give 200 +- 14, and outside of four
    and a half standard deviations this test fails in one of 100,000 tries."""
    generator, fails, pairs, rate = random.Random(0), 0, 4000, 0.05
    for _ in range(pairs):
        published = draw(generator, theirs)
        cell = measured(published)
        verdict = judge(row(cell, theirs), cell, draw(generator, ours), rate)
        fails += verdict.word == "fail"
    assert abs(fails - rate * pairs) < 4.5 * math.sqrt(pairs * rate * (1 - rate))


def test_a_table_in_which_all_agree_shows_a_failure_seldom() -> None:
    """120 cells at a time, 300 tables at rate 0.01 in all: 3 tables are expected to show one; 12 or more have
    probability 8e-5."""
    generator, alarms, cells = random.Random(1), 0, 120
    for _ in range(300):
        words = set()
        for _ in range(cells):
            published = draw(generator, 10)
            cell = measured(published)
            words.add(judge(row(cell, 10), cell, draw(generator, 3), FALSE_ALARM / cells).word)
        alarms += "fail" in words
    assert alarms < 12


def test_what_is_off_by_ten_spreads_fails() -> None:
    generator, fails = random.Random(2), 0
    for _ in range(200):
        published = draw(generator, 10)
        cell = measured(published)
        fails += judge(row(cell, 10), cell, draw(generator, 3, mean=10.0), FALSE_ALARM / 120).word == "fail"
    assert fails == 200


def test_a_wild_run_of_ours_does_not_pass_by_its_own_spread() -> None:
    """Of three runs one stays far above: the pooled band would be wider than the mean is off."""
    verdict = judge(row(), CELL, [100.1, 99.9, 160.0], FALSE_ALARM / 120)
    assert verdict.word == "fail"
    assert "spread" in verdict.reason


def test_a_single_published_run_is_tested_against_our_spread() -> None:
    single = Cell("loss", 100.0, 0.05)
    few = judge(row(single, 1), single, [99.0, 101.0], 1e-4)
    assert few.word == "not decided"
    assert "more runs" in few.reason
    many = [100.0 + 0.1 * (k % 5) for k in range(10)]
    assert judge(row(single, 1), single, many, 1e-4).word == "pass"
    assert judge(row(single, 1), single, [x + 5 for x in many], 1e-4).word == "fail"
    ten = judge(row(replace(single, sd=statistics.stdev(many)), 10), single, many, 1e-4)
    assert ten.band < judge(row(single, 1), single, many, 1e-4).band


def test_exact_numbers_have_no_spread_of_their_own() -> None:
    exact = Cell("variance", 2.0, 1e-9)
    runs = [2.0 + 0.01 * math.sin(k) for k in range(12)]
    wide, narrow = (judge(row(exact, seeds), exact, runs, 1e-3).band for seeds in (1, None))
    assert narrow < wide


def test_what_the_source_does_not_state_decides_nothing() -> None:
    verdict = judge(row(unstated="how long it trained"), CELL, [500.0, 501.0], 1e-4)
    assert verdict.word == "not decided"
    assert "how long" in verdict.reason
    assert verdict.ours == 500.5


def test_a_bound_from_above() -> None:
    cell = replace(CELL, upper=True)
    assert judge(row(cell), cell, [50.0], 1e-4).word == "pass"
    assert judge(row(cell), cell, [150.0], 1e-4).word == "fail"


def test_the_best_of_many_settings_is_expected_to_gain() -> None:
    """On the side where ours is larger, by s sqrt(2 ln M / m); not on the other."""
    gain = 0.5 * math.sqrt(2 * math.log(66) / 10)
    band = judge(row(), CELL, [100.0], 1e-4).band
    for searched, above, below in ((1, "fail", "fail"), (66, "pass", "fail")):
        assert judge(row(searched=searched), CELL, [100.0 + band + 0.9 * gain], 1e-4).word == above
        assert judge(row(searched=searched), CELL, [100.0 - band - 0.9 * gain], 1e-4).word == below


def test_a_run_without_a_finite_number_fails() -> None:
    assert judge(row(), CELL, [math.nan, 100.0], 1e-4).word == "fail"
    audit = replace(row(), command="audit")
    assert judge(audit, CELL, [math.nan, 100.0], 1e-4).word == "not decided"
