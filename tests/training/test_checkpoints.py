"""Checkpoints: written whole or not at all, refused where they are damaged, and which one is the best."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support import config, read_rows, run, store
from tests.training.crash import Crash, crashed, unequal
from vi_lab import load_run
from vi_lab.commands.resume import resume_run
from vi_lab.errors import ViLabError
from vi_lab.runs.trust import load_checkpoint
from vi_lab.training.checkpoints import AtomicCheckpointIO


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
    tmp_path: Path,
    whole: Callable[..., Path],
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    overrides = ["trainer.max_epochs=2", "checkpoint.every_n_steps=4"]
    crashed(tmp_path / "killed", *overrides, at=18, monkeypatch=monkeypatch)
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
    assert unequal(whole(*overrides), tmp_path / "killed") == []


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    store({"state_dict": {"w": torch.randn(50), "b": torch.ones(3)}}, file)
    whole = file.read_bytes()
    assert set(torch.load(file, weights_only=True)["state_dict"]) == {"w", "b"}  # anybody can read it
    chance = random.Random(0)
    flips = [(chance.randrange(len(whole)), chance.randrange(8)) for _ in range(2000)]
    flips += [(len(whole) - 1 - place, bit) for place in range(64) for bit in range(8)]
    damaged = [whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :] for place, bit in flips]
    damaged += [whole[:-cut] for cut in range(1, 65)] + [b"", whole + b"x"]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(ViLabError, match=r"last\.ckpt: damaged") as refused:
            load_checkpoint(file)
        assert len(str(refused.value).splitlines()) == 1


def test_all_checkpoints_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(tmp_path, "trainer.max_epochs=2", at=13, monkeypatch=monkeypatch)
    for file in (tmp_path / "checkpoints").iterdir():
        file.write_bytes(b"gone")
    with pytest.raises(ViLabError, match=r"last\.ckpt: damaged"):
        resume_run(tmp_path, [])


def test_a_checkpoint_of_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config("trainer.max_epochs=1"), tmp_path / "a")
    crashed(tmp_path / "b", "trainer.max_epochs=2", "network.encoder.hidden=[17]", at=13, monkeypatch=monkeypatch)
    shutil.copy(tmp_path / "a" / "checkpoints" / "last.ckpt", tmp_path / "b" / "checkpoints")
    for name in ("previous.ckpt", "best.ckpt"):
        (tmp_path / "b" / "checkpoints" / name).unlink(missing_ok=True)
    with pytest.raises(ViLabError, match=r"weights of another architecture.*size mismatch"):
        resume_run(tmp_path / "b", [])
    with pytest.raises(ViLabError, match="weights of another architecture"):
        _ = load_run(tmp_path / "b").model


def test_best_is_the_checkpoint_of_least_validation_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config("optimizer=sgd", "optimizer.lr=0.02", "trainer.max_epochs=6"), tmp_path)
    losses = [float(row["val/loss"]) for row in read_rows(tmp_path)]
    best = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best["epoch"] == losses.index(min(losses))


def test_a_run_that_ends_before_its_best_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
