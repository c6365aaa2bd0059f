"""Loggers, callbacks and learning-rate schedules by config, and that a run with any of them resumes to the last bit."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support import SMALL, config, read_rows, run, train
from tests.training.crash import crashed, unequal
from vi_lab import cli
from vi_lab.commands.resume import resume_run
from vi_lab.training.loggers import SCALARS

DOORS = {
    "cosine": ["lr_scheduler=cosine"],
    "step": ["lr_scheduler=step", "lr_scheduler.scheduler.step_size=1"],
    "exponential, each step": ["lr_scheduler=exponential", "lr_scheduler.interval=step"],
    # mode=max: the falling loss counts as a plateau, so that each epoch after the first one cuts the rate
    "plateau": ["lr_scheduler=plateau", "+lr_scheduler.scheduler.mode=max", "lr_scheduler.scheduler.patience=0"],
    "early stopping": [
        *("callbacks=early_stopping", "callbacks.early_stopping.patience=0"),
        *("optimizer.lr=0.1", "trainer.max_epochs=9"),
    ],
    "weight averaging": ["callbacks=weight_averaging", "callbacks.weight_averaging.decay=0.9"],
    "callbacks that only look": ["callbacks=[lr_monitor,model_summary]", "lr_scheduler=cosine"],
    "two loggers": ["logger=[csv,tensorboard]"],
    "no logger": ["logger=[]"],
}


def scalars(folder: Path) -> list[tuple[str, ...]]:
    """What the CSV logger has written, wall times left out."""
    with (folder / SCALARS).open() as file:
        return [tuple(row) for row in csv.reader(file) if not row[1].startswith("time/")]


# 12 steps an epoch: within an epoch, and at the end of one
@pytest.mark.parametrize("crash_at", [9, pytest.param(13, marks=pytest.mark.slow)])
@pytest.mark.parametrize("door", DOORS)
def test_a_run_with_it_resumes_to_the_last_bit(
    tmp_path: Path, whole: Callable[..., Path], door: str, crash_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["checkpoint.every_n_steps=4", "trainer.max_epochs=3", *DOORS[door]]
    crashed(tmp_path, *overrides, at=crash_at, monkeypatch=monkeypatch)
    resume_run(tmp_path, [])
    assert unequal(whole(*overrides), tmp_path) == []
    if "csv" in str(DOORS[door]):
        assert scalars(whole(*overrides)) == scalars(tmp_path)


def test_the_learning_rate_follows_its_schedule(tmp_path: Path) -> None:
    train(tmp_path, "lr_scheduler=step", "lr_scheduler.scheduler.step_size=1", "logger=csv", "callbacks=lr_monitor")
    rates = [float(value) for _, name, value in scalars(tmp_path) if name == "lr-Adam"]
    assert rates == [1e-3, 5e-4]


def test_early_stopping_ends_the_run_and_resume_trains_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = DOORS["early stopping"]
    with monkeypatch.context() as patch:
        patch.setattr("vi_lab.training.session.Session.evaluate", lambda self: 1 / 0)  # after the last checkpoint
        with pytest.raises(ZeroDivisionError):
            run(config(*overrides), tmp_path)
    epochs = len(read_rows(tmp_path))
    assert epochs < 9
    resume_run(tmp_path, [])
    assert len(read_rows(tmp_path)) == epochs
    assert (tmp_path / "metrics.json").is_file()


def test_weight_averaging_is_what_is_evaluated(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    averaged = train(tmp_path / "averaged", *DOORS["weight averaging"])
    assert plain["train/loss"] == averaged["train/loss"]  # the same training
    assert plain["test/loss"] != averaged["test/loss"]
    checkpoint = torch.load(tmp_path / "averaged/checkpoints/last.ckpt", weights_only=True)
    trained = checkpoint["current_model_state"]
    assert any(not torch.equal(checkpoint["state_dict"][name], trained[name]) for name in trained)


def test_all_loggers_get_the_same_names(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = train(tmp_path, "logger=[tensorboard,csv]")
    board = EventAccumulator(str(tmp_path)).Reload()
    tags = {tag for tag in board.Tags()["scalars"] if not tag.startswith("time/")}
    assert tags == {name for _, name, _ in scalars(tmp_path)[1:]}
    last = {name: float(value) for _, name, value in scalars(tmp_path)[1:]}
    assert last["test/loss"] == metrics["test/loss"]
    assert math.isfinite(last["train/loss"])


def test_a_logger_that_is_not_installed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    try:
        import aim  # noqa: F401

        pytest.skip("aim is installed")
    except ImportError:
        pass
    assert cli.main(["train", *SMALL, "logger=aim", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "logger=aim" in error


@pytest.mark.parametrize(
    ("override", "message"),
    [("+trainer.nope=1", "trainer takes no nope"),
     ("+trainer.acumulate_grad_batches=2", "did you mean accumulate_grad"),
     ("+trainer.callbacks=[]", "use callbacks="), ("+optimizer.foo=1", "optimizer takes no foo"),
     ("+callbacks.early_stopping.foo=2", "callbacks.early_stopping takes no foo"),
     ("callbacks.early_stopping.patience=x", "wanted a whole number")],
)  # fmt: skip
def test_a_key_that_the_library_does_not_know_is_refused_before_a_folder_exists(
    tmp_path: Path, override: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "run"
    assert cli.main(["train", *SMALL, "callbacks=early_stopping", override, f"hydra.run.dir={folder}"]) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["callbacks=early_stopping", "data.validation=0"], "callbacks.early_stopping.monitor=val/loss: nothing is held"),
     (["lr_scheduler=plateau", "data.validation=0"], "lr_scheduler.monitor=val/loss: nothing is held out"),
     (["callbacks=lr_monitor", "logger=[]"], "no logger")],
)  # fmt: skip
def test_parts_that_do_not_suit_the_run_are_one_line(
    tmp_path: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["train", *SMALL, *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert "debug" not in error


def test_a_callback_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n"
        "class Mine(Callback):\n"
        "    def __init__(self, word): self.word = word\n"
        "    def on_train_end(self, trainer, module): print(self.word, trainer.callback_metrics['val/loss'].item())\n"
    )
    (tmp_path / "configs/callbacks").mkdir(parents=True)
    (tmp_path / "configs/callbacks/mine.yaml").write_text("mine: {_target_: mine.Mine, word: hello}\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["train", *SMALL, "--config-dir", str(tmp_path / "configs"), "callbacks=mine"]
    assert cli.main([*arguments, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
