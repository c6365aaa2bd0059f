"""`vi-lab share`: nothing in the copy names the machine, and it goes on like the original."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import SMALL
from tests.training.crash import unequal
from vi_lab import cli, load_run
from vi_lab.commands.share import nameless


def test_a_shared_run_names_no_machine_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    home = tmp_path / "of-somebody"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setattr("socket.gethostname", lambda: "a.secret.host")
    arguments = ["train", *SMALL, "trainer.max_epochs=1", f"data.root={home}/data", f"hydra.run.dir={home}/run"]
    assert cli.main(arguments) == 0
    assert any("a.secret.host" in file.name for file in Path("run").iterdir())
    assert cli.main(["share", "run", "copy"]) == 0
    assert "1 of 1 runs copied to copy" in capsys.readouterr().out
    for file in Path("copy").rglob("*"):
        assert "secret" not in file.name
        assert file.is_dir() or not any(word in file.read_bytes() for word in (b"secret", b"of-somebody")), file
    assert "pid" not in json.loads(Path("copy/status.json").read_text())
    assert load_run("copy").final == load_run("run").final
    shutil.copytree("run", "whole")
    for folder in ("whole", "copy"):
        assert cli.main(["train", f"resume={folder}", "trainer.max_epochs=2"]) == 0
    assert unequal(Path("whole"), Path("copy")) == []


def test_jobs_of_equal_names_in_two_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "trainer.max_epochs=1", "evaluation.samples=null"]
    assert cli.main(["train", *small, "hydra.run.dir=sweeps/a/0-job"]) == 0
    shutil.copytree("sweeps/a", "sweeps/b")
    assert cli.main(["share", "sweeps", "copy"]) == 0
    assert sorted(path.name for path in Path("copy").iterdir()) == ["0-job", "0-job-2"]


def test_what_still_tells_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "a.secret.host")
    small = [*SMALL, "trainer.max_epochs=1", "evaluation.samples=null"]
    assert cli.main(["train", *small, "name=on-a.secret.host", "hydra.run.dir=run"]) == 0
    assert cli.main(["share", "run", "copy"]) == 1
    assert "config_resolved.yaml holds 'a.secret.host': look at it before you share it" in capsys.readouterr().out
    assert cli.main(["share", "run", "copy"]) == 2
    assert "copy: not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (
            "vi-lab train data.root=/home/a/b hydra.run.dir=/x/run seed=0",
            "vi-lab train data.root=b hydra.run.dir=run seed=0",
        ),
        ("'/home/a b/c': no such file", "'a b/c': no such file"),
        ("C:\\Users\\a\\data", "data"),
        ("~/mnist", "mnist"),
        ("outputs/run and 3/4, nats/image", "outputs/run and 3/4, nats/image"),
        ("/", ""),
    ],
)
def test_paths_lose_their_directories(text: str, cut: str) -> None:
    assert nameless({"key": [text]}) == {"key": [cut]}
