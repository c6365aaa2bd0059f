"""`vi-lab train resume=FOLDER`: after signals, of sweeps, with more epochs, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from tests.support import SMALL, TIME_LIMIT, config, read_rows, refusal, run, started
from tests.training.crash import crashed, unequal
from vi_lab import cli, load_run
from vi_lab.commands.resume import resume_run, resume_sweep
from vi_lab.errors import UserError
from vi_lab.runs.files import claim
from vi_lab.runs.lock import hold
from vi_lab.runs.run import Run
from vi_lab.runs.trust import load_checkpoint
from vi_lab.training.checkpoints import Checkpoints
from vi_lab.training.signals import Stop


def test_more_epochs_continue_a_completed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(config("trainer.max_epochs=3"), tmp_path / "whole")
    with Stop():
        run(config("trainer.max_epochs=1"), tmp_path / "longer")
    (tmp_path / "longer" / "status.json").write_text('{"state": "completed"}')
    capsys.readouterr()
    resume_run(tmp_path / "longer", [])
    assert "is completed, after 1 epochs" in capsys.readouterr().out
    resume_run(tmp_path / "longer", ["trainer.max_epochs=3"])
    assert unequal(tmp_path / "whole", tmp_path / "longer") == []


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_signal_finishes_the_step_and_says_how_to_go_on(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = signal.Signals[name]
    small = [*SMALL, "trainer.max_epochs=1000"]  # longer than it is watched
    command = [sys.executable, "-m", "vi_lab", "train", *small, "hydra.run.dir=ein Lauf mit ü"]
    with started(*command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        process.send_signal(number)
        _, err = process.communicate()
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
    epochs = step // 12 + 1  # the one that was interrupted, or the next, is the last
    monkeypatch.chdir(tmp_path)
    hint = shlex.split(re.search(r"vi-lab train (.*)\n", err)[1])  # as pasted into a shell
    assert cli.main(["train", *hint, f"trainer.max_epochs={epochs}"]) == 0
    assert load_run(folder).state == "completed"
    assert [row["epoch"] for row in read_rows(folder)] == [str(n + 1) for n in range(epochs)]


class Finalizer:
    """What is raised here Python only prints."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def within_a_library() -> None:
    """C code makes an error of its own of whatever comes up in a callback."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt as error:
        raise RuntimeError("initialization failed") from error


MOMENTS = {  # -> what is called then, and at which call the signal comes
    "start": ("vi_lab.training.session.build", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "start, made another error": ("vi_lab.training.session.build", 1, within_a_library),
    "start, in a finalizer": ("vi_lab.training.session.build", 1, Finalizer),
    "first step": ("vi_lab.models.VAE.training_step", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "last step of an epoch": ("vi_lab.models.VAE.training_step", 12, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "validation": ("vi_lab.models.VAE.validation_step", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "last validation": ("vi_lab.models.VAE.validation_step", 2, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "test": ("vi_lab.models.VAE.test_step", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "evaluation": ("vi_lab.training.session.evaluate_into", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "end": ("vi_lab.training.session.Session.finish", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    whole: Callable[..., Path],
    moment: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    where, wanted, send = MOMENTS[moment]
    before, calls = resolve_name(where), []

    def then(*args: object, **kwargs: object) -> object:
        calls.append(where)
        if len(calls) == wanted:
            send()
        return before(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, then)
        assert cli.main(["train", *SMALL, "hydra.run.dir=run"]) == 143
    err = capsys.readouterr().err
    assert "interrupted by SIGTERM" in err
    if "resume=" not in err:  # nothing had begun
        assert moment.startswith("start")
        assert not Path("run").exists()
        return
    assert load_run("run").state == "interrupted"
    assert cli.main(["train", "resume=run"]) == 0
    assert unequal(whole(), Path("run")) == []


@pytest.mark.slow
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


def test_a_worker_says_that_the_sweep_was_interrupted_and_not_by_which_signal_it_was_told() -> None:
    code = """
import os, signal
from vi_lab.training.signals import Stop
from vi_lab.training.workers import work
def job():
    with Stop():
        os.kill(os.getpid(), signal.SIGTERM)
try:
    work(job)
except KeyboardInterrupt as error:
    print(error, error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.stdout == "interrupted with its sweep 143\n", done.stderr


@pytest.fixture(scope="module")
def trained_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    overrides = [*SMALL, "trainer.max_epochs=1", "estimator=gumbel_softmax,rloo", "hydra.sweep.dir=sweep"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert cli.main(["train", "-m", *overrides]) == 0
    return place / "sweep"


@pytest.fixture
def sweep(tmp_path: Path, trained_sweep: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two jobs of one epoch, without a word on seeds."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_sweep, "sweep")
    return Path("sweep")


@pytest.mark.slow
def test_a_sweep_is_trained_longer_and_given_more_seeds(
    sweep: Path, whole: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["train", "resume=sweep", "seed=0,1", "trainer.max_epochs=2"]) == 0
    jobs = ["0-gumbel_softmax-s0", "1-rloo-s0", "2-gumbel_softmax-s1", "3-rloo-s1"]
    assert sorted(path.name for path in sweep.glob("*-s*")) == jobs
    for job in jobs:
        _, estimator, seed = job.split("-")
        assert unequal(whole(f"estimator={estimator}", f"seed={seed[1:]}"), sweep / job) == []
    # its file is that of the whole sweep now: all jobs are found, and compared at the end
    capsys.readouterr()
    assert cli.main(["train", "resume=sweep"]) == 0
    out = capsys.readouterr().out
    assert [f"{job} is completed" in out for job in jobs] == [True] * 4
    with (sweep / "comparison" / "comparison_runs.csv").open() as file:
        assert {Path(row["folder"]).name for row in csv.DictReader(file)} == set(jobs)
    assert cli.main(["train", "resume=sweep", "seed=range(3)"]) == 0
    jobs += ["4-gumbel_softmax-s2", "5-rloo-s2"]
    assert sorted(path.name for path in sweep.glob("*-s*")) == jobs
    assert all(load_run(sweep / job).config.trainer.max_epochs == 2 for job in jobs)


def test_a_new_job_begins_without_a_word_and_a_sweep_is_named_from_here(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.rmtree(sweep / "1-rloo-s0")
    assert cli.main(["train", f"resume={sweep.absolute()}"]) == 0
    out = capsys.readouterr().out
    assert "2 jobs below sweep\n" in out
    assert "begins anew" not in out
    assert "Tables and curves: sweep/comparison/comparison.html" in out
    (sweep / "1-rloo-s0" / "status.json").write_text('{"state": "interrupted"}')
    shutil.rmtree(sweep / "1-rloo-s0" / "checkpoints")
    assert cli.main(["train", f"resume={sweep.absolute()}"]) == 0
    assert "no checkpoint yet: begins anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1,2", "the job estimator=gumbel_softmax seed=0 would be missing: give all values that were swept"),
        ("estimator=rloo", "the job estimator=gumbel_softmax seed=0 would be missing"),
        ("estimator=gumbel_softmax,rloo,warp", "estimator=warp: no such choice"),
        ("seed=0,-1", "seed=-1: wanted"),
        ("temperature=0.5", "temperature cannot change with resume="),
        ("trainer.max_epochs=1,2", "wanted one value"),
        ("hydra.sweep.subdir=mine", "hydra.sweep.subdir cannot change with resume="),
    ],
)
def test_what_a_sweep_is_not_given(sweep: Path, override: str, message: str, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert message in refusal(capsys, "train", "resume=sweep", override)
    assert before == {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}


def test_jobs_that_stand_twice_and_folders_with_hydras_other_spelling(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    stored = (sweep / "multirun.yaml").read_text()
    text = stored.replace("estimator=gumbel_softmax,rloo", "estimator=gumbel_softmax,rloo,rloo")
    (sweep / "multirun.yaml").write_text(text)
    assert cli.main(["train", "resume=sweep", "seed=0,1"]) == 2
    assert "the same job stands twice" in capsys.readouterr().err
    text = re.sub(r"subdir: .*", "subdir: j${hydra:job.num}", stored)
    (sweep / "multirun.yaml").write_text(text)
    (words,) = [word for word in resume_sweep(sweep, ["seed=0,1"]) if word.startswith("hydra.sweep.subdir=")]
    assert "j${numbered:${hydra.job.num},[0,2,1,3]}" in words


def test_a_sweep_is_not_trained_less(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "resume=sweep", "trainer.max_epochs=2"]) == 0
    capsys.readouterr()
    text = refusal(capsys, "train", "resume=sweep", "trainer.max_epochs=1")
    assert "trainer.max_epochs=1: the jobs of this sweep have 2; wanted more" in text


def test_folders_that_hold_something_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *SMALL, "trainer.max_epochs=1", "hydra.run.dir=run"]) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert cli.main(["train", *SMALL, "seed=3", "hydra.run.dir=run"]) == 2
    assert "holds a run already; go on with resume=run" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_commands_within_a_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    clock = SimpleNamespace(now=lambda: datetime(2026, 1, 31, 12))
    monkeypatch.setattr("hydra.core.utils.datetime", clock)
    for seed in (0, 0, 0, 1):
        assert cli.main(["train", *SMALL, "trainer.max_epochs=1", f"seed={seed}"]) == 0
    names = sorted(path.name for path in Path("outputs/2026-01-31").iterdir())
    assert names == [f"12-00-00-gumbel_softmax-{end}" for end in ("s0", "s0-2", "s0-3", "s1")]
    with ThreadPoolExecutor() as pool:
        assert len(set(pool.map(claim, [Path("one")] * 50))) == 50


MISTAKES = {
    "the data are too few": ["data.validation=100000"],
    "Lightning's trainer": ["trainer.max_epochs=3", "+trainer.max_time=soon"],
    "a callback without a logger": ["logger=[]", "callbacks=lr_monitor"],
}


@pytest.mark.parametrize("overrides", MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_leaves_no_folder(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", *SMALL, "hydra.run.dir=run"]
    assert cli.main([*arguments, *overrides]) == 2
    assert not Path("run").exists()
    assert cli.main([*arguments, "trainer.max_epochs=1"]) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert cli.main(["train", "resume=run", "trainer.max_epochs=2", "accelerator.devices=0"]) == 2
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


def test_two_processes_in_one_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run(config("trainer.max_epochs=1"), tmp_path / "run")
    code = "import sys; from vi_lab.runs.lock import hold; from pathlib import Path\n"
    code += "\nwith hold(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with started(*command, stdin=subprocess.PIPE) as other:
        assert other.stdout.readline() == "held\n"
        monkeypatch.setattr("vi_lab.training.execution.PATIENCE", 0.1)
        assert cli.main(["train", f"resume={tmp_path}/run", "trainer.max_epochs=2"]) == 2
        assert "another process is at work in this run folder" in capsys.readouterr().err
        (tmp_path / "run" / "status.json").write_text('{"state": "running"}')
        assert load_run(tmp_path / "run").state == "running"
    assert load_run(tmp_path / "run").state == "killed"  # its lock is gone with it
    with hold(tmp_path / "run"):
        pass


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
    crashed(tmp_path, "trainer.max_epochs=2", at=13, monkeypatch=monkeypatch)
    snapshot = json.loads((tmp_path / "environment.json").read_text())
    snapshot["data"]["sha256"] = "0" * 64
    (tmp_path / "environment.json").write_text(json.dumps(snapshot))
    with pytest.raises(UserError, match="the data are not those that the run began with"):
        resume_run(tmp_path, [])


def test_what_differs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    crashed(tmp_path, "trainer.max_epochs=2", at=13, monkeypatch=monkeypatch)
    snapshot = json.loads((tmp_path / "environment.json").read_text())
    snapshot["packages"]["torch"] = "1.0"
    (tmp_path / "environment.json").write_text(json.dumps(snapshot))
    resume_run(tmp_path, [])
    assert "packages.torch is " + torch.__version__.split("+")[0] + ", was 1.0" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])  # SIGINT takes the way of SIGTERM
def test_a_parallel_sweep_ends_with_its_process_and_goes_on(
    tmp_path: Path, name: str, whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    epochs = "trainer.max_epochs=60"
    jobs = ["seed=0,1", epochs, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=killed"]
    with started(sys.executable, "-u", "-m", "vi_lab", "train", "-m", *SMALL, *jobs, stderr=subprocess.STDOUT) as sweep:
        logs = (tmp_path / "killed").glob
        while sweep.poll() is None and not any("epoch 2/" in log.read_text() for log in logs("*/train.log")):
            time.sleep(0.02)
        sweep.send_signal(signal.Signals[name])
        rest = sweep.communicate()[0]  # until the workers are gone too, which write there
    if name != "SIGKILL":
        assert sweep.returncode == 128 + signal.Signals[name], rest
        assert f"interrupted by {name}; go on with: vi-lab train resume=killed" in rest
        assert any("interrupted with its sweep" in log.read_text() for log in logs("*/train.log"))
    states = {Run(folder).state for folder in Path("killed").glob("*-s*")}
    assert states <= {"interrupted", "completed", "unknown"}  # unknown: it had not begun
    assert cli.main(["train", f"resume={tmp_path}/killed"]) == 0  # workers may be those of another test's folder
    for seed in range(2):
        assert unequal(whole(epochs, f"seed={seed}"), Path(f"killed/{seed}-gumbel_softmax-s{seed}")) == []
