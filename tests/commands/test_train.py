"""`vi-lab train`: the run folder, sweeps, launchers, several processes, and what it says of what cannot be."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.support import SMALL, TIME_LIMIT, read_rows
from vi_lab import cli


def test_run_folder_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [o for o in SMALL if "figures" not in o] + ["temperature=0.9", "schedule=linear", "schedule.steps=20"]
    assert cli.main(["train", *overrides, "hydra.run.dir=run folder"]) == 0
    folder = tmp_path / "run folder"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        ".hydra/config.yaml", ".hydra/overrides.yaml", "config_resolved.yaml", "environment.json", "status.json",
        "metrics.csv", "metrics.json", "timing.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
        "evaluation.json", "units.csv",
        "figures/data.png", "figures/history.png", "figures/reconstructions.png", "figures/samples.png",
    }  # fmt: skip
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("completed", None)
    resolved = yaml.safe_load((folder / "config_resolved.yaml").read_text())
    assert resolved["schedule"]["start"] == resolved["temperature"] == 0.9
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["command"].startswith("vi-lab train data=digits")
    assert environment["threads"] == 1
    assert re.fullmatch("[0-9a-f]{64}", environment["data"]["sha256"])
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    rows = read_rows(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["temperature"]) == 0.5  # 23 steps into a schedule of 20
    metrics = json.loads((folder / "metrics.json").read_text())
    assert float(rows[1]["val/loss"]) == metrics["val/loss"]
    assert set(metrics) >= {"train/loss", "train/loss_unrelaxed", "train/relaxation_gap", "val/loss", "test/loss",
                            "test/reconstruction", "test/kl", "temperature"}  # fmt: skip
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 24
    out = capsys.readouterr().out
    assert "epoch 2/2" in out
    assert "vi-lab board" in out
    assert "\x1b" not in out  # plain lines without a terminal


def test_a_loss_that_is_not_finite_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    diverging = [*SMALL, "optimizer=sgd", "optimizer.lr=1e6", "optimizer.weight_decay=1e6"]
    assert cli.main(["train", *diverging]) == 1
    err = capfd.readouterr().err
    assert err.count("became") == err.count("\n") == 1
    assert "there is no checkpoint yet" in err
    assert cli.main(["train", "-m", *diverging, "seed=0,1", "hydra.sweep.dir=sweep"]) == 1
    err = capfd.readouterr().err
    assert err.count("became") == 2  # one for each job
    assert "Error executing" not in err
    assert err.endswith("vi-lab train: job 1 of 2 (0-gumbel_softmax-s0) has failed, as said above\n")


def test_a_failed_job_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", "data.validation=1430,237", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}"]
    assert cli.main(["train", *SMALL, *sweep]) == 2
    states = [json.loads((tmp_path / "sweep" / n / "status.json").read_text()) for n in "01"]
    assert [s["state"] for s in states] == ["failed", "completed"]
    assert "data.validation=1430 leaves 7" in states[0]["reason"]
    assert "job 1 of 2 (0) failed" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["train", *SMALL, f"hydra.run.dir={tmp_path}/file/run"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "file/run" in err


def test_absent_data_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "data.root=none", "data.download=false", "hydra.run.dir=run"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "data.root=FOLDER" in err
    assert "data=digits" in err
    assert not Path("run").exists()  # nothing had begun


@pytest.mark.slow
def test_joblib_launcher_shares_out_the_cores(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    small = [o for o in SMALL if not o.startswith("threads")]
    command = [sys.executable, "-m", "vi_lab", "train", *small, "-m", "seed=0,1", "hydra/launcher=joblib"]
    command += ["hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stderr
    for folder in (tmp_path / "sweep").glob("*-s*"):
        threads = json.loads((folder / "environment.json").read_text())["threads"]
        assert threads == max(1, len(os.sched_getaffinity(0)) // 2)
    assert len(list((tmp_path / "sweep").glob("*/metrics.json"))) == 2


@pytest.mark.slow
def test_ddp_trains_two_processes_on_disjoint_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vi_lab", "train", *SMALL, "accelerator=ddp", "accelerator.accelerator=cpu"]
    command += ["data.batch_size=50", "hydra.run.dir=run"]
    command.remove("accelerator=cpu")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["step"] == 24  # 1,200 images, 2 processes of 50
    assert all(math.isfinite(value) for value in metrics.values())
    assert done.stdout.count("epoch 2/2") == 1  # one process speaks
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["images"] == 360  # of both shards
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "completed"


@pytest.mark.slow
def test_ddp_in_a_sweep_is_the_single_run(tmp_path: Path) -> None:
    together = ["accelerator=ddp", "accelerator.accelerator=cpu", "data.batch_size=50", "trainer.max_epochs=1"]
    small = [*(o for o in SMALL if o != "accelerator=cpu"), *together]
    for words in (["-m", "sweep=first", "seed=0,1"], ["seed=1", "hydra.run.dir=alone"]):
        command = [sys.executable, "-m", "vi_lab", "train", *small, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        assert done.returncode == 0, done.stderr
    (job,) = (tmp_path / "outputs" / "sweeps" / "first").glob("*-s1-*")
    for name in ("metrics.csv", "metrics.json", "config_resolved.yaml"):
        assert (job / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
