"""What a run says: on the terminal, in its log, and of the jobs of a sweep."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import SMALL
from vi_lab import cli
from vi_lab.console import Terminal, busy, duration
from vi_lab.runs.files import Status
from vi_lab.training import sweep
from vi_lab.training.display import ProgressDisplay, Voice

TINY = [*SMALL, "evaluation.samples=2", "evaluation.images=10"]


def test_the_log_has_what_the_terminal_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY, "hydra.run.dir=run"]) == 0
    log, out = Path("run/train.log").read_text().splitlines(), capsys.readouterr().out.splitlines()
    assert "vi-lab train data=digits" in log[0]
    assert [line.rstrip() for line in log[1:]] == [line.rstrip() for line in out if not line.startswith("loading")]
    assert "30 variables of 10 classes on digits" in log[1]
    assert any("┃ metric" in line for line in log)


def test_the_log_says_how_a_run_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nan = ["optimizer=sgd", "optimizer.lr=1e6", "optimizer.weight_decay=1e6"]
    assert cli.main(["train", *TINY, *nan, "hydra.run.dir=run"]) == 1
    assert "the loss became" in Path("run/train.log").read_text().splitlines()[-1]


def test_a_job_of_a_sweep_is_brief(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("loading")]
    end = next(number for number, line in enumerate(lines) if line.startswith("digits, "))  # the comparison
    assert lines[:2] == ["2 jobs below sweep", "job 1 of 2: 0-gumbel_softmax-s0"]
    assert lines[2].startswith("job 1 of 2: val/loss ")
    assert lines[3].startswith("job 2 of 2: 1-gumbel_softmax-s1, about ")
    assert "test/nll" in lines[4]
    assert end == 5
    assert "┃ metric" in Path("sweep/1-gumbel_softmax-s1/train.log").read_text()


def test_time_left_counts_the_jobs_of_this_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep.time_left(tmp_path, 2) == ""
    assert sweep.standing(2) == "job 3"
    with sweep.sweeping(8):
        monkeypatch.setenv(sweep.SWEEP, f"8 {time.time() - 600}")
        assert sweep.standing(2) == "job 3 of 8"
        assert sweep.time_left(tmp_path, 2) == ""
        for name, state, age in (
            ("0", "completed", 5000),
            ("1", "completed", 300),
            ("2", "failed", 0),
            ("3", "running", 0),
        ):
            (tmp_path / name).mkdir()
            Status(tmp_path / name).write(state)
            when = time.time() - age
            os.utime(tmp_path / name / "status.json", (when, when))
        # two and a half in 600 s, four and a half remain: what was completed before this start took no time
        assert sweep.time_left(tmp_path, 4) == ", about 18 min left"
        (tmp_path / "3/status.json").unlink()
        assert sweep.time_left(tmp_path, 3) == ", about 25 min left"
        assert sweep.time_left(tmp_path, 7) == ", about 5 min left"
    assert sweep.SWEEP not in os.environ


def test_durations_are_words() -> None:
    assert [duration(s) for s in (0.4, 99, 100, 5940, 7500)] == ["0 s", "99 s", "2 min", "99 min", "2 h 5 min"]


def test_waiting_has_a_word(capsys: pytest.CaptureFixture) -> None:
    with busy(Terminal(), "drawing"):
        assert capsys.readouterr().out == "drawing\n"
    with busy(Terminal(force_terminal=True, width=60), "drawing [red]"):
        pass
    assert "drawing [red]" in capsys.readouterr().out


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_the_bar_fits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """The bar and the loss are there at any width, and the epoch is the one that runs."""
    terminal = Terminal(file=io.StringIO(), force_terminal=True, width=width)
    monkeypatch.setattr("vi_lab.training.display.vae", lambda module: module)
    scheduled = [SimpleNamespace(name="temperature", value=0.731)]
    recorder: Any = SimpleNamespace(scheduled=scheduled, rows=[], timing=[])
    means = {"train/loss": 123.4, "train/loss_unrelaxed": 125.678}
    module: Any = SimpleNamespace(epoch_means=SimpleNamespace(compute=lambda: means))
    trainer: Any = SimpleNamespace(
        is_global_zero=True, estimated_stepping_batches=46900, global_step=46899, current_epoch=98, max_epochs=100
    )
    display = ProgressDisplay(Voice(terminal), recorder)
    display.on_train_start(trainer, module)
    display.on_train_epoch_start(trainer, module)
    display.on_train_batch_end(trainer, module, None, None, 0)
    assert display.progress is not None
    file = io.StringIO()
    Terminal(file=file, width=width).print(display.progress.get_renderable())
    display.on_train_end(trainer, module)
    (text,) = file.getvalue().splitlines()
    assert len(text.rstrip()) <= width
    assert text.startswith("epoch 99/100 ━")
    assert "46899/46900" in text
    assert ("loss 123.4" in text) == (width >= 60)
    assert ("temperature" in text) == (width >= 120)
