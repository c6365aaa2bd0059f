"""Runs from end to end on the embedded digits: the run folder, TensorBoard, repeatability, the families."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vi_lab
from tests.support import ESTIMATORS, SMALL, compose, config, read_rows, run, train
from vi_lab import cli
from vi_lab.build import build
from vi_lab.errors import UserError, ViLabError


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_trains(tmp_path: Path, name: str) -> None:
    metrics = train(tmp_path, f"estimator={name}")
    assert metrics["step"] == 24
    assert all(math.isfinite(value) for value in metrics.values())
    first, last = read_rows(tmp_path)
    assert float(last["train/loss_unrelaxed"]) < float(first["train/loss_unrelaxed"])
    assert float(last["train/reconstruction"]) < 784 * math.log(2)  # what knowing nothing costs
    assert metrics["train/relaxation_gap"] == pytest.approx(metrics["train/loss_unrelaxed"] - metrics["train/loss"])
    assert metrics["test/loss"] == pytest.approx(metrics["test/reconstruction"] + metrics["test/kl"], rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [["latent=bernoulli", "latent.variables=20"], ["estimator=rloo", "latent=gaussian"], ["objective.kl=monte_carlo"],
     ["estimator=reinforce", "objective.kl=monte_carlo"], ["network=conv"],
     ["likelihood=gaussian", "likelihood.learn_scale=true", "data.binarization=none"],
     ["optimizer=sgd", "optimizer.lr=1e-3"],
     ["data.validation=0", "data.test_every_epoch=true"], ["samples=3"],
     ["trainer.precision=bf16-mixed"], ["trainer.precision=bf16-true"], ["trainer.precision=64-true"],
     ["schedule=cosine", "schedule.steps=20"]],
)  # fmt: skip
def test_combinations_train(tmp_path: Path, overrides: list[str]) -> None:
    small = [o for o in SMALL if "network" not in o or "network=conv" not in overrides]
    run(compose(*small, *overrides), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert all(math.isfinite(value) for value in metrics.values())


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


def test_tensorboard_holds_both_losses_in_one_chart(tmp_path: Path) -> None:
    metrics = train(tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    for tag in ("train/loss", "train/loss_unrelaxed", "train/relaxation_gap", "temperature"):
        assert [e.step for e in events.Scalars(tag)] == [5, 10, 15, 20]
    assert [e.step for e in events.Scalars("val/loss")] == [12, 24]
    assert events.Scalars("hp/test/loss")[-1].value == pytest.approx(metrics["test/loss"])
    assert "custom_scalars__config__" in tags["tensors"]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"relaxed vs unrelaxed" in layout
    assert b"train/loss_unrelaxed" in layout


@pytest.mark.parametrize("name", ["gumbel_softmax", "rloo"])
def test_the_same_command_gives_the_same_bits(tmp_path: Path, name: str) -> None:
    torch.manual_seed(123)
    first = train(tmp_path / "a", f"estimator={name}")
    torch.rand(17)  # history must not matter
    second = train(tmp_path / "b", f"estimator={name}")
    assert first == second
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    a, b = (torch.load(tmp_path / f / "checkpoints" / "last.ckpt", weights_only=True) for f in "ab")
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    assert train(tmp_path / "c", f"estimator={name}", "seed=1") != first


def test_the_temperature_follows_the_schedule(tmp_path: Path) -> None:
    train(tmp_path, "schedule=exponential", "schedule.rate=0.1", "schedule.interval=6", "schedule.floor=0.2")
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["estimator.temperature"].item() == pytest.approx(max(0.2, math.exp(-0.1 * 18)))


def test_a_relaxed_estimator_has_a_gap_and_the_others_none(tmp_path: Path) -> None:
    assert train(tmp_path / "a", "estimator=gumbel_softmax")["train/relaxation_gap"] != 0
    for name in ("straight_through", "st_gumbel_softmax", "rloo", "gaussian"):
        assert train(tmp_path / name, f"estimator={name}")["train/relaxation_gap"] == 0


def test_a_failed_job_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", "data.validation=1430,237", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}"]
    assert cli.main(["train", *SMALL, *sweep]) == 2
    states = [json.loads((tmp_path / "sweep" / n / "status.json").read_text()) for n in "01"]
    assert [s["state"] for s in states] == ["failed", "completed"]
    assert "data.validation=1430 leaves 7" in states[0]["reason"]
    assert "job 0" in capsys.readouterr().err


def test_a_diverging_loss_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(ViLabError, match=r"the loss became nan at step 2 \(epoch 1, .*lower optimizer\.lr"):
        train(tmp_path, "optimizer=sgd", "optimizer.lr=1e30")


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
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"


def test_bad_trainer_arguments_and_constructor_values(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unexpected keyword argument 'nope'"):
        train(tmp_path, "+trainer.nope=1")
    with pytest.raises(UserError, match="LeaveOneOut needs samples=2 or more"):
        build(config("estimator=rloo", "samples=1"))


def test_models_refuse_a_latent_of_another_family() -> None:
    node = config("estimator=gaussian")
    node.latent = config()["latent"]
    with pytest.raises(UserError, match="GaussianVAE needs a Gaussian latent, got Categorical"):
        build(node)


def test_python_m_vi_lab() -> None:
    done = subprocess.run([sys.executable, "-m", "vi_lab", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


def test_joblib_launcher_shares_out_the_cores(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    small = [o for o in SMALL if not o.startswith("threads")]
    command = [sys.executable, "-m", "vi_lab", "train", *small, "-m", "seed=0,1", "hydra/launcher=joblib"]
    command += ["hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for folder in (tmp_path / "sweep").glob("*-s*"):
        threads = json.loads((folder / "environment.json").read_text())["threads"]
        assert threads == max(1, len(os.sched_getaffinity(0)) // 2)
    assert len(list((tmp_path / "sweep").glob("*/metrics.json"))) == 2


def test_ddp_trains_two_processes_on_disjoint_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vi_lab", "train", *SMALL, "accelerator=ddp", "accelerator.accelerator=cpu"]
    command += ["data.batch_size=50", "hydra.run.dir=run"]
    command.remove("accelerator=cpu")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["step"] == 24  # 1,200 images, 2 processes of 50
    assert all(math.isfinite(value) for value in metrics.values())
    assert done.stdout.count("epoch 2/2") == 1  # one process speaks
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["images"] == 360  # of both shards
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "completed"


def test_wheel_runs_elsewhere(tmp_path: Path) -> None:
    """The wheel carries `configs`: unpacked away from the checkout it composes and trains."""
    pytest.importorskip("hatchling")
    checkout = Path(vi_lab.__file__).resolve().parent.parent
    if not (checkout / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    build_wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build_wheel, cwd=checkout, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    command = [sys.executable, "-m", "vi_lab", "train", *SMALL, "trainer.max_epochs=1", "hydra.run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    recorded = (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()
    assert str(tmp_path / "site" / "vi_lab" / "configs") in recorded
