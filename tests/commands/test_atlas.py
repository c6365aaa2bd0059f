"""`vi-lab atlas` on an atlas that the tests write, with the embedded digits: what it searches, trains, and reports."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.support import TIME_LIMIT, refusal
from vi_lab import atlas as atlases
from vi_lab import cli
from vi_lab.atlas import BUDGETS, Setting, steps_of
from vi_lab.commands.atlas import Survey
from vi_lab.comparison.atlas import LOSS, NLL, Report, Shape, document, entries
from vi_lab.comparison.searched import Selection, has_ended, pace, select
from vi_lab.errors import ViLabError
from vi_lab.runs.files import write_json, write_once
from vi_lab.runs.jobs import State

TINY: dict[str, Any] = {
    "title": "A tiny one",
    "latents": ["1x3"],
    "estimators": ["reinmax", "rloo", "gaussian", "local_expectation"],
    "settings": ["data=digits", "network.encoder.hidden=[4]", "network.decoder.hidden=[4]", "evaluation.samples=2",
                 "evaluation.images=10", "accelerator=cpu", "trainer.limit_train_batches=4",
                 "trainer.limit_val_batches=1", "estimator.samples=2"],
    "grid": {"optimizer.lr": [1e-3, 1e-2], "temperature": [1.0]},
    "search": {"epochs": 1, "seeds": [0]},
    "report": {"epochs": 2, "seeds": [7, 8]},
    "most_evaluations": 2.5,
    "seconds": 0.01,
}  # fmt: skip


def write_atlas(folder: Path, **changes: Any) -> Path:
    """A folder for --config-dir."""
    (folder / "atlas").mkdir(parents=True, exist_ok=True)
    (folder / "atlas" / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return folder


def run_atlas(folder: Path, *arguments: str, budget: str = "none", workers: int = 1) -> dict:
    """What atlas.json says."""
    words = ["atlas", "tiny", *arguments, "--config-dir", str(folder), "--budget", budget, "--workers", str(workers)]
    assert cli.main(words) == 0
    return json.loads(Path("outputs/sweeps/atlas-tiny/report/atlas.json").read_text())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(folder: Path) -> dict[str, dict]:
    """The runs of an atlas by their names, with their metrics."""
    files = (folder / "outputs/sweeps/atlas-tiny").glob("*/metrics.json")
    return {file.parent.name: json.loads(file.read_text()) for file in files}


# --- the data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"report": {"epochs": 1, "seeds": [1, 0]}}, "report: seeds: 0 is a seed of the search"),
        ({"search": {"epochs": 0, "seeds": [0]}}, "search: epochs: wanted a whole number from 1 on, got 0"),
        ({"search": {"epochs": 1, "seeds": [0, 0]}}, "search: seeds: wanted each once"),
        ({"search": [1]}, "search: wanted a mapping"),
        ({"grid": {"optimizer.lr": [1e-3]}}, "grid: temperature: wanted a list of numbers"),
        ({"grid": {"optimizer.lr": [1e-3], "temperature": [1, 2]}}, "wanted two rates or more"),
        ({"grid": {"lr": [1e-3], "temperature": [1]}}, "grid: no such key as lr"),
        ({"latent": ["4x8"]}, "no such key as latent; did you mean latents?"),
        ({"latents": "4x8"}, "latents: wanted a list of names"),
        ({"settings": ["seed=3"]}, "settings: seed=3: the atlas has a key of its own"),
        ({"settings": ["callbacks=[early_stopping]"]}, "a run might end sooner or later"),
        ({"settings": ["+trainer.max_time='00:00:01:00'"]}, "a run might end sooner or later"),
        ({"grid": {"optimizer.lr": ["1e-3"], "temperature": [1]}}, "such as 1.0e-3 (with a point)"),
        ({"grid": {"optimizer.lr": [1e-3, 1.0000001e-3], "temperature": [1]}}, "in their first six digits"),
        ({"grid": {"optimizer.lr": [1e-3, 1.001e-3], "temperature": [1, 2]}}, "the range is too narrow"),
        ({"settings": ["rloo"]}, "settings: wanted a list of overrides"),
        ({"settings": ["data=digits", "data.validation=0"]}, "nothing is held out"),
        ({"settings": ["optimizer.typo=1"]}, "there is no key optimizer.typo"),
        ({"most_evaluations": -1}, "most_evaluations: wanted a number above 0"),
        ({"estimators": ["rlo"]}, "estimators: there is no rlo"),
        ({"estimators": ["gaussian"]}, "no estimator goes with latent=1x3"),
    ],
)
def test_a_mistake_in_the_file_ends_in_one_line(
    changes: dict, said: str, place: Path, capsys: pytest.CaptureFixture
) -> None:
    write_atlas(place, **{"estimators": ["rloo"], **changes})
    assert said in refusal(capsys, "atlas", "tiny", "--config-dir", str(place))


def test_a_file_that_is_no_yaml_ends_in_one_line(place: Path, capsys: pytest.CaptureFixture) -> None:
    (write_atlas(place) / "atlas" / "tiny.yaml").write_text("a: [")
    assert "cannot be read" in refusal(capsys, "atlas", "tiny", "--config-dir", str(place))
    assert "did you mean tiny?" in refusal(capsys, "atlas", "tinny", "--config-dir", str(place))
    assert "the atlas says what is trained" in refusal(capsys, "atlas", "samples=3")
    for budget in ("soon", "9" * 400 + "h"):
        assert f"--budget {budget}" in refusal(capsys, "atlas", "--budget", budget)


def test_an_edge_is_that_of_the_rates_that_were_searched(place: Path) -> None:
    """Those without a temperature are rounded; of one rate none is marked."""
    write_atlas(place, grid={"optimizer.lr": [1.2361e-3, 1.2344e-2], "temperature": [1.0, 2.0]})
    atlas = atlases.find("tiny", str(place))
    assert [atlas.at_edge(one)[0] for one in atlas.grid(False)] == [True, False, False, True]
    write_atlas(place, grid={"optimizer.lr": [1e-3], "temperature": [1.0]})
    assert atlases.find("tiny", str(place)).at_edge(Setting(1e-3, 1.0)) == (False, False)


def test_without_the_data_nothing_is_trained(
    place: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all runs would have failed, for good."""
    monkeypatch.setattr(Survey, "_count", lambda survey, missing: survey.folder.joinpath(".sweep").mkdir(parents=True))
    write_atlas(place, estimators=["rloo"], settings=["data=mnist", "data.download=false", "data.root=nowhere"])
    assert cli.main(["atlas", "tiny", "--config-dir", str(place), "--workers", "1"]) != 0
    assert "give the folder" in capsys.readouterr().err
    assert not list(place.glob("outputs/sweeps/atlas-tiny/rloo*"))


def test_records_that_nobody_would_have_written_are_not_used(place: Path) -> None:
    """Names in them become overrides, and the folder may be somebody else's."""
    write_atlas(place, estimators=["rloo"])
    survey = Survey(atlases.find("tiny", str(place)), [], str(place))
    suited = {"tempered": {"1x3": {"../../evil": False}}, "unsuited": {"1x3": {}}}
    survey._file("").parent.mkdir(parents=True)
    write_json(survey._file(f"suited-{survey.mark}"), suited)
    write_json(survey._file("evaluations"), {"1x3": {"rloo": 9.0}, "settings": ["data=mnist"]})
    again = Survey(survey.atlas, [], str(place))
    assert again.tempered == {"1x3": {"rloo": False}}
    assert again.counted == {}
    again.counted = {"1x3": {"rloo": 2.0}}
    chosen = {"setting": {"rate": 1e-3, "temperature": None}, "losses": [1.0], "evaluations": 2.0,
              "seconds_per_step": 0.1, "steps": dict.fromkeys(BUDGETS, 5)}  # fmt: skip
    for name, one in (("../../evil", chosen), ("rloo", {**chosen, "setting": {"rate": 3.0, "temperature": None}})):
        record = {"steps_per_epoch": 10, "estimators": {name: one}}
        again._read = lambda _, values=record: values  # type: ignore[method-assign]
        with pytest.raises(ViLabError, match="remove it"):
            again.selection("1x3")
    again._read = lambda _: {"steps_per_epoch": 10, "estimators": {"rloo": chosen}}  # type: ignore[method-assign]
    assert again.selection("1x3") is not None


def test_damaged_times_count_for_nothing(tmp_path: Path) -> None:
    folder = plant(tmp_path / "a", seconds=(0.0, -1.0, 2.0))
    (folder / "timing.csv").write_text("epoch,step,seconds\n1,10,0\n2,10,1\n3,20,2\n")
    assert pace([folder]) == (10, 0.2)
    assert steps_of(1, 10, {"a": 5e-324}, {"a": 1.0})["a"]["evaluations"] == 10


def test_the_shipped_atlas_can_be_read_and_searches_all_estimators_equally() -> None:
    atlas = atlases.find("categorical")
    with_one, without = atlas.grid(True), atlas.grid(False)
    assert len(set(with_one)) == len(set(without)) == atlas.searched == 9
    assert [without[0].rate, without[-1].rate] == pytest.approx([min(atlas.rates), max(atlas.rates)])
    ratios = np.diff(np.log([one.rate for one in without]))
    assert ratios == pytest.approx(ratios.mean(), rel=0.02)
    assert atlas.at_edge(with_one[0]) == (True, True)
    assert atlas.at_edge(Setting(atlas.rates[1], atlas.temperatures[1])) == (False, False)
    assert atlas.at_edge(without[1]) == (False, False)


def test_the_budgets_are_equal() -> None:
    """As many evaluations of the decoder, and as much time, as far as whole steps can."""
    evaluations = {"one": 1.0, "four": 4.0, "huge": 1e6}
    seconds = {"one": 0.001, "four": 0.0025, "huge": 0.01}
    steps = steps_of(5, 500, evaluations, seconds)
    assert {name: own["epochs"] for name, own in steps.items()} == dict.fromkeys(steps, 2500)
    assert {name: own["evaluations"] for name, own in steps.items()} == {"one": 2500, "four": 625, "huge": 1}
    assert {name: own["time"] for name, own in steps.items()} == {"one": 2500, "four": 1000, "huge": 250}
    assert steps_of(1, 3, {"a": 2.0}, {"a": 1.0})["a"]["evaluations"] == 2  # 1.5, to the nearest


# --- what was chosen and what is reported, from planted runs ----------------------------------------------------------


def plant(folder: Path, reason: str = "", seconds: tuple[float, ...] = (1.0,), **metrics: float) -> Path:
    """A run that has ended, of ten steps an epoch."""
    folder.mkdir(parents=True)
    write_json(folder / "status.json", {"state": "failed" if reason else "completed", "reason": reason})
    write_json(folder / "metrics.json", {name.replace("_", "/"): value for name, value in metrics.items()})
    rows = [f"{epoch},{10 * epoch},{taken}" for epoch, taken in enumerate(seconds, 1)]
    write_json(folder / "environment.json", {"decoder_evaluations": 2.0})
    (folder / "timing.csv").write_text("\n".join(["epoch,step,seconds", *rows]) + "\n")
    return folder


def test_the_validation_loss_of_the_search_decides(tmp_path: Path) -> None:
    """Not the test loss; a diverged run counts as infinite, and the fastest epoch tells the pace."""
    atlas = atlases.find("categorical")
    grid = [Setting(0.1, 1.0), Setting(0.2, 1.0), Setting(0.3, 1.0)]
    means = [[(100, 90), (102, 90)], [(101, 95), (100, 95)], [(1, 1), (None, 1)]]
    folders = [
        [
            plant(tmp_path / f"{i}-{seed}", seconds=(2.0, 1.0 + i), val_loss=val, test_loss=test)
            if val
            else plant(tmp_path / f"{i}-{seed}", "train/loss became nan by step 3", val_loss=1.0)
            for seed, (val, test) in enumerate(pairs)
        ]
        for i, pairs in enumerate(means)
    ]
    lost = [[plant(tmp_path / "lost", "the loss became inf", seconds=())]]
    found = select(atlas, {"a": grid, "b": grid[:1]}, {"a": folders, "b": lost})
    assert found is not None
    a, b = found.estimators["a"], found.estimators["b"]
    assert a.setting == grid[1]
    assert a.losses == (101.0, 100.5, math.inf)
    assert (a.failed, a.seconds_per_step, found.steps_per_epoch) == (1, 0.1, 10)
    assert (a.evaluations, a.steps["evaluations"]) == (2.0, atlas.report.epochs * 5)
    assert b.setting is None
    assert b.steps == {}
    assert Selection.from_json(json.loads(json.dumps(found.as_json()))).as_json().keys() == found.as_json().keys()
    write_once(tmp_path / "record.json", found.as_json())
    write_once(tmp_path / "record.json", {})
    again = Selection.from_json(json.loads((tmp_path / "record.json").read_text()))
    assert again.estimators["a"] == a
    assert again.estimators["b"].losses == (math.inf,)
    assert pace([tmp_path / "lost"]) is None


def test_a_run_has_ended_when_trying_again_would_not_help(tmp_path: Path) -> None:
    assert has_ended(plant(tmp_path / "a", "train/loss became nan by step 3"), State("failed", 1, 1))
    assert not has_ended(plant(tmp_path / "b", "No space left on device"), State("failed", 1, 1))
    assert has_ended(tmp_path / "b", State("failed", 2, 2))
    assert has_ended(plant(tmp_path / "c"), State("completed", 1, 0))
    assert not has_ended(tmp_path / "c", State("interrupted", 1, 0))


def test_means_errors_and_differences_are_those_of_the_runs(tmp_path: Path) -> None:
    """Against numpy; the order is that of the validation loss, and a failed run is told."""
    atlas = atlases.find("categorical")
    chosen = {
        name: {"setting": {"rate": 1e-3, "temperature": 0.6}, "losses": [1.0], "evaluations": 1.0,
               "seconds_per_step": 0.1, "steps": dict.fromkeys(BUDGETS, 50)}
        for name in ("a", "b", "c")
    }  # fmt: skip
    selection = Selection.from_json({"steps_per_epoch": 10, "estimators": chosen})
    draws = np.random.default_rng(0).normal(100, 3, (2, 3, 2))  # a and b: seed, (loss, nll)
    folders: dict[int, dict[str, dict[str, Path]]] = {}
    for place, seed in enumerate((100, 101, 102)):
        folders[seed] = {}
        for i, (name, val) in enumerate({"a": 2.0, "b": 1.0, "c": 3.0}.items()):
            reason = "train/loss became nan" if (name, seed) == ("c", 101) else ""
            loss, nll = draws[i % 2, place]
            where = plant(tmp_path / f"{name}{seed}", reason, val_loss=val, test_loss=loss, test_nll=nll)
            folders[seed][name] = dict.fromkeys(BUDGETS, where)
    rows = entries(atlas, selection, folders)
    assert [row.name for row in rows] == ["b", "a", "c"]
    for row, values in zip(rows, (draws[1], draws[0]), strict=False):
        for column, metric in enumerate((LOSS, NLL)):
            mean, error = row.mean(metric, "time")
            assert mean == pytest.approx(values[:, column].mean())
            assert error == pytest.approx(values[:, column].std(ddof=1) / np.sqrt(3))
    difference = rows[1].difference
    assert difference is not None
    apart = draws[0, :, 0] - draws[1, :, 0]
    half = 4.302653 * apart.std(ddof=1) / np.sqrt(3)  # Student's with two degrees of freedom
    assert [*difference[:3]] == pytest.approx([apart.mean(), apart.mean() - half, apart.mean() + half], rel=1e-5)
    assert rows[0].difference is None
    assert rows[2].cell(LOSS, "epochs") == "failed in 1 of 3"
    shape = Shape("8x4", selection, rows, [100, 101, 102], {"vq": "why"}, {"a": True, "b": False, "c": True}, 3, 3)
    report = Report(atlas, [shape])
    text = document(report, "atlas.md.j2", report.figures(), "images/")
    for words in ("failed in 1 of 3", rows[1].cell(NLL, "time"), "Without vq: why", "those without a temperature (b)"):
        assert words in text
    assert "<svg" in document(report, "atlas.html.j2", report.figures())
    write_json(folders[100]["a"]["time"] / "metrics.json", {"step": 49, "val/loss": 1.0})
    with pytest.raises(ViLabError, match="trained for 49 steps, and not for 50"):
        entries(atlas, selection, folders)


# --- from end to end -------------------------------------------------------------------------------------------------


def test_the_best_of_the_search_is_reported_on_fresh_seeds_and_nothing_is_trained_twice(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    report = run_atlas(write_atlas(place))
    check_report(place, report)
    check_another_start(place, report, capsys)
    check_a_missing_run(place)


def check_report(folder: Path, report: dict) -> None:
    """The chosen setting has the least validation loss of the search; numbers are those of fresh seeds."""
    shape = report["latents"]["1x3"]
    assert shape["left_out"].keys() == {"gaussian", "local_expectation"}
    assert "more than 2.5" in shape["left_out"]["local_expectation"]
    assert shape["seeds"] == [7, 8]
    assert {row["estimator"] for row in shape["estimators"]} == {"reinmax", "rloo"}
    there = runs(folder)
    for row in shape["estimators"]:
        name, rate = row["estimator"], row["setting"]["rate"]
        searched = {run: numbers for run, numbers in there.items() if run.startswith(f"{name}-1x3-search-")}
        assert len(searched) == 2
        assert all("-s0-" in run and "test/nll" not in numbers for run, numbers in searched.items())
        best = min(searched, key=lambda run, found=searched: found[run]["val/loss"])
        assert f"search-lr={rate:g}-" in best
        assert row["budgets"]["evaluations"]["steps"] == 4  # of eight: both take two evaluations a step
        assert max(row["budgets"]["time"]["steps"], row["budgets"]["epochs"]["steps"]) == 8
        for budget in row["budgets"].values():
            for metric in ("test/loss", "test/nll"):
                ours = [
                    there[run][metric]
                    for seed in (7, 8)
                    for run in there
                    if run.startswith(f"{name}-1x3-lr={rate:g}") and f"-{budget['steps']}-s{seed}-" in run
                ]
                assert len(ours) == 2
                assert budget[metric]["mean"] == pytest.approx(np.mean(ours))
                assert budget[metric]["standard_error"] == pytest.approx(np.std(ours, ddof=1) / np.sqrt(2))
    steps = {round(numbers["step"]) for run, numbers in there.items() if "-search-" not in run}
    assert {4, 8} <= steps


def check_another_start(folder: Path, report: dict, capsys: pytest.CaptureFixture) -> None:
    """It trains nothing, and reports the same."""
    logs = {file: file.stat().st_mtime_ns for file in folder.rglob("train.log")}
    again = run_atlas(folder, "--markdown", "page/atlas.md")
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("train.log")} == logs
    assert again["latents"] == report["latents"]
    page = (folder / "page" / "atlas.md").read_text()
    assert "images/atlas_tiny_1x3.png" in page
    assert (folder / "page" / "images" / "atlas_tiny_1x3.png").is_file()
    assert str(folder) not in page
    capsys.readouterr()
    assert cli.main(["atlas", "tiny", "--config-dir", str(folder), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "2 of 2" in listed
    assert "about 0 s of one core are left" in listed


def check_a_missing_run(folder: Path) -> None:
    """Only those seeds count that all estimators have, and the run is what is left to do."""
    survey = Survey(atlases.find("tiny", str(folder)), [], str(folder))
    gone = next(folder.glob("outputs/sweeps/atlas-tiny/rloo-1x3-lr*-s8-*"))
    gone.rename(folder / "kept")
    (shape,) = survey.report("").shapes
    assert shape.seeds == [7]
    assert all([*row.numbers[LOSS]["epochs"]] == [7] for row in shape.entries)
    assert {job.estimator for job in survey.open()} == {"rloo"}


def test_the_search_comes_first_and_no_report_before_it_ends(place: Path) -> None:
    survey = Survey(atlases.find("tiny", str(write_atlas(place, most_evaluations=None))), [], str(place))
    assert {job.label.split("-")[2] for job in survey.open()} == {"search"}
    assert [job.estimator for job in survey.open()] == ["reinmax", "rloo", "local_expectation"] * 2
    (shape,) = survey.report("").shapes
    assert (shape.selection, shape.done, shape.runs) == (None, 0, 6)
    assert "not complete" in shape.summary
    assert not Path("outputs/sweeps/atlas-tiny").exists()


def test_a_list_needs_no_torch(place: Path) -> None:
    write_atlas(place, estimators=["rloo"])
    code = (
        "import sys; from vi_lab import cli; cli.main(['atlas', 'tiny', '--list', '--config-dir', '.']); "
        "print({'torch', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
    assert "rloo" in done.stdout


@pytest.mark.slow
def test_workers_share_the_runs_and_agree(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    for workers in (1, 2):
        folder = place / str(workers)
        folder.mkdir()
        monkeypatch.chdir(folder)
        rows = run_atlas(write_atlas(folder), "threads=1", workers=workers)["latents"]["1x3"]["estimators"]
        searched.append({row["estimator"]: row["searched"] for row in rows})
        claims = [path.name for path in (folder / "outputs/sweeps/atlas-tiny/.sweep/claims").glob("*.end")]
        assert len(claims) == len(runs(folder)) == len({name.rpartition(".")[0].rpartition(".")[0] for name in claims})
    assert searched[0] == searched[1]


def test_estimators_that_are_left_out_for_one_reason_stand_together() -> None:
    left_out = {"arm": "estimator arm needs bits", "exact": "1e9 states", "vq": "estimator vq needs bits"}
    shape = Shape("8x4", None, [], [], left_out, {}, 0, 1)
    assert shape.reasons == {"needs bits": "arm, vq", "1e9 states": "exact"}
