"""What the world does to a run: full and read-only disks, closed terminals, odd paths, losses that are no numbers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.support import SMALL, TIME_LIMIT, config, read_rows, refusal, run, store
from vi_lab import cli, load_run
from vi_lab.adapters.tensorboard import hush_writers
from vi_lab.errors import UserError, ViLabError
from vi_lab.runs.trust import load_checkpoint
from vi_lab.training.execution import Job, execute


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory; skips visibly where mounting is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def vi_lab(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vi_lab", *arguments]
    return subprocess.run(command, **{"capture_output": True, "text": True, "timeout": TIME_LIMIT, **options})


def test_a_full_disk(tmp_path: Path) -> None:
    """The first checkpoint fits, the second does not: one line, exit code 1, and the first is whole."""
    with mounted(tmp_path / "disk", "size=1100k") as disk:
        (disk / "ballast").write_bytes(bytes(100_000))
        done = vi_lab("train", *SMALL, "trainer.max_epochs=4", f"hydra.run.dir={disk}/run")
        assert done.returncode == 1, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "No space left on device" in done.stderr
        checkpoint = load_checkpoint(disk / "run" / "checkpoints" / "last.ckpt")
        assert checkpoint["epoch"] >= 0
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert cli.main(["train", f"resume={disk}/run"]) == 0  # with room it goes on
        assert len(read_rows(disk / "run")) == 4


def test_an_event_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its error comes from a thread: raised at the next event, and said once (pytest would warn of the thread's)."""
    hush_writers()
    writer = SummaryWriter(str(tmp_path / "events"))
    writer.flush()
    shutil.rmtree(tmp_path / "events")
    writer.add_scalar("loss", 1.0, 0)
    with pytest.raises(FileNotFoundError):
        writer.flush()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("named", [False, True])
def test_what_tensorboard_cannot_write(
    tmp_path: Path, named: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It names no file, or names it in bytes."""
    folder = tmp_path / "run"
    full = OSError(errno.ENOSPC, "No space left on device", os.fsencode(folder) if named else None)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", Mock(side_effect=full))
    assert cli.main(["train", *SMALL, f"hydra.run.dir={folder}"]) == 1
    assert capsys.readouterr().err == f"vi-lab train: [Errno 28] No space left on device: '{folder}'\n"


@pytest.mark.slow
def test_a_read_only_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        done = vi_lab("train", *SMALL, f"hydra.run.dir={disk}/run")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "Read-only file system" in done.stderr


@pytest.mark.slow
def test_output_that_nobody_reads(tmp_path: Path) -> None:
    """`vi-lab train | head -1` ends without a traceback."""
    command = f"{sys.executable} -m vi_lab train {' '.join(SMALL)} hydra.run.dir=run | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_closed_stream(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, stream, None)
    assert cli.main(["--version"]) == 0
    assert cli.main(["nonsense"]) == 2
    assert os.get_inheritable(getattr(sys, stream).fileno())
    getattr(sys, stream).close()


def test_a_full_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert cli.main(["nonsense"]) == 2


def test_a_full_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["train", *SMALL, f"hydra.run.dir={tmp_path}/run"]) == 1
        assert capsys.readouterr().err == "vi-lab train: [Errno 28] No space left on device: 'stdout'\n"
        monkeypatch.undo()


def test_a_broken_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert cli.main(["train", *SMALL, f"hydra.run.dir={tmp_path}/run"]) == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""
    assert "Broken pipe" in load_run(tmp_path / "run").status["reason"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("1 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_no_memory(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("vi_lab.models.VAE.decode", Mock(side_effect=error))
    assert cli.main(["train", *SMALL, f"hydra.run.dir={tmp_path}/run"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vi-lab train: out of memory (")
    assert err.endswith("raise its limit, or take a smaller data.batch_size or network\n")


@pytest.mark.parametrize("name", ["with spaces", "Größe/日本", "a=b", "100%", "it's"])
def test_odd_paths(tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / name
    quoted = str(folder) if "=" not in name and "'" not in name else '"' + str(folder) + '"'
    small = [o for o in SMALL if "epochs" not in o]
    assert cli.main(["train", *small, "trainer.max_epochs=1", f"hydra.run.dir={quoted}"]) == 0
    assert load_run(folder).final["step"] == 12
    assert cli.main(["train", f"resume={folder}", "trainer.max_epochs=2"]) == 0
    assert load_run(folder).final["step"] == 24


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ViLabError, match=r"the loss became (nan|inf) at step \d+ \(epoch \d+, reconstruction"):
        run(
            config("optimizer=sgd", "optimizer.lr=1e6", "optimizer.weight_decay=1e6", "checkpoint.every_n_steps=1"),
            tmp_path,
        )
    saved = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt") if (tmp_path / "checkpoints").exists() else None
    assert saved is None or all(bool(w.isfinite().all()) for w in saved["state_dict"].values())


def test_the_failure_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    assert (
        cli.main(
            [
                "train",
                *SMALL,
                "optimizer=sgd",
                "optimizer.lr=1e6",
                "optimizer.weight_decay=1e6",
                f"hydra.run.dir={folder}",
            ]
        )
        == 1
    )
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"] in err


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["train", "data.root=none", "data.download=false", f"hydra.run.dir={tmp_path}/run"]
    for debug in ("--debug", "debug=true"):
        assert cli.main([*arguments, debug]) == 1
        assert "Traceback" in capsys.readouterr().err
        (tmp_path / "run" / "config_resolved.yaml").unlink(missing_ok=True)
    assert cli.main(arguments) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "override", ["++seed=abc", "++trainer.max_epochs=-3", "++data.batch_size=1.5", "+latent.depth=3", "+lr=1"]
)
def test_values_behind_a_plus_are_checked_too(override: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", override]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert override.lstrip("+").split("=")[0].split(".")[-1] in err


def test_an_error_in_a_class_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("vi_lab.models.VAE.training_step", broken)
    assert cli.main(["train", *SMALL, f"hydra.run.dir={tmp_path}/a"]) == 1
    assert capsys.readouterr().err == "vi-lab train: ZeroDivisionError: division by zero; --debug shows where\n"
    assert cli.main(["train", *SMALL, "--debug", f"hydra.run.dir={tmp_path}/b"]) == 1
    assert "in broken" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["optimizer_states", "loops", "means"])
def test_a_checkpoint_that_lacks_something(tmp_path: Path, lacking: str, capsys: pytest.CaptureFixture) -> None:
    run(config("trainer.max_epochs=1"), tmp_path)
    file = tmp_path / "checkpoints" / "last.ckpt"
    whole = load_checkpoint(file)
    for damaged in ({k: v for k, v in whole.items() if k != lacking}, {**whole, lacking: {"nonsense": 1}}):
        store(damaged, file)
        capsys.readouterr()
        assert cli.main(["train", f"resume={tmp_path}", "trainer.max_epochs=2"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_named_after_nothing(capsys: pytest.CaptureFixture) -> None:
    assert "'x' not found" in refusal(capsys, "train", *SMALL, "hydra.run.dir='${x}'")


def test_a_run_that_has_come_meanwhile_stays(tmp_path: Path) -> None:
    """As where one sweep is started twice at once: the other process has done this job."""
    execute(Job(config("trainer.max_epochs=1"), tmp_path, {}))
    before = (tmp_path / "status.json").read_bytes()
    with pytest.raises(UserError, match="holds a run already"):
        execute(Job(config("trainer.max_epochs=1"), tmp_path, {}))
    assert (tmp_path / "status.json").read_bytes() == before


@pytest.mark.slow
def test_fault_test_script(tmp_path: Path) -> None:
    faults = ["a mistake", "disk full at checkpoint 4", "SIGHUP at a step"]
    script = Path(__file__).resolve().parents[2] / "scripts" / "fault_test.py"
    command = [sys.executable, str(script), *(word for fault in faults for word in ("--only", fault))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("5 faults, 0 failed")


@pytest.mark.slow
def test_ascii_without_a_terminal_and_with_closed_input(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    arguments = [*SMALL, "trainer.max_epochs=1", "hydra.run.dir=run"]
    done = vi_lab("train", *arguments, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert re.search(r"\| nll .* \? ", done.stdout)  # for what stands between a value and its error
