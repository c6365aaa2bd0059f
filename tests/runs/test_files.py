"""Files of a run folder, written whole or not at all: what lies in their way, and what a kill or a power cut leaves."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

import pytest
import torch

from tests.support import config, run
from vi_lab.runs.files import LEFTOVER, replacing, scratch, sweep, write_text
from vi_lab.training.checkpoints import AtomicCheckpointIO, _link


def test_names_that_cannot_be_foreseen(tmp_path: Path) -> None:
    names = {scratch(tmp_path / "metrics.csv").name for _ in range(100)}
    assert len(names) == 100
    assert all(map(LEFTOVER.fullmatch, names))


def test_nothing_is_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the name was foreseen."""
    (outside := tmp_path / "outside").write_text("mine")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 2 * count)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
    for name in ("metrics.csv", "last.ckpt", "best.ckpt"):
        scratch(tmp_path / name).symlink_to(outside)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "metrics.csv", "x")
    with pytest.raises(Exception, match="cannot be written"):
        AtomicCheckpointIO().save_checkpoint({"w": torch.ones(3)}, tmp_path / "last.ckpt")
    with pytest.raises(FileExistsError):
        _link(outside, tmp_path / "best.ckpt")
    assert outside.read_text() == "mine"


def test_a_second_name_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last.ckpt").write_text("weights")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
    _link(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").read_text() == "weights"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_kill_leaves_is_swept_away(tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / ".mine.123.tmp").write_text("mine")
    (folder := tmp_path / "run").mkdir()
    (folder / "checkpoints").mkdir()
    ours = [folder / ".metrics.csv.4711.tmp", scratch(folder / "status.json"), folder / ".loggers.json.0.tmp"]
    ours += [scratch(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "previous", "best")]
    kept = [folder / name for name in (".notes.tmp", "metrics.csv.1.tmp", ".lock", ".a b.1.tmp")]
    for file in ours + kept:
        file.write_text("half")
    ours[0].unlink()
    ours[0].symlink_to(outside / ".mine.123.tmp")
    run(config("trainer.max_epochs=1"), folder)
    assert not any(file.is_symlink() or file.exists() for file in ours)
    assert all(file.exists() for file in kept)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "checkpoints").symlink_to(outside)
    sweep(elsewhere)
    assert (outside / ".mine.123.tmp").read_text() == "mine"


def test_the_order_in_which_a_checkpoint_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(number: int) -> None:
        done.append("sync folder" if os.path.samestat(os.fstat(number), tmp_path.stat()) else "sync bytes")
        sync(number)

    def rename(source: Path, target: Path) -> None:
        done.append(Path(target).name)
        replace(source, target)

    (tmp_path / "last").write_text("old")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    with replacing(tmp_path / "last", keep=tmp_path / "previous", durable=True) as file:
        file.write(b"new")
    assert done == ["sync bytes", "previous", "sync folder", "last", "sync folder"]
    assert [(tmp_path / name).read_text() for name in ("previous", "last")] == ["old", "new"]


def test_a_failed_write_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.csv'"),
        replacing(tmp_path / "metrics.csv"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write does: it names no file
    with pytest.raises(FileNotFoundError, match=r"gone/metrics\.csv'"):
        write_text(tmp_path / "gone" / "metrics.csv", "")
