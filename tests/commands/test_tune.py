"""`vi-lab tune`: the space in Hydra's words, trials that are counted, shared, pruned, resumed, and told once."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from tests.support import SMALL, refusal
from vi_lab import cli
from vi_lab.errors import UserError, ViLabError
from vi_lab.runs.claims import Claims
from vi_lab.runs.jobs import Jobs

optuna = pytest.importorskip("optuna")

from vi_lab.training.study import open_study, points, sampler_of, space_of, words_of  # noqa: E402

TINY = [*SMALL, "trainer.max_epochs=2", "evaluation.samples=null", "logger=[]"]
RATE = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
FAILING = "+callbacks.fail._target_=planned_trials.Fail"
CALLBACK = """
from lightning.pytorch.callbacks import Callback

class Fail(Callback):
    def on_train_start(self, trainer, pl_module):
        if trainer.optimizers[0].param_groups[0]["lr"] == 0.002:
            raise RuntimeError("as was planned")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "planned_trials.py").write_text(CALLBACK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "sweeps" / "first"


def tune(*overrides: str) -> int:
    return cli.main(["tune", "sweep=first", *TINY, *overrides])


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return open_study(folder).get_trials()


def test_a_space_in_hydras_words() -> None:
    words = [
        "a=interval(0.1,2)",
        "b=tag(log,interval(1e-4,1))",
        "c=int(interval(5,30))",
        "d=choice(x,y)",
        "e=1,2",
        "f=3",
    ]
    space = space_of([*words, "g=range(1,7,2)"])
    Float, Int, Choice = (
        getattr(optuna.distributions, f"{kind}Distribution") for kind in ("Float", "Int", "Categorical")
    )
    assert space == {
        "a": Float(0.1, 2.0),
        "b": Float(1e-4, 1.0, log=True),
        "c": Int(5, 30),
        "d": Choice(["x", "y"]),
        "e": Choice(["1", "2"]),
        "g": Choice(["1", "3", "5"]),
    }
    assert words_of({"d": "x", "a": 0.5}, space) == ["a=0.5", "d=x"]
    for wrong in ({"d": "z"}, {"a": 3.0}, {"h": 1}, {"d": "x _target_=os.system"}):  # the file may be a stranger's
        with pytest.raises(ViLabError, match="not of the space"):
            words_of(wrong, space)
    assert [*points(space_of(["d=choice(x,y)", "e=1,2"]))][1] == {"d": "x", "e": "2"}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("a=interval(2,1)", "LOW < HIGH"),
        ("a=tag(log,interval(0,1))", "0 < LOW"),
        ("a=range(3,1)", "an empty range"),
        ("a=glob(*)", "wanted interval"),
        ("+a=interval(1,2)", "without"),
        ("a=tag(int,interval(1,3))", "no such tag as int"),
        ("a=interval(0,1e400)", "finite ends"),
    ],
)
def test_spaces_that_are_none(word: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        space_of([word])


def test_samplers_say_what_they_do_not_take() -> None:
    with pytest.raises(UserError, match="is an interval"):
        sampler_of("grid", space_of([RATE]))
    with pytest.raises(UserError, match="intervals only"):
        sampler_of("cmaes", space_of(["a=1,2"]))
    assert isinstance(sampler_of("tpe", space_of([RATE])), optuna.samplers.TPESampler)
    assert isinstance(sampler_of("random", space_of([RATE])), optuna.samplers.RandomSampler)


def test_trials_are_a_total_and_end_in_a_table(folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = [RATE, "latent.classes=choice(5,10)", "estimator=rloo", "seed=0,1"]
    assert tune("trials=2", *words) == 0
    assert tune("trials=3", *words) == 0
    out = capsys.readouterr().out
    assert "The best again: vi-lab train -m " in out
    assert " seed=0,1\n" in out
    assert "optuna-dashboard outputs/sweeps/first/study.journal" in out
    found = trials(folder)
    assert [trial.state.name for trial in found] == ["COMPLETE"] * 3
    for trial in found:
        losses = [
            json.loads((folder / f"trial-{trial.number:04d}-s{seed}" / "metrics.json").read_text())["val/loss"]
            for seed in (0, 1)
        ]
        assert trial.value == pytest.approx(sum(losses) / 2, rel=1e-12)
        resolved = (folder / f"trial-{trial.number:04d}-s0" / "config_resolved.yaml").read_text()
        assert f"classes: {trial.params['latent.classes']}" in resolved
    with (folder / "tuning" / "trials.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["val/loss"]) for row in rows] == [trial.value for trial in found]
    for name in ("history", "slices"):
        assert (folder / "tuning" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["status", str(folder)]) == 0
    assert "6 jobs: 6 completed" in capsys.readouterr().out


def test_a_grid_has_each_point_once_and_failures_are_recorded(folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["sampler=grid", "optimizer.lr=choice(0.001,0.002,0.003)", FAILING]
    assert tune("trials=99", *words) == 0
    found = trials(folder)
    assert [trial.params["optimizer.lr"] for trial in found] == ["0.001", "0.002", "0.003"]
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "Traceback" in (folder / "trial-0001-s0" / "train.log").read_text()
    assert "as was planned" in capsys.readouterr().err
    assert tune("trials=99", *words) == 0
    assert len(trials(folder)) == 3


def test_folds_are_scored_by_their_mean(folder: Path) -> None:
    assert tune("trials=1", RATE, "data.folds=3", "data.fold=0,1,2") == 0
    (trial,) = trials(folder)
    losses = [
        json.loads((folder / f"trial-0000-s0-fold{fold}" / "metrics.json").read_text())["val/loss"] for fold in range(3)
    ]
    assert len({*losses}) == 3
    assert trial.value == pytest.approx(sum(losses) / 3, rel=1e-12)


def test_a_trial_that_is_behind_is_pruned(folder: Path, capsys: pytest.CaptureFixture) -> None:
    # five trials come before the median prunes; the sixth, at the end of the grid, hardly learns
    rates = "optimizer.lr=choice(0.01,0.011,0.012,0.013,0.014,1e-6)"
    assert tune("sampler=grid", "pruner=median", rates, "seed=0,1") == 0
    states = [trial.state.name for trial in trials(folder)]
    assert states == ["COMPLETE"] * 5 + ["PRUNED"]
    status = json.loads((folder / "trial-0005-s0" / "status.json").read_text())
    assert status["state"] == "pruned"
    assert "pruned after epoch 1: val/loss" in status["reason"]
    assert not (folder / "trial-0005-s1").exists()  # the first of its runs speaks for it
    assert "failed" not in capsys.readouterr().err
    assert cli.main(["status", str(folder)]) == 0
    assert "10 completed, 1 pruned" in capsys.readouterr().out
    assert cli.main(["compare", str(folder)]) == 0
    assert "left out, 1 pruned" in capsys.readouterr().out


def test_a_trial_whose_worker_died_is_taken_up(folder: Path) -> None:
    words = ["trials=2", RATE]
    assert tune(*words) == 0
    study = open_study(folder)
    asked = study.ask(space_of([RATE]))  # a worker that died before its first word
    held = Claims(folder).take("trial-0002-s0", 1)
    assert held is not None
    os.utime(held.path, (0, 0))
    assert tune("trials=3", RATE) == 0
    assert [trial.state.name for trial in trials(folder)] == ["COMPLETE"] * 3
    assert trials(folder)[2].params == asked.params
    assert Claims(folder).read()["trial-0002-s0"] == [None, "completed"]


def test_a_trial_that_was_asked_for_by_half_is_no_trial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [RATE, "data.batch_size=choice(50,100)"]
    assert tune("trials=1", *words) == 0

    class Killed(BaseException):
        pass

    def kill(*rest: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.journal.JournalStorage, "set_trial_param", kill)
        with pytest.raises(Killed):
            open_study(folder).ask(space_of(words))
    assert trials(folder)[1].state.name == "RUNNING"
    assert tune("trials=2", *words) == 0
    assert [trial.state.name for trial in trials(folder)] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert not (folder / "trial-0001-s0").exists()


def test_a_point_that_waits_is_the_next(folder: Path) -> None:
    words = ["sampler=grid", "optimizer.lr=choice(1e-3,2e-3,2e-3)"]
    assert tune("trials=1", *words) == 0
    open_study(folder).enqueue_trial({"optimizer.lr": "0.002"})  # and its worker died
    assert tune("trials=9", *words) == 0
    assert [trial.params["optimizer.lr"] for trial in trials(folder)] == ["0.001", "0.002"]


def test_a_torn_line_is_cut_and_a_damaged_study_told(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert tune("trials=2", RATE) == 0
    journal = folder / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    assert tune("trials=2", RATE) == 0
    assert [trial.state.name for trial in trials(folder)] == ["COMPLETE"] * 2
    lines = whole.splitlines(keepends=True)
    for damage in (
        b"[" * 100_000,
        b'{"op_code": 99}',
        b"no json",
        lines[0].replace(b'"directions":[1]', b'"directions":[2]'),
    ):
        journal.write_bytes(damage + b"\n" + b"".join(lines[1:]))
        capsys.readouterr()
        assert tune("trials=2", RATE) == 1
        err = capsys.readouterr().err
        assert "study.journal: damaged" in err
        assert err.count("\n") == 1


def test_another_search_of_that_name_is_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert tune("trials=1", RATE) == 0
    capsys.readouterr()
    for words in (["optimizer.lr=interval(0.1,0.2)"], [RATE, "latent.classes=7"], [RATE, "pruner=median"]):
        assert "another search has this name" in refusal(capsys, "tune", "sweep=first", *TINY, *words)
    assert cli.main(["train", "-m", "sweep=second", *TINY, "seed=0"]) == 0
    capsys.readouterr()
    assert "a sweep of vi-lab train has this name" in refusal(capsys, "tune", "sweep=second", *TINY, RATE)
    assert [*Jobs.found(folder).names] == ["trial-0000-s0"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([RATE], "needs sweep=NAME"),
        (["sweep=first"], "nothing to search"),
        (["sweep=first", RATE, "-m"], "takes neither -m"),
        (["sweep=first", RATE, "hydra/launcher=joblib"], "each start of vi-lab tune is a worker"),
        (["sweep=first", RATE, "data.validation=0"], "the test images are not for choosing"),
        (["sweep=first", RATE, "stack=2"], "leave it out"),
        (["sweep=first", RATE, "sampler=tbe"], "sampler='tbe': wanted one of tpe"),
        (["sweep=first", "optimizer.lr=interval(1,1e9)"], "optimizer.lr=1000000000.0: wanted a number"),
        (["sweep=first", "estimator=rloo,rlo"], "did you mean rloo"),
        (["sweep=first", RATE, "seed=interval(0,9)"], "seed: each trial is repeated for it"),
    ],
)
def test_mistakes(words: list[str], told: str, capsys: pytest.CaptureFixture, folder: Path) -> None:
    assert told in refusal(capsys, "tune", *words)
    assert not folder.exists()
