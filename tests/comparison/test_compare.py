"""`vi-lab compare` on run folders that the tests write: statistics, selection, what it says, files, hostile content."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import scipy.stats
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support import SMALL, TIME_LIMIT, composed
from vi_lab import cli
from vi_lab.commands.compare import default_folder
from vi_lab.comparison import curves, groups, stats, swept
from vi_lab.comparison.compare import compare
from vi_lab.comparison.documents import html, latex, markdown
from vi_lab.comparison.groups import Section
from vi_lab.comparison.notes import gathered
from vi_lab.comparison.notes import notes as all_notes
from vi_lab.comparison.publish import show, summarize, write
from vi_lab.comparison.tables import explanation, group_rows, run_rows
from vi_lab.console import Terminal
from vi_lab.errors import UserError
from vi_lab.runs import find_runs
from vi_lab.runs.files import write_csv, write_json
from vi_lab.runs.trust import read_png

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_run(
    folder: Path, *overrides: str, seed: int = 0, val: float | None = 101.0, test: float = 100.0,
    state: str = "completed", reason: str | None = None, settings: dict | None = None, epochs: int = 3,
    evaluations: float | None = 1.0, **metrics: float,
) -> Path:  # fmt: skip
    """A finished run folder as `vi-lab train` would leave it, with these results."""
    folder.mkdir(parents=True)
    values = composed(*SMALL, "evaluation.samples=100", *overrides) | {"seed": seed} | (settings or {})
    values["data"]["seed"] = seed
    (folder / "config_resolved.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    final = {"train/loss": test - 2, "train/loss_unrelaxed": test - 1, "train/relaxation_gap": 1.0}
    final |= ({} if val is None else {"val/loss": val}) | {"test/loss": test}
    final |= {f"test/{name}": value for name, value in metrics.items()}
    rows = [
        {"epoch": e, "step": 12 * e} | {k: v + epochs - e for k, v in final.items() if not k.startswith("test")}
        for e in range(1, epochs + 1)
    ]
    write_csv(folder / "metrics.csv", rows)
    write_csv(folder / "timing.csv", [{"epoch": r["epoch"], "step": r["step"], "seconds": 2.0} for r in rows])
    write_json(folder / "metrics.json", {"epoch": epochs, "step": 12 * epochs, **final})
    write_json(folder / "status.json", {"state": state, "reason": reason})
    environment = {"processor": "abacus", "device": "cpu", "threads": 1, "data": {"sha256": "ab" * 32}}
    write_json(folder / "environment.json", environment | {"decoder_evaluations": evaluations})
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three estimators, three seeds; rloo has the best validation loss, gaussian the best test loss."""
    results = {"rloo": (100, 104), "gumbel_softmax": (102, 105), "gaussian": (103, 101)}
    for name, (val, test) in results.items():
        for seed in range(3):
            noise = (0.0, 2.0, 3.0)[seed] + (0.5 * seed if name == "gaussian" else 0.0)
            write_run(tmp_path / "sweep" / f"{name}-s{seed}", f"estimator={name}", seed=seed, val=val + noise,
                      test=test + noise, evaluations=4.0 if name == "rloo" else 1.0)  # fmt: skip
    return tmp_path / "sweep"


def compared(folder: Path, **arguments: object) -> groups.Comparison:
    return compare(find_runs([folder]), **arguments)


def notes(comparison: groups.Comparison) -> str:
    return "\n".join(note.text for note in all_notes(comparison))


# --- statistics ------------------------------------------------------------------------------------------------------


def test_mean_and_standard_error() -> None:
    mean, error = stats.mean_and_error([1.0, 2.0, 4.0])
    assert (mean, error) == pytest.approx((7 / 3, scipy.stats.sem([1, 2, 4])))
    assert math.isnan(stats.mean_and_error([1.0])[1])
    assert all(map(math.isnan, stats.mean_and_error([])))


def test_paired_difference_is_students_interval_over_common_seeds() -> None:
    a = pandas.Series({0: 10.0, 1: 12.0, 2: 11.5, 3: 9.0, 7: 1e6})
    b = pandas.Series({3: 8.5, 2: 10.0, 1: 11.0, 0: 9.5, 8: -1e6})  # another order, other extra seeds
    found = stats.paired_difference(a, b)
    wanted = scipy.stats.ttest_rel([10, 12, 11.5, 9], [9.5, 11, 10, 8.5]).confidence_interval(0.95)
    assert found.seeds == 4
    assert found[:3] == pytest.approx((0.875, wanted.low, wanted.high))
    # by hand: d = 0.5 1 1.5 0.5, s = 0.4787, t(0.975; 3) = 3.1824
    assert found.high - found.mean == pytest.approx(3.1824 * 0.4787 / 2, rel=1e-4)


def test_paired_difference_without_enough_seeds() -> None:
    one = stats.paired_difference(pandas.Series({0: 3.0}), pandas.Series({0: 1.0, 1: 5.0}))
    assert (one.mean, one.seeds) == (2.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = stats.paired_difference(pandas.Series({0: 3.0}), pandas.Series({1: 1.0}))
    assert math.isnan(none.mean)
    assert none.seeds == 0


def test_pairing_removes_what_seeds_share(sweep: Path) -> None:
    (section,) = compared(sweep).sections
    assert [g.name for g in section.groups] == ["rloo", "gumbel_softmax", "gaussian"]
    soft, gaussian = (section.difference(g, "test/loss") for g in section.groups[1:])
    assert soft == pytest.approx((1.0, 1.0, 1.0, 3))  # a constant difference under noise that both share
    wanted = scipy.stats.ttest_1samp([-3.0, -2.5, -2.0], 0).confidence_interval(0.95)
    assert gaussian == pytest.approx((-2.5, wanted.low, wanted.high, 3))


# --- grouping and selection ------------------------------------------------------------------------------------------


def test_validation_orders_and_chooses_the_reference_although_test_would_choose_otherwise(sweep: Path) -> None:
    (section,) = compared(sweep).sections
    assert section.selection == "val/loss"
    assert section.reference.name == "rloo"
    assert min(section.groups, key=lambda g: g.mean("test/loss")).name == "gaussian"


def test_selection_per_estimator_uses_validation_and_says_what_was_tried(tmp_path: Path) -> None:
    for t, (val, test) in {"0.3": (103, 90), "0.5": (101, 99), "1.0": (102, 95)}.items():
        for seed in (0, 1):
            write_run(tmp_path / f"{t}-{seed}", f"temperature={t}", seed=seed, val=val + seed, test=test)
    write_run(tmp_path / "rloo", "estimator=rloo", val=105, test=100)
    comparison = compared(tmp_path, select=True)
    (section,) = comparison.sections
    assert [(g.name, 1 + len(g.rivals)) for g in section.groups] == [("gumbel_softmax temperature=0.5", 3), ("rloo", 1)]
    rows = group_rows(comparison)
    assert rows["settings_tried"].tolist() == [3, 1]
    assert rows["test/loss"].tolist() == [99, 100]
    assert "best of all settings tried, by mean val/loss" in markdown(comparison)


def test_without_validation_the_test_loss_orders_and_that_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "estimator=rloo", val=None, test=90)
    write_run(tmp_path / "b", "estimator=nvil", val=80, test=95)
    comparison = compared(tmp_path)
    assert comparison.sections[0].selection == "test/loss"
    assert comparison.sections[0].reference.name == "rloo"
    assert "ordered by the test loss itself, which flatters the best" in notes(comparison)


def test_adjusted_intervals_allow_for_a_reference_that_luck_has_chosen() -> None:
    """Six equal groups, the luckiest of which is the reference: how often does some interval leave zero out? In 400
    trials at most 20 are to be expected of those that hold at once; more than 43 come once in 10^5 (binomial)."""
    draws = np.random.default_rng(0).normal(size=(400, 6, 8))
    missed = {False: 0, True: 0}
    for adjusted in missed:
        for trial in draws:
            groups = [SimpleNamespace(metric=lambda _, v=v: pandas.Series(v), rivals=[]) for v in trial]
            best = groups[int(trial.mean(1).argmin())]
            section = Section("", groups, best, "val/loss", adjusted=adjusted)
            found = [section.difference(group, "test/loss") for group in groups if group is not best]
            missed[adjusted] += any(d.low > 0 or d.high < 0 for d in found)
    assert missed[True] <= 43
    assert missed[False] > 43  # each on its own


def test_intervals_are_adjusted_on_demand(sweep: Path) -> None:
    def of(**arguments: object) -> tuple[Section, str]:
        comparison = compared(sweep, **arguments)
        return comparison.sections[0], " ".join(explanation(comparison))

    plain, text = of()
    assert plain.confidence == 0.95
    assert "some leave zero out by chance" in text
    assert "the others look worse than they are; --reference names one" in text
    adjusted, text = of(adjust=True)
    assert adjusted.confidence == pytest.approx(1 - 0.05 / 3)  # pairs of three groups
    assert "all of a table hold at once" in text
    named, text = of(adjust=True, reference="rloo")
    assert named.confidence == pytest.approx(1 - 0.05 / 2)
    assert "luck" not in text
    widths = [d.high - d.low for s in (plain, adjusted) if (d := s.difference(s.groups[2], "test/loss"))]
    assert widths[0] < widths[1]


def test_reference_by_name(sweep: Path) -> None:
    (section,) = compared(sweep, reference="gaussian").sections
    assert section.reference.name == "gaussian"
    assert section.difference(section.groups[0], "test/loss").mean == pytest.approx(2.5)
    with pytest.raises(UserError, match=r"--reference nope: no group has this name \(groups: 'rloo', 'gumbel_softmax'"):
        compared(sweep, reference="nope")
    write_run(sweep / "rloo8", "estimator=rloo", "samples=8")
    with pytest.raises(UserError, match=r"several groups have this name \(groups: .*samples=8"):
        compared(sweep, reference="rloo")


def test_names_hold_the_fewest_settings_that_tell_groups_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "temperature=0.5")
    write_run(tmp_path / "b", "temperature=1.0")
    write_run(tmp_path / "c", "temperature=1.0", "schedule=exponential")
    write_run(tmp_path / "d", "estimator=rloo")
    names = {g.name for g in compared(tmp_path).groups}
    assert names == {
        "gumbel_softmax temperature=0.5 schedule=Constant", "gumbel_softmax temperature=1.0 schedule=Constant",
        "gumbel_softmax temperature=1.0 schedule=Exponential", "rloo",
    }  # fmt: skip
    table = groups.differing(compared(tmp_path).groups)
    assert len(set(table["schedule.start"])) == 2  # the name leaves it out, the table of settings does not


# --- what is said ----------------------------------------------------------------------------------------------------


def test_unequal_and_single_seeds(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"a{seed}", "estimator=rloo", seed=seed, val=1 + seed, test=10 + seed)
    for seed in (1, 2, 5):
        write_run(tmp_path / f"b{seed}", "estimator=nvil", seed=seed, val=3 + seed, test=12.5 + 2 * seed)
    write_run(tmp_path / "c", "estimator=reinforce", seed=0, val=50, test=50)
    write_run(tmp_path / "d", "estimator=rebar", seed=9, val=60, test=60)
    comparison = compared(tmp_path)
    (section,) = comparison.sections
    assert "rloo: 0 1 2; nvil: 1 2 5; reinforce: 0" in notes(comparison)
    assert "common seeds only" in notes(comparison)
    assert "One seed only: reinforce, rebar." in notes(comparison)
    assert section.difference(section.groups[1], "test/loss")[::3] == (4.0, 2)  # seeds 1 and 2
    text = markdown(comparison)
    assert "(n=2)" in text
    assert "+40.00 (n=1)" in text
    assert "no common seed" in text


def test_other_data_or_likelihood_stand_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "estimator=rloo", val=100)
    write_run(tmp_path / "b", "estimator=nvil", val=101)
    write_run(tmp_path / "c", "data.binarization=none", val=50)
    write_run(tmp_path / "d", "likelihood=gaussian", "data.binarization=none", val=-300)
    write_run(tmp_path / "e", "objective.beta=0.5", val=40)
    comparison = compared(tmp_path)
    titles = [section.title for section in comparison.sections]
    assert titles == [
        "digits, dynamic binarization, Bernoulli likelihood",
        "digits, gray pixels, Bernoulli likelihood",
        "digits, gray pixels, Gaussian likelihood",
        "digits, dynamic binarization, Bernoulli likelihood, KL times 0.5",
    ]
    said = notes(comparison)
    assert "Losses do not compare between them" in said
    assert re.search(r"binarization \(dynamic: .*; none: ", said)
    assert "likelihood (Bernoulli: " in said
    assert "not normalized" in said
    assert "is a density" in said
    first = comparison.sections[0]
    assert first.difference(first.groups[1], "test/loss") is not None
    assert all(s.reference is s.groups[0] for s in comparison.sections)


def test_unequal_budgets_and_machines_are_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "estimator=rloo", epochs=3, nll=90.0)
    write_run(tmp_path / "b", "estimator=nvil", "data.batch_size=50", "data.validation=100", epochs=5, evaluations=None)
    other = write_run(tmp_path / "c", "estimator=rebar", "evaluation.samples=10", nll=91.0)
    write_json(other / "environment.json", {"processor": "slide rule", "data": {"sha256": "cd" * 32}})
    said = notes(compared(tmp_path))
    for words in ("Unequal budgets: training steps (36: rloo, rebar; 60: nvil)", "batch size (100: rloo, rebar; 50",
                  "validation images", "samples K per image (100: rloo; 10: rebar)", "Wall times come from",
                  "sha256 abababab", "Decoder evaluations were not recorded by nvil, rebar"):  # fmt: skip
        assert words in said, words


def test_equal_groups_need_no_notes(sweep: Path) -> None:
    assert notes(compared(sweep)) == ""


def test_what_is_not_finished_is_left_out_by_name_with_the_reason(sweep: Path) -> None:
    write_run(sweep / "f", state="failed", reason="train/loss became nan")
    write_run(sweep / "r", state="running")
    write_run(sweep / "nan", test=math.nan)
    shutil.copytree(sweep / "rloo-s0", sweep / "twice")
    evil = write_run(sweep / "evil", settings={"model": {"_target_": "os.system"}})
    old = write_run(sweep / "old", settings={"color": "red"})
    odd = write_run(sweep / "odd", settings={"data": {"_target_": "vi_lab.data.MNISTDataModule"}})
    (sweep / "early").mkdir()
    write_json(sweep / "early" / "status.json", {"state": "failed", "reason": "no such folder"})
    (sweep / "bare").mkdir()
    (sweep / "bare" / "config_resolved.yaml").write_text("a: [")
    comparison = compared(sweep)
    left_out = {Path(run.folder).name: run.reason for run in comparison.left_out}
    assert left_out["f"] == "failed: train/loss became nan"
    assert left_out["r"] == "killed"  # nothing holds its lock
    assert left_out["early"] == "failed: no such folder"
    assert left_out["bare"] == "no status.json"
    assert "test/loss" in left_out["nan"]
    assert "same settings and seed as" in left_out["twice"]
    assert "not a part of vi_lab" in left_out[evil.name]
    assert "another version" in left_out[old.name]
    assert left_out[odd.name]
    assert sum(len(g.records) for g in comparison.groups) == 9
    assert "left out: " in markdown(comparison)


def test_the_evaluation_of_a_run_adds_columns(sweep: Path) -> None:
    assert "NLL" not in markdown(compared(sweep))
    for seed in range(3):
        metrics = {"nll": 95.0 + seed, "loss": 1.0}
        evaluation = {"split": "test", "weights": "last", "samples": 5000, "images": 360, "metrics": metrics}
        write_json(sweep / f"rloo-s{seed}" / "evaluation.json", evaluation)
        other = evaluation | {"weights": "best"}
        write_json(sweep / f"gaussian-s{seed}" / "evaluation.json", other)
    comparison = compared(sweep)
    text = markdown(comparison)
    assert "| NLL |" in text
    assert "96.00 ± 0.58" in text
    assert comparison.groups[2].metric("test/nll").empty  # of other weights than its losses
    assert "NLL was estimated" not in notes(comparison)  # by one group only
    assert comparison.groups[0].mean("test/loss") > 100  # of the end of training, as for the others


def test_evaluations_with_equal_settings_are_compared(sweep: Path) -> None:
    def write(estimator: str, name: str, nll: float, **settings: object) -> None:
        whole = {"split": "test", "weights": "last", "samples": 100, "images": 360, "seed": 0} | settings
        for seed in range(3):
            folder = sweep / f"{estimator}-s{seed}"
            (folder / "evaluations").mkdir(exist_ok=True)
            write_json(folder / name, whole | {"metrics": {"nll": nll}})

    for index, estimator in enumerate(("rloo", "gaussian", "gumbel_softmax")):
        write(estimator, "evaluation.json", 100.0 + index)
        write(estimator, "evaluations/quick.json", 200.0, images=100, samples=5000)
        write(estimator, "evaluations/other.json", 300.0, split="val")
    write("rloo", "evaluations/more.json", 50.0, samples=5000)

    def nll() -> dict[str, float]:
        return {group.estimator: group.mean("test/nll") for group in compared(sweep).groups}

    assert nll() == {"rloo": 100, "gaussian": 101, "gumbel_softmax": 102}  # all images, of K = 100 all have it
    for estimator in ("gaussian", "gumbel_softmax"):
        write(estimator, "evaluations/more.json", 60.0, samples=5000)
    assert nll() == {"rloo": 50, "gaussian": 60, "gumbel_softmax": 60}
    assert "samples K" not in notes(compared(sweep))


# --- files -----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed in order; collects tags, attributes and text."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(text: str) -> Page:
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "base", "form", "a", "foreignobject"}
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            assert key not in ("srcset", "action", "formaction"), (tag, key)
            assert key != "src" or re.fullmatch(r"data:image/png;base64,[\w+/=]+", value), (tag, value)
            assert not key.endswith("href") or value.startswith("#"), (tag, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    return page


def test_files(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["compare", str(sweep)]) == 0
    out = capsys.readouterr().out
    assert f"{sweep / 'comparison' / 'comparison.html'}\n" in out
    assert "\x1b" not in out
    assert "105.67 ± 0.88" in out
    assert "+1.00 [1.00, 1.00]" in out
    folder = sweep / "comparison"
    assert {path.name for path in folder.iterdir()} == {
        "comparison.csv", "comparison_runs.csv", "comparison.md", "comparison.tex", "comparison.html",
        "loss_by_epoch.png", "loss_by_time.png", "loss_by_evaluations.png",
    }  # fmt: skip
    groups = pandas.read_csv(folder / "comparison.csv").set_index("group")
    assert groups.loc["rloo", "test/loss"] == (104 + 106 + 107) / 3  # full precision
    assert groups.loc["rloo", "decoder_evaluations"] == 4
    assert groups.loc["gaussian", "test/loss difference"] == pytest.approx(-2.5)
    assert groups.loc["gaussian", "setting latent._target_"] == "Gaussian"
    runs = pandas.read_csv(folder / "comparison_runs.csv")
    assert len(runs) == 9
    assert runs.groupby("group")["test/loss"].mean()["rloo"] == pytest.approx(groups.loc["rloo", "test/loss"])
    lines = (folder / "comparison.md").read_text().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    tex = (folder / "comparison.tex").read_text()
    assert r"gumbel\_softmax & Categorical 30x10 & 106.67" in tex
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1
    assert "$-$2.50" in tex
    assert r"gaussian & Gaussian 20 & \textbf{103.17 $\pm$ 1.17}" in tex  # the best, whatever came first
    assert "Seeds: 3, epochs: 3. " in tex  # the same for all: said once
    assert r"\label{tab:comparison}" in tex
    assert "--" not in tex  # no option of a command in a caption
    page = check_page((folder / "comparison.html").read_text())
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    assert "gumbel_softmax" in page.text
    assert all((folder / f).read_bytes().startswith(b"\x89PNG") for f in ("loss_by_epoch.png", "loss_by_time.png"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
@pytest.mark.parametrize("name", ["rloo", 'a [b] "c" \\x{}$_^~#%&|<>±' + 30 * " long"])
def test_the_table_compiles_and_fits_the_page_of_an_article(sweep: Path, tmp_path: Path, name: str) -> None:
    for seed in range(2):
        write_run(sweep / f"other{seed}", seed=seed, settings={"name": name}, nll=95.0)
    (tmp_path / "comparison.tex").write_text(latex(compared(sweep)))
    packages = r"\usepackage{array, booktabs}\usepackage[T1]{fontenc}"
    text = rf"\documentclass{{article}}{packages}\begin{{document}}\input{{comparison}}\end{{document}}"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main"]
    (tmp_path / "main.tex").write_text(text)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stdout[-2000:]
    too_wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout)]
    assert all(points < 15 for points in too_wide), done.stdout


def test_the_same_runs_give_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    for name in "ab":
        write(compared(sweep), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_notes_stand_in_the_files_where_a_run_has_any(sweep: Path) -> None:
    assert "notes" not in {*group_rows(compared(sweep)), *run_rows(compared(sweep))}
    write_run(sweep / "noted", "estimator=nvil", settings={"notes": "=1+1,\n<b>second\x1b[31m try</b>"})
    write_run(sweep / "noted too", "estimator=nvil", settings={"notes": "another"}, seed=1)
    rows = group_rows(compared(sweep)).set_index("group")["notes"]
    assert rows["nvil"] == "'=1+1, <b>second\\x1b[31m try</b>; another"
    assert rows["rloo"] == ""
    assert list(run_rows(compared(sweep)).set_index(["group", "seed"])["notes"]["nvil"]) == [
        "'=1+1, <b>second\\x1b[31m try</b>", "another",
    ]  # fmt: skip
    assert "<b>second" in check_page(html(compared(sweep), [])).text


def test_curves_are_means_over_seeds(sweep: Path) -> None:
    group = compared(sweep).groups[0]
    by_epoch = curves.curve(group, "val/loss", "epoch")
    assert by_epoch["epoch"].tolist() == [1, 2, 3]
    assert by_epoch["mean"].tolist() == pytest.approx([100 + 5 / 3 + e for e in (2, 1, 0)])
    assert by_epoch["error"].tolist() == pytest.approx([scipy.stats.sem([0, 2, 3])] * 3)
    assert curves.curve(group, "val/loss", "seconds")["seconds"].tolist() == [2, 4, 6]
    evaluations = curves.curve(group, "val/loss", "evaluations")["evaluations"].tolist()
    assert evaluations == [12 * e * 100 * 4 for e in (1, 2, 3)]
    assert len(curves.curve(group, "nothing", "epoch")) == 0


def test_one_epoch_gives_each_group_a_row(tmp_path: Path) -> None:
    for name, val in (("rloo", 102), ("gaussian", 101), ("nvil", 103)):
        for seed in range(2):
            write_run(tmp_path / f"{name}-{seed}", f"estimator={name}", seed=seed, val=val + seed, epochs=1)
    drawn = {figure.name: figure for figure in curves.figures(compared(tmp_path))}
    for name, panels in (("loss_by_epoch", 1), ("loss_by_time", 2), ("loss_by_evaluations", 2)):
        axes = drawn[name].figure.axes
        assert len(axes) == panels
        assert [text.get_text() for text in axes[0].get_yticklabels()] == ["gaussian", "rloo", "nvil"]
        dots = [line.get_xydata().tolist() for line in axes[0].lines]
        assert dots == [[[101.5, 0]], [[102.5, 1]], [[103.5, 2]]]
        assert axes[0].collections[0].get_paths()[0].vertices[:, 0].tolist() == [101, 102]  # ± standard error
        assert "rloo" in drawn[name].svg()


def test_a_swept_number_is_an_axis(tmp_path: Path) -> None:
    """One: a line for each estimator, with the relaxed loss beside the unrelaxed one."""
    for name, best in (("gumbel_softmax", 0.5), ("concrete", 1.0)):
        for tau in (0.1, 0.5, 1.0):
            for seed in range(2):
                val = 99 + best + 10 * abs(math.log(tau / best)) + seed
                write_run(tmp_path / f"{name}-{tau}-{seed}", f"estimator={name}", f"temperature={tau}", seed=seed,
                          val=val, test=val)  # fmt: skip
    (section,) = compared(tmp_path).sections
    assert swept.swept_numbers(section) == ["temperature"]
    assert [one.name for one in swept.series(section, ["temperature"])] == ["gumbel_softmax", "concrete"]
    (drawn,) = swept.over_numbers(compared(tmp_path))
    assert (drawn.name, drawn.caption) == ("loss_over_temperature", "Loss over temperature")
    losses, training = drawn.figure.axes
    assert losses.get_xscale() == "log"
    first = losses.containers[0]
    places, means = first.lines[0].get_data()
    assert places.tolist() == [0.1, 0.5, 1.0]
    assert means.tolist() == pytest.approx([100 + 10 * abs(math.log(t / 0.5)) for t in (0.1, 0.5, 1.0)])
    bars = [segment[:, 1].tolist() for segment in first.lines[2][0].get_segments()]
    assert bars[1] == pytest.approx([99.5, 100.5])  # ± standard error
    # solid unrelaxed (test - 1), dashed relaxed (test - 2)
    unrelaxed, relaxed = training.containers[:2]
    assert (unrelaxed.lines[0].get_linestyle(), relaxed.lines[0].get_linestyle()) == ("-", "--")
    gap = unrelaxed.lines[0].get_ydata() - relaxed.lines[0].get_ydata()
    assert gap.tolist() == pytest.approx([1, 1, 1])
    assert "gumbel_softmax" in drawn.svg()
    write(compared(tmp_path), tmp_path / "comparison")
    assert (tmp_path / "comparison/loss_over_temperature.png").read_bytes().startswith(b"\x89PNG")


def test_two_swept_numbers_are_a_map(tmp_path: Path) -> None:
    grid = [(tau, rate) for tau in (0.1, 0.5, 1.0) for rate in (1e-4, 1e-3, 1e-2)]
    for tau, rate in grid[:-1]:  # one is missing
        write_run(tmp_path / f"{tau}-{rate}", f"temperature={tau}", f"optimizer.lr={rate}", val=100 + tau + 10 * rate)
    (drawn,) = swept.over_numbers(compared(tmp_path))
    assert drawn.name == "loss_over_temperature_optimizer.lr"
    heat, bar = drawn.figure.axes
    values = heat.images[0].get_array().filled(math.nan)
    assert values.shape == (3, 3)
    assert values[1, 0] == pytest.approx(100 + 0.1 + 10 * 1e-3)  # a row for each rate, a column for each temperature
    assert np.isnan(values[2, 2])
    assert np.isnan(values).sum() == 1
    assert [text.get_text() for text in heat.get_xticklabels()] == ["0.1", "0.5", "1.0"]
    assert bar.get_ylabel() == "validation loss"


@pytest.mark.parametrize(
    "overrides",
    [
        [["estimator=rloo"], ["estimator=gaussian"]],
        [["temperature=0.5"], ["temperature=1.0"]],  # the table says it
        [["network.encoder.hidden=[8]"], ["network.encoder.hidden=[9]"], ["network.encoder.hidden=[10]"]],
        [[f"temperature={t}", f"optimizer.lr={r}", f"latent.variables={n}"] for t in (1, 2, 3) for r in (1, 2, 3)
         for n in (1, 2, 3)],
    ],
)  # fmt: skip
def test_no_axis(tmp_path: Path, overrides: list[list[str]]) -> None:
    for index, own in enumerate(overrides):
        write_run(tmp_path / str(index), *own)
    assert swept.over_numbers(compared(tmp_path)) == []


def test_where_the_files_go(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_folder(["sweep"]) == Path("sweep/comparison")
    for paths in ([], ["sweep", "sweep"], ["sweep/*"], ["sweep/rloo-s0"]):
        assert default_folder(paths).parent == Path("outputs/comparison")
    assert cli.main(["compare", "sweep/rloo-*", "--output", "mine"]) == 0
    assert (tmp_path / "mine" / "comparison.html").is_file()
    (tmp_path / "elsewhere").mkdir()
    (sweep / "comparison").symlink_to(tmp_path / "elsewhere")
    assert cli.main(["compare", "sweep"]) == 1  # a stranger's link does not say where we write
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "failed", state="failed", reason="out of memory")
    for arguments, words in (
        (["nope"], "no such folder"),
        (["empty"], "no runs below empty"),
        (["failed"], "none of the 1 runs has finished (failed: failed: out of memory)"),
        (["--color"], "unrecognized arguments: --color"),
        (["--colums", "x"], "unrecognized arguments: --colums; did you mean --columns?"),
        ([], "outputs: no such folder"),
    ):
        assert cli.main(["compare", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("width", [60, 80, 100, 130])
def test_narrow_terminals_lose_columns_not_digits(sweep: Path, width: int) -> None:
    console = Terminal(width=width, record=True, force_terminal=True, file=io.StringIO())
    show(compared(sweep), console)
    text = console.export_text()
    assert "102.50 ± 1.26" not in text  # sanity: not a number of these runs
    assert "105.67 ± 0.88" in text
    assert ("101.67 ± 0.88" in text) == (width != 80)  # of the validation: it makes room for the difference
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines() if line[:1] in "┏┃│┗└")
    assert ("-2.50 [-3.74, -1.26]" in text) == (width >= 80)  # what a comparison is for


@pytest.mark.parametrize("width", [60, 80, 100, 130, 400])
def test_what_is_said_below_the_table_is_of_columns_that_are_shown(tmp_path: Path, width: int) -> None:
    for name in ("rloo", "gaussian"):
        for seed in range(2):
            evaluations = None if name == "rloo" else 1.0
            run = write_run(tmp_path / f"{name}{seed}", f"estimator={name}", seed=seed, test=100.0 + seed, nll=95.0,
                            evaluations=evaluations)  # fmt: skip
            environment = json.loads((run / "environment.json").read_text())
            write_json(run / "environment.json", environment | {"threads": 1 + seed})
    console = Terminal(width=width, record=True, file=io.StringIO())
    show(compared(tmp_path), console)
    text = console.export_text()
    heads = [word.strip() for line in text.splitlines() if line.startswith("┃") for word in line.split("┃")]
    assert ("NLL: importance" in " ".join(text.split())) == ("NLL" in heads)
    for heading, words in {"evaluations": "Evaluations: how", "s/epoch": "Wall times"}.items():
        assert (words in text) == (heading in heads)
    assert ("Decoder evaluations were not" in text) == ("evaluations" in heads)


def test_the_page_opens_with_tables_and_warnings_are_folded(sweep: Path) -> None:
    for index in range(5):
        write_run(sweep / f"other{index}", f"objective.beta={index + 2}")
        write_run(sweep / f"start{index}", state="failed", reason="no such data")
    page = html(compared(sweep), [])
    first = page.index("<table")
    assert first < page.index("Nats per image") < page.index("<summary>")
    assert "6 warnings" in page
    assert "5 runs left out" in page
    assert not re.search(r"<details[^>]* open", page)
    assert all(f"start{index}" in page for index in range(5))
    assert re.search(r"\.scroll \{ overflow-x: auto;.*?\n.*gradient", page)
    assert "position: sticky" in page


def test_what_is_the_same_in_all_runs_is_said_once_above_them(sweep: Path) -> None:
    page = html(compared(sweep), [])
    of_runs = page[page.index("Every run") :].partition("</table>")[0]
    assert "<p>The same in all runs: step 36.0, epoch_seconds 2.0, train/relaxation_gap 1.0.</p>" in of_runs
    assert re.findall(r'<th scope="col">([^<]*)', of_runs)[:4] == ["group", "seed", "folder", "decoder_evaluations"]
    assert ">step<" not in of_runs
    single = html(compared(sweep / "rloo-s0"), [])
    assert ">step<" in single
    assert "The same in all runs" not in single


def test_the_terminal_gathers_what_was_left_out_and_what_to_know(sweep: Path) -> None:
    for index in range(9):
        write_run(sweep / f"other{index}", f"objective.beta={index + 2}")
        write_run(sweep / f"start{index}", state="failed", reason="no such data " * 30)
        killed = write_run(sweep / f"killed{index}", state="running")
        (killed / "checkpoints").mkdir()
        (killed / "checkpoints" / "last.ckpt").touch()
    console = Terminal(width=400, record=True, file=io.StringIO())
    comparison = compared(sweep)
    show(comparison, console)
    lines = console.export_text().splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("left out")] == [
        "left out, 9 unfinished (vi-lab train resume=FOLDER goes on)", "left out, 9 failed starts",
    ]  # fmt: skip
    assert all("; and 6 more, which comparison.html names" in line for line in lines if line.startswith("left out"))
    single = [line for line in lines if line.startswith("! One seed only")]
    assert len(single) == 1
    assert ", in 9 tables (" in single[0]
    assert markdown(comparison).count("- left out: ") == 18
    assert list(gathered([])) == []


def test_columns_on_demand(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    for names in ("test,latent", "test/loss, Latent"):
        assert cli.main(["compare", str(sweep), "--columns", names]) == 0
        assert re.search(r"┃ group +┃ +test ┃ latent +┃", capsys.readouterr().out)
    folder = sweep / "comparison"
    assert (folder / "comparison.md").read_text().splitlines()[2] == "| group | test | latent |"
    assert "    group & test & latent \\\\\n" in (folder / "comparison.tex").read_text()
    assert len(re.findall('<th scope="col"', (folder / "comparison.html").read_text().partition("</table>")[0])) == 3
    assert "train/loss" in pandas.read_csv(folder / "comparison.csv")  # all of them
    for name in ("nope", "nll"):  # no such column, and none of these runs
        assert cli.main(["compare", str(sweep), "--columns", f"test,{name}"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert (
            f"have no '{name}' (there are: group, latent, seeds, train, unrelaxed, gap, val, test, diff" in captured.err
        )


def test_names_leave_out_what_other_settings_say(tmp_path: Path) -> None:
    for index, (rate, size) in enumerate(((0.1, 50), (0.1, 20), (0.2, 10))):
        write_run(tmp_path / f"{index}", "estimator=rloo", f"optimizer.lr={rate}", f"data.batch_size={size}")
    assert {g.name for g in compared(tmp_path).groups} == {f"rloo data.batch_size={size}" for size in (50, 20, 10)}
    names = groups.run_labels([*find_runs([tmp_path]), *find_runs([tmp_path / "0"])])
    assert names[0] == names[3] == "rloo data.batch_size=50 s0 (0)"
    write_run(tmp_path / "seed", "estimator=rloo", "optimizer.lr=0.2", "data.batch_size=10", seed=3)
    assert [name.rpartition(" ")[2] for name in groups.run_labels(find_runs([tmp_path]))] == ["s0", "s0", "s0", "s3"]


def test_a_picture_is_its_pixels_alone(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png", icc_profile=random.Random(0).randbytes(300_000))
    data = read_png(tmp_path, "a.png", 64)
    assert data is not None
    assert len(data) < 10_000
    assert "icc_profile" not in Image.open(io.BytesIO(data)).info


def test_pictures_of_each_groups_first_run(sweep: Path, tmp_path: Path) -> None:
    def picture(name: str, width: int = 700, **options: object) -> None:
        (sweep / name / "figures").mkdir(exist_ok=True)
        Image.new("RGB", (width, 700), "red").save(sweep / name / "figures" / "samples.png", **options)

    words = PngInfo()
    words.add_text("comment", "<script>")
    picture("rloo-s1", pnginfo=words)  # the first that has one
    picture("gaussian-s0", format="GIF")
    picture("gumbel_softmax-s0", width=40_000)  # more pixels than are decoded
    (sweep / "gaussian-s1" / "figures").mkdir()
    (sweep / "gaussian-s1" / "figures" / "samples.png").symlink_to(sweep / "rloo-s1" / "figures" / "samples.png")
    (sweep / "gaussian-s2" / "figures").mkdir()
    (sweep / "gaussian-s2" / "figures" / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n<script>")
    page = check_page(html(compared(sweep), []))
    (source,) = (attributes["src"] for tag, attributes in page.tags if tag == "img")
    assert "rloo, seed 1" in page.text
    data = base64.b64decode(source.partition(",")[2])
    assert b"script" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (600, 600)


# --- hostile content -------------------------------------------------------------------------------------------------

NAMES = [
    "<script>alert(1)</script>", "[red]x[link=http://e.vil]", "\x1b[31mred\x1b]8;;http://e.vil\x07", "a|b", "a&b_c",
    "=cmd()", "+1", "@x", "-1+1", "\t=1", "$x^2$", "$\\frac$", "_hidden", "\\input{x}", "100%", "#{}~", "```",
    "![x](y)", "\u202ereversed", "\udcff", "'\"><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "]]>", "--><b>",
    "\u4e2d\u6587", "x" * 300, ":smile:",
]  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "hostile"
    for index, name in enumerate(NAMES):
        raw = name.encode("utf-8", "replace").decode()
        settings = {"name": "evil" if set(raw) & set("/\\") else raw}
        settings["trainer"] = composed(*SMALL)["trainer"] | {"note": raw}
        run = write_run(folder / f"{index}", val=100 + index, settings=settings)
        numbers = json.loads((run / "metrics.json").read_text())
        huge = {"test/nll": 1e300, "test/<b>": 1.0, "=cmd()": 2.0, "val/kl": "<script>", "test/x": True}
        (run / "metrics.json").write_text(json.dumps(numbers | huge))
    write_run(folder / "slash", settings={"name": "a/b"})
    write_run(folder / "fails", state="failed", reason="".join(NAMES[:10]))
    write_run(folder / "<b>&|_\x1b[31m=", state="<script>alert(1)</script>")
    broken = write_run(folder / "broken", "estimator=rloo", val=99)
    (broken / "metrics.csv").write_text("epoch,step,val/loss\n<b>,=1,x\n1,2,3\n1,4,5\n")
    (broken / "timing.csv").write_text("\x00\xff")
    (broken / "environment.json").write_text(
        json.dumps({"decoder_evaluations": "<b>", "data": ["x"], "processor": ["<script>"]})
    )
    return folder


def test_nothing_of_a_strangers_runs(hostile: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["compare", str(hostile)]) == 0
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)
    assert "[red]x" in out  # shown, not obeyed
    assert ":smile:" in out
    folder = hostile / "comparison"
    for file in folder.glob("*.[cmth]*"):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", file.read_text()), file.name
    page = check_page((folder / "comparison.html").read_text())
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not {"b", "script", "img"} & {tag for tag, _ in page.tags}  # and no run has a picture
    for name in ("comparison.csv", "comparison_runs.csv"):
        for row in csv.reader((folder / name).read_text().splitlines()):
            for cell in row:
                assert cell[:1] not in "=+@-" or cell == "" or re.fullmatch(r"-?[\d.e-]+", cell), cell
        assert "cmd" not in pandas.read_csv(folder / name).columns
    text = (folder / "comparison.md").read_text()
    assert "<" not in text
    assert r"a\|b" in text
    assert r"\[red\]x" in text
    assert r"!\[" not in text.replace(r"\!\[", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    tex = (folder / "comparison.tex").read_text()
    assert r"a\&b\_c" in tex
    assert r"\input{" not in tex
    assert r"\textbackslash{}input\{x\}" in tex
    for line in tex.splitlines():
        assert not re.search(r"\\\\ *\[", line)
    assert not re.search(r"(?<!\\)[%#]", tex.partition("\n")[2])


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: the page is not opened in a browser")
@pytest.mark.parametrize("which", ["sweep", "hostile"])
def test_the_page_in_a_browser(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(which)
    write(compared(folder), tmp_path / "out")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=2000", "--dump-dom",
               (tmp_path / "out" / "comparison.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr  # where the page's errors and refusals are logged
    assert done.stdout.count("<svg") == 3
    assert 'id="axes_1"' in done.stdout
    assert "<script" not in done.stdout


# --- from end to end -------------------------------------------------------------------------------------------------


def test_a_sweep_ends_with_its_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Jobs fail; the table of the others is printed, and the failed ones named."""
    monkeypatch.chdir(tmp_path)
    sweep = [
        "-m",
        "estimator=gumbel_softmax,rloo",
        "samples=4",
        "data.validation=237,99999",
        "hydra.sweep.dir='a b/${now:%Y}'",
    ]
    assert cli.main(["train", *SMALL, *sweep]) == 2  # so many images there are not
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "a b").iterdir()
    assert re.fullmatch(r"\d{4}", folder.name)
    table = out[out.index("digits, dynamic binarization") :]
    assert "rloo" in table
    assert re.search(r"left out, 2 failed starts: .*3-rloo-validation=99999-s0 \(failed: .*data.validation", table)
    assert (folder / "comparison" / "comparison.html").is_file()
    rows = pandas.read_csv(folder / "comparison" / "comparison.csv").set_index("estimator")
    assert rows.loc["rloo", "decoder_evaluations"] == 4
    assert rows.loc["gumbel_softmax", "decoder_evaluations"] == 4
    assert (folder / "comparison" / "loss_by_evaluations.png").is_file()


def test_a_problem_with_the_comparison_leaves_the_sweep_alone(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (sweep / "comparison").write_text("in the way")
    summarize(sweep)
    err = capsys.readouterr().err
    assert err.startswith("vi-lab train: no comparison of ")
    assert err.count("\n") == 1
    summarize(sweep.parent / "nowhere")
    assert "no such folder" in capsys.readouterr().err
