"""Exact resume: what was interrupted and resumed equals, to the last bit, what was not. Real kills of processes by
signals are in `scripts/kill_test.py`, which runs here as a slow test."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ESTIMATORS, TIME_LIMIT, config, run
from tests.training.crash import SCRIPT, Crash, crashed, unequal
from vi_lab import load_run
from vi_lab.commands.resume import resume_run
from vi_lab.errors import Interrupted
from vi_lab.training.checkpoints import Checkpoints
from vi_lab.training.signals import Stop

Whole = Callable[..., Path]
STATEFUL = ("gaussian", "gumbel_softmax", "nvil", "rebar", "reinforce_moving_average", "relax", "rloo", "vq")
"""Estimators that keep something from step to step, and one of each family. The others are slow tests."""


@pytest.mark.parametrize("name", [n if n in STATEFUL else pytest.param(n, marks=pytest.mark.slow) for n in ESTIMATORS])
def test_every_estimator_resumes_to_the_last_bit(
    tmp_path: Path, whole: Whole, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"estimator={name}", "checkpoint.every_n_steps=4", "trainer.max_epochs=1"]
    # 12 steps an epoch; the last checkpoint lies two steps back, in the middle of the epoch
    crashed(tmp_path, *overrides, at=6, monkeypatch=monkeypatch)
    resume_run(tmp_path, [])
    assert unequal(whole(*overrides), tmp_path) == []


OPTIONS = {
    "each step": ["checkpoint.every_n_steps=1"],
    "each epoch": [],
    "no validation": ["data.validation=0", "checkpoint.every_n_steps=3"],
    "accumulated gradients": ["trainer.accumulate_grad_batches=3", "checkpoint.every_n_steps=1"],
    "a number of steps": ["trainer.max_steps=30", "checkpoint.every_n_steps=7"],
    "a number of steps within an epoch": ["trainer.max_steps=31", "checkpoint.every_n_steps=5"],
    "validation every other epoch": ["data.test_every_epoch=true", "trainer.check_val_every_n_epoch=2"],
}
ENDS = [("each step", step) for step in (1, 4, 11, 12, 13, 23, 24)]  # 12 steps an epoch
ENDS += [("a number of steps within an epoch", step) for step in (26, 30)]
ENDS += [(name, step) for name in list(OPTIONS)[1:] for step in ((2, 4, 7) if "acc" in name else (4, 12, 24))]


@pytest.mark.parametrize(
    ("name", "crash_at"), [*ENDS[::2], *(pytest.param(*end, marks=pytest.mark.slow) for end in ENDS[1::2])]
)
def test_wherever_the_run_ends(
    tmp_path: Path, whole: Whole, name: str, crash_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*OPTIONS[name], "schedule=linear", "schedule.steps=20", "trainer.max_epochs=3", "data.batch_size=100"]
    crashed(tmp_path, *overrides, at=crash_at, monkeypatch=monkeypatch)
    resume_run(tmp_path, [])
    assert unequal(whole(*overrides), tmp_path) == []


# what trains on a CPU; 16-mixed is bf16-mixed there
@pytest.mark.parametrize("name", OPTIONS)
def test_stopped_at_the_end_of_an_epoch(
    tmp_path: Path, whole: Whole, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*OPTIONS[name], "schedule=linear", "schedule.steps=20", "trainer.max_epochs=3", "data.batch_size=100"]
    after = Checkpoints.on_train_epoch_end

    def stop(self, trainer, module):
        self.stop.requested = signal.SIGTERM
        after(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_epoch_end", stop)
        with pytest.raises(Interrupted):
            run(config(*overrides), tmp_path)
    resume_run(tmp_path, [])
    assert unequal(whole(*overrides), tmp_path) == []


PRECISIONS = {name: ["estimator=muprop"] for name in ("32-true", "64-true", "bf16-true", "bf16-mixed")}
PRECISIONS["16-true"] = ["optimizer=sgd"]  # Adam's epsilon is 0 in float16


@pytest.mark.parametrize("crash_at", [7, pytest.param(17, marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision(
    tmp_path: Path, whole: Whole, precision: str, crash_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*PRECISIONS[precision], f"trainer.precision={precision}", "latent=4x8", "checkpoint.every_n_steps=5"]
    crashed(tmp_path, *overrides, at=crash_at, monkeypatch=monkeypatch)
    resume_run(tmp_path, [])
    assert unequal(whole(*overrides), tmp_path) == []


def test_interrupted_again_and_again(tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["trainer.max_epochs=2", "checkpoint.every_n_steps=2", "estimator=nvil"]
    crashed(tmp_path / "killed", *overrides, at=3, monkeypatch=monkeypatch)
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
    assert unequal(whole(*overrides), tmp_path / "killed") == []


def test_a_run_that_has_ended_within_an_epoch_is_resumed(tmp_path: Path, whole: Whole) -> None:
    reference = whole("trainer.max_steps=7")
    shutil.copytree(reference, tmp_path / "again")
    resume_run(tmp_path / "again", [])
    assert unequal(reference, tmp_path / "again") == []
    assert load_run(tmp_path / "again").final["epoch"] == 1  # as in metrics.csv


def test_the_comparison_can_fail(tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: a resume that forgets its place in the epoch is found out."""
    overrides = ["trainer.max_epochs=1", "checkpoint.every_n_steps=4"]
    reference = whole(*overrides)
    crashed(tmp_path / "killed", *overrides, at=6, monkeypatch=monkeypatch)
    from vi_lab.data.loader import BatchLoader

    monkeypatch.setattr(BatchLoader, "load_state_dict", lambda self, state: None)
    resume_run(tmp_path / "killed", [])
    assert "metrics.csv" in unequal(reference, tmp_path / "killed")


@pytest.mark.parametrize(
    ("kills", "arguments"),
    [(1, ["--estimators", "rloo", "trainer.max_epochs=8"]), (10, ["trainer.max_epochs=6"])],
)
@pytest.mark.slow
def test_kill_test_script(tmp_path: Path, kills: int, arguments: list[str]) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=6 * TIME_LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to the last bit" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"{kills} kills")


def test_a_second_signal_stops_at_once() -> None:
    with Stop() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143


@contextmanager
def hang_up(handler: signal.Handlers) -> Iterator[None]:
    """As the process that starts this one may have set it."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_asks_once() -> None:
    """The shell sends SIGHUP and so does the system; what is said from then on goes nowhere, but fails nowhere."""
    master, terminal = pty.openpty()
    with hang_up(signal.SIG_DFL), Stop() as stop:
        stop.patient, stop.terminals = True, [terminal]
        os.close(master)
        with pytest.raises(OSError, match=r"Errno 5\b"):
            os.write(terminal, b"epoch 1")
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        assert os.write(terminal, b"epoch 1")
        with pytest.raises(Interrupted, match="by SIGHUP") as caught:
            stop.serve()
    os.close(terminal)
    assert caught.value.exit_code == 129


def test_nohup() -> None:
    with hang_up(signal.SIG_IGN), Stop() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested is None


LEARNED = {
    "layers": ["estimator=nvil", "latent=bernoulli", "latent.layers=3", "latent.variables=5", "prior=factorized"],
    "prior": ["estimator=vq", "prior=autoregressive", "prior.size=8"],
}


@pytest.mark.parametrize("name", LEARNED)
def test_layers_and_priors_resume_to_the_last_bit(
    tmp_path: Path, whole: Whole, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*LEARNED[name], "checkpoint.every_n_steps=4", "trainer.max_epochs=1"]
    crashed(tmp_path, *overrides, at=6, monkeypatch=monkeypatch)
    resume_run(tmp_path, [])
    assert unequal(whole(*overrides), tmp_path) == []
