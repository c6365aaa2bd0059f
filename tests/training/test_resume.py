"""Exact resume: what was interrupted and resumed equals, to the last bit, what was not. Real kills of processes by
signals are in `scripts/kill_test.py`, of which one round runs here."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.support import ESTIMATORS, SMALL, config, read_rows, run
from tests.training.crash import SCRIPT, Crash, crashed, unequal
from vi_lab import cli, load_run
from vi_lab.commands.resume import resume_run
from vi_lab.errors import Interrupted, UserError, ViLabError
from vi_lab.runs.lock import hold
from vi_lab.runs.trust import load_checkpoint
from vi_lab.training.checkpoints import AtomicCheckpointIO, Checkpoints
from vi_lab.training.signals import Stop


def train(folder: Path, *overrides: str, crash_at: int | None = None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that, where asked, ends without a word after so many steps."""
    if crash_at is None:
        run(config(*overrides), folder)
    else:
        crashed(folder, *overrides, at=crash_at, monkeypatch=monkeypatch)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_resumes_to_the_last_bit(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [f"estimator={name}", "checkpoint.every_n_steps=4", "trainer.max_epochs=1"]
    train(tmp_path / "whole", *overrides, monkeypatch=monkeypatch)
    # 12 steps an epoch; the last checkpoint lies two steps back, in the middle of the epoch
    train(tmp_path / "killed", *overrides, crash_at=6, monkeypatch=monkeypatch)
    resume_run(tmp_path / "killed", [])
    assert unequal(tmp_path / "whole", tmp_path / "killed") == []


OPTIONS = {
    "each step": ["checkpoint.every_n_steps=1"],
    "each epoch": [],
    "no validation": ["data.validation=0", "checkpoint.every_n_steps=3"],
    "accumulated gradients": ["+trainer.accumulate_grad_batches=3", "checkpoint.every_n_steps=1"],
    "a number of steps": ["trainer.max_steps=30", "checkpoint.every_n_steps=7"],
    "validation every other epoch": ["data.test_every_epoch=true", "trainer.check_val_every_n_epoch=2"],
}
ENDS = [("each step", step) for step in (1, 4, 11, 12, 13, 23, 24)]  # 12 steps an epoch
ENDS += [(name, step) for name in list(OPTIONS)[1:] for step in ((2, 4, 7) if "acc" in name else (4, 12, 24))]


@pytest.mark.parametrize(("name", "crash_at"), ENDS)
def test_wherever_the_run_ends(tmp_path: Path, name: str, crash_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*OPTIONS[name], "schedule=linear", "schedule.steps=20", "trainer.max_epochs=3", "data.batch_size=100"]
    train(tmp_path / "whole", *overrides, monkeypatch=monkeypatch)
    train(tmp_path / "killed", *overrides, crash_at=crash_at, monkeypatch=monkeypatch)
    resume_run(tmp_path / "killed", [])
    assert unequal(tmp_path / "whole", tmp_path / "killed") == []


def test_interrupted_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["trainer.max_epochs=2", "checkpoint.every_n_steps=2", "estimator=nvil"]
    train(tmp_path / "whole", *overrides, monkeypatch=monkeypatch)
    train(tmp_path / "killed", *overrides, crash_at=3, monkeypatch=monkeypatch)
    for step in (5, 6, 14, 21):
        train_on = load_run(tmp_path / "killed").config
        with monkeypatch.context() as patch:
            after = Checkpoints.on_train_batch_end

            def crash(self, trainer, module, *rest, step=step, after=after):
                after(self, trainer, module, *rest)
                if trainer.global_step == step:
                    raise Crash

            patch.setattr(Checkpoints, "on_train_batch_end", crash)
            with pytest.raises(Crash):
                run(train_on, tmp_path / "killed", resume=True)
    resume_run(tmp_path / "killed", [])
    assert unequal(tmp_path / "whole", tmp_path / "killed") == []


def test_the_comparison_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: a resume that forgets its place in the epoch is found out."""
    overrides = ["trainer.max_epochs=1", "checkpoint.every_n_steps=4"]
    train(tmp_path / "whole", *overrides, monkeypatch=monkeypatch)
    train(tmp_path / "killed", *overrides, crash_at=6, monkeypatch=monkeypatch)
    from vi_lab.data.loader import BatchLoader

    monkeypatch.setattr(BatchLoader, "load_state_dict", lambda self, state: None)
    resume_run(tmp_path / "killed", [])
    assert "metrics.csv" in unequal(tmp_path / "whole", tmp_path / "killed")


def test_more_epochs_continue_a_completed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train(tmp_path / "whole", "trainer.max_epochs=3", monkeypatch=monkeypatch)
    with Stop():
        train(tmp_path / "longer", "trainer.max_epochs=1", monkeypatch=monkeypatch)
    (tmp_path / "longer" / "status.json").write_text('{"state": "completed"}')
    capsys.readouterr()
    resume_run(tmp_path / "longer", [])
    assert "is completed, after 1 epochs" in capsys.readouterr().out
    resume_run(tmp_path / "longer", ["trainer.max_epochs=3"])
    assert unequal(tmp_path / "whole", tmp_path / "longer") == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_finishes_the_step_and_says_how_to_go_on(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    small = [*SMALL, "trainer.max_epochs=40"]
    command = [sys.executable, "-m", "vi_lab", "train", *small, "hydra.run.dir=ein Lauf mit ü"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    folder = tmp_path / "ein Lauf mit ü"
    assert re.fullmatch(
        rf"\nstopping after this step; once more stops at once\nvi-lab train: interrupted by {name} after step \d+ "
        rf"\(epoch \d+\); go on with: vi-lab train '?resume=.*'?\n",
        err,
    ), err
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    step = load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert f"after step {step} " in err
    hint = re.search(r"vi-lab train (.*)\n", err)[1]
    go_on = f"{sys.executable} -m vi_lab train {hint} trainer.max_epochs=41"  # as pasted into a shell
    done = subprocess.run(go_on, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert load_run(folder).state == "completed"
    assert [row["epoch"] for row in read_rows(folder)] == [str(n + 1) for n in range(41)]


@pytest.mark.parametrize(
    ("kills", "arguments"),
    [(1, ["--estimators", "rloo", "trainer.max_epochs=8"]), pytest.param(30, [], marks=pytest.mark.slow)],
)
def test_kill_test_script(tmp_path: Path, kills: int, arguments: list[str]) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to the last bit" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"{kills} kills")


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"state_dict": {"w": torch.ones(3)}}, file)
    before = file.read_bytes()

    def half(checkpoint, target):
        target.write(b"PK\x03\x04 half of")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(ViLabError, match=r"No space left on device.*is kept"):
            io.save_checkpoint({"state_dict": {}}, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    io.save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, file)
    assert (tmp_path / "previous.ckpt").read_bytes() == before


@pytest.mark.parametrize("how", ["truncated", "flipped bit", "empty", "text", "pickle"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    overrides = ["trainer.max_epochs=2", "checkpoint.every_n_steps=4"]
    train(tmp_path / "whole", *overrides, monkeypatch=monkeypatch)
    train(tmp_path / "killed", *overrides, crash_at=18, monkeypatch=monkeypatch)
    file = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped bit":
        content[len(content) // 2] ^= 1
    else:
        content = {"empty": b"", "text": b"not a checkpoint", "pickle": b"cos\nsystem\n(S'touch hacked'\ntR."}[how]
    file.write_bytes(content)
    with pytest.raises(ViLabError, match=re.escape(str(file)) + ": damaged"):
        load_checkpoint(file)
    monkeypatch.chdir(tmp_path)
    resume_run(tmp_path / "killed", [])
    assert not Path("hacked").exists()
    out = capsys.readouterr().out
    assert "last.ckpt: damaged" in out
    assert "the checkpoint before it is used" in out
    assert unequal(tmp_path / "whole", tmp_path / "killed") == []


def test_all_checkpoints_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "trainer.max_epochs=2", crash_at=13, monkeypatch=monkeypatch)
    for file in (tmp_path / "checkpoints").iterdir():
        file.write_bytes(b"gone")
    with pytest.raises(ViLabError, match=r"last\.ckpt: damaged"):
        resume_run(tmp_path, [])


def test_a_checkpoint_of_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "a", "trainer.max_epochs=1", monkeypatch=monkeypatch)
    train(tmp_path / "b", "trainer.max_epochs=2", "network.encoder.hidden=[17]", crash_at=13, monkeypatch=monkeypatch)
    shutil.copy(tmp_path / "a" / "checkpoints" / "last.ckpt", tmp_path / "b" / "checkpoints")
    for name in ("previous.ckpt", "best.ckpt"):
        (tmp_path / "b" / "checkpoints" / name).unlink(missing_ok=True)
    with pytest.raises(ViLabError, match=r"weights of another architecture.*size mismatch"):
        resume_run(tmp_path / "b", [])
    with pytest.raises(ViLabError, match="weights of another architecture"):
        _ = load_run(tmp_path / "b").model


def test_best_is_the_checkpoint_of_least_validation_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "optimizer=sgd", "optimizer.lr=0.02", "trainer.max_epochs=6", monkeypatch=monkeypatch)
    losses = [float(row["val/loss"]) for row in read_rows(tmp_path)]
    best = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best["epoch"] == losses.index(min(losses))


def test_a_run_that_ends_before_its_best_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole", monkeypatch=monkeypatch)
    (tmp_path / "killed").mkdir()

    def crash(source: Path, target: Path) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("vi_lab.training.checkpoints._link", crash)
        with pytest.raises(Crash):
            run(config("trainer.max_epochs=1"), tmp_path / "killed")
    resume_run(tmp_path / "killed", [])
    best, last = (load_checkpoint(tmp_path / "killed" / "checkpoints" / f"{n}.ckpt") for n in ("best", "last"))
    assert all(torch.equal(best["state_dict"][name], weights) for name, weights in last["state_dict"].items())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vi_lab.training.callbacks import Recorder

    after = Recorder.on_train_batch_end

    def poison(self, trainer, module, *rest):
        after(self, trainer, module, *rest)
        if trainer.global_step == 8:
            next(module.decoder.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Recorder, "on_train_batch_end", poison)
    tmp_path.mkdir(exist_ok=True)
    with pytest.raises(ViLabError, match=r"decoder\S+ is not finite any more at step 8"):
        run(config("checkpoint.every_n_steps=4"), tmp_path)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4


# --- sweeps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_an_interrupted_sweep_is_finished(
    tmp_path: Path, launcher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL, "estimator=gumbel_softmax,rloo", "seed=0,1"]
    assert cli.main(["train", "-m", *overrides, "hydra.sweep.dir=whole"]) == 0
    after = Checkpoints.on_train_batch_end

    def stop(self, trainer, module, *rest):
        if trainer.default_root_dir.endswith("1-gumbel_softmax-s1") and trainer.global_step == 14:
            self.stop.requested = signal.SIGTERM
        after(self, trainer, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stop)
        assert cli.main(["train", "-m", *overrides, "hydra.sweep.dir=killed"]) == 143
    assert "go on with: vi-lab train resume=killed" in capsys.readouterr().err
    assert sorted(path.name for path in Path("killed").glob("*-s*")) == ["0-gumbel_softmax-s0", "1-gumbel_softmax-s1"]
    arguments = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    assert cli.main(["train", "resume=killed", *arguments]) == 0
    out = capsys.readouterr().out
    if launcher == "basic":
        assert "0-gumbel_softmax-s0 is completed" in out
        assert "goes on from" in out
    for folder in Path("whole").glob("*-s*"):
        assert unequal(folder, Path("killed") / folder.name) == []


def test_folders_that_hold_something_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *SMALL, "trainer.max_epochs=1", "hydra.run.dir=run"]) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert cli.main(["train", *SMALL, "seed=3", "hydra.run.dir=run"]) == 2
    assert "holds a run already; go on with resume=run" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_two_processes_in_one_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train(tmp_path / "run", "trainer.max_epochs=1", monkeypatch=monkeypatch)
    code = "import sys, time; from vi_lab.runs.lock import hold; from pathlib import Path\n"
    code += "\nwith hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    try:
        assert cli.main(["train", f"resume={tmp_path}/run", "trainer.max_epochs=2"]) == 2
        assert "another process is at work in this run folder" in capsys.readouterr().err
        (tmp_path / "run" / "status.json").write_text('{"state": "running"}')
        assert load_run(tmp_path / "run").state == "running"
    finally:
        other.kill()
        other.communicate()
    assert load_run(tmp_path / "run").state == "killed"  # its lock is gone with it
    with hold(tmp_path / "run"):
        pass


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=nothing"], "no run folder"),
        (["resume=run", "estimator=rloo"], "estimator cannot change with resume="),
        (["resume=run", "trainer.max_epochs=0"], "trainer.max_epochs=0: wanted"),
        (["resume=run", "trainer.max_epochs=1,2"], "wanted one value"),
        (["resume=run", "accelerator=warp"], "accelerator=warp: no such choice"),
        (["resume=run", "trainer.max_epochs=["], "cannot read the override"),
        (["resume=run", "data.root=elsewhere", "data.source=mnist"], "data.source cannot change"),
    ],
)
def test_mistakes_with_resume(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config_resolved.yaml").write_text(OmegaConf.to_yaml(config()))
    assert cli.main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "trainer.max_epochs=2", crash_at=13, monkeypatch=monkeypatch)
    snapshot = json.loads((tmp_path / "environment.json").read_text())
    snapshot["data"]["sha256"] = "0" * 64
    (tmp_path / "environment.json").write_text(json.dumps(snapshot))
    with pytest.raises(UserError, match="the data are not those that the run began with"):
        resume_run(tmp_path, [])


def test_what_differs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    train(tmp_path, "trainer.max_epochs=2", crash_at=13, monkeypatch=monkeypatch)
    snapshot = json.loads((tmp_path / "environment.json").read_text())
    snapshot["packages"]["torch"] = "1.0"
    (tmp_path / "environment.json").write_text(json.dumps(snapshot))
    resume_run(tmp_path, [])
    assert "packages.torch is " + torch.__version__.split("+")[0] + ", was 1.0" in capsys.readouterr().out


def test_a_second_signal_stops_at_once() -> None:
    with Stop() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143
