"""`vi-lab evaluate`, and the evaluation with which a training run ends."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest

from tests.support import compose, run
from vi_lab import cli, evaluation

SMALL = ["data=digits", "trainer.max_epochs=1", "figures=false", "network.encoder.hidden=[16]",
         "network.decoder.hidden=[16]", "accelerator=cpu", "threads=1", "evaluation.samples=20"]  # fmt: skip
EVALUATE = ["evaluate", "accelerator=cpu", "threads=1", "evaluation.samples=20"]


def train(folder: Path, *overrides: str) -> None:
    folder.mkdir(parents=True)
    run(compose(*SMALL, *overrides), folder)
    (folder / "status.json").write_text('{"state": "completed"}')


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for name in ("gumbel_softmax", "gaussian", "vq"):
        train(folder / name, f"estimator={name}")
    return folder


@pytest.fixture
def sweep(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)
    return Path("sweep")


def read(folder: Path, name: str = "evaluation.json") -> dict:
    return json.loads((folder / name).read_text())


def test_training_ends_with_the_same_evaluation(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sweep / "gumbel_softmax"
    metrics, before = read(folder, "metrics.json"), read(folder)
    assert before["images"] == before["images_in_split"] == 360
    assert before["samples"] == 20
    assert (before["binarization"], before["split"], before["source"]) == ("dynamic", "test", "digits")
    for name in ("nll", "nll_error", "bits_per_dimension", "active_units", "mutual_information", "marginal_kl"):
        assert metrics[f"test/{name}"] == before["metrics"][name]
    assert metrics["test/loss_relaxed"] == before["metrics"]["loss_relaxed"]
    assert "test/loss_relaxed" not in read(sweep / "gaussian", "metrics.json")
    assert before["metrics"]["nll"] < before["metrics"]["negative_elbo"]
    assert abs(metrics["test/loss"] - before["metrics"]["negative_elbo"]) < 1
    # the command repeats it to the last bit, into a file of its own
    assert cli.main([*EVALUATE, f"run={folder}"]) == 0
    assert read(folder) == before
    again = read(folder, "evaluations/test-last-K20.json")
    assert again["metrics"] == before["metrics"]
    assert (folder / "evaluations/test-last-K20.csv").read_bytes() == (folder / "units.csv").read_bytes()
    out = capsys.readouterr().out
    assert "test split of digits, 360 of 360 images, dynamic binarization, K = 20, last weights" in out
    assert "\x1b" not in out
    rows = list(csv.DictReader((folder / "units.csv").read_text().splitlines()))
    assert len(rows) == 30
    assert sum(float(rows[3][f"p{c}"]) for c in range(10)) == pytest.approx(1)
    assert {path.name for path in Path().iterdir()} == {"sweep"}  # the command has left nothing else


def test_samples_null_leaves_the_evaluation_out(tmp_path: Path) -> None:
    train(tmp_path / "run", "evaluation.samples=null")
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert "test/nll" not in read(tmp_path / "run", "metrics.json")


def test_a_sweep_is_evaluated_run_by_run(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(sweep / "gaussian", sweep / "stopped")
    (sweep / "stopped" / "status.json").write_text('{"state": "interrupted"}')
    shutil.copytree(sweep / "gaussian", sweep / "damaged")
    (sweep / "damaged" / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    overrides = ["evaluation.images=50", "split=val", "data.root=nowhere"]  # digits need no root
    assert cli.main([*EVALUATE, *overrides, "run=sweep"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "left out: sweep/stopped (interrupted)" in out
    assert "left out: sweep/damaged/checkpoints/last.ckpt: damaged" in out
    assert "val split of digits, 50 of 237 images" in out
    for name in ("gumbel_softmax", "gaussian", "vq"):
        report = read(sweep / name, "evaluations/val-last-K20-first50.json")
        assert (report["images"], report["split"]) == (50, "val")
        assert math.isfinite(report["metrics"]["negative_elbo"])
    quantized = read(sweep / "vq", "evaluations/val-last-K20-first50.json")
    assert quantized["samples"] == 1
    assert "nll" not in quantized["metrics"]
    assert "certain" in quantized["notes"][0]
    assert 0 < quantized["metrics"]["mutual_information"] <= math.log(50) + 1e-9
    for name in ("gumbel_softmax", "gaussian"):
        (sweep / name / "checkpoints" / "last.ckpt").unlink()
    assert cli.main([*EVALUATE, "run='sweep/g*'", "weights=best"]) == 0
    assert read(sweep / "gaussian", "evaluations/test-best-K20.json")["weights"] == "best"


def test_ctrl_c_keeps_what_is_done(sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    before = read(sweep / "gaussian")
    original, calls = evaluation._block, 0

    def interrupted_block(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(evaluation, "_block", interrupted_block)
    assert cli.main([*EVALUATE, "run=sweep/gaussian"]) == 130
    assert read(sweep / "gaussian") == before
    report = read(sweep / "gaussian", "evaluations/test-last-K20-first100.json")
    assert report["interrupted"] is True
    assert (report["images"], report["images_wanted"]) == (100, 360)  # two blocks of 1,000 / 20
    assert math.isfinite(report["metrics"]["nll"])
    captured = capsys.readouterr()
    assert "100 of 360 images" in captured.out
    assert captured.err.count("\n") == 1
    assert "interrupted after 100 of 360 images" in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run=nowhere"], "nowhere: no such folder"),
        ([], "FOLDER is needed"),
        (["run=."], "no runs below"),
        (["run=sweep", "split=train"], "one of test, val"),
        (["run=sweep", "weights=first"], "one of last, best"),
        (["run=sweep", "evaluation.samples=0"], "evaluation.samples=0"),
        (["run=sweep", "latent=bernoulli"], "latent"),
        (["-m", "run=sweep"], "-m is not needed"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err


def test_gray_pixels_and_densities_are_noted(tmp_path: Path) -> None:
    train(tmp_path / "gray", "data.binarization=none")
    train(tmp_path / "density", "data.binarization=none", "likelihood=gaussian")
    assert "gray pixels" in read(tmp_path / "gray")["notes"][0]
    assert "densities" in read(tmp_path / "density")["notes"][0]
