"""Folders on the command line: FOLDER and run=FOLDER mean the same in every command, whatever the folder is called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import SMALL, refusal
from vi_lab import cli
from vi_lab.arguments import folder_of, split_folders

JOB = "0-gumbel_softmax-temperature=0.5-s0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / JOB
    assert cli.main(["train", *SMALL, "trainer.max_epochs=1", "latent=2x10", f"hydra.run.dir='{folder}'"]) == 0
    return folder


@pytest.fixture
def job(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "sweep" / JOB)
    return f"sweep/{JOB}"


@pytest.mark.parametrize("form", ["{}", "run={}", "run='{}'"])
def test_every_command_takes_both_forms(job: str, form: str, capsys: pytest.CaptureFixture) -> None:
    folder = form.format(job)
    assert cli.main(["evaluate", folder, "evaluation.samples=5", "accelerator=cpu"]) == 0
    assert json.loads((Path(job) / "evaluations/test-last-K5.json").read_text())["samples"] == 5
    audit = ["audit", folder, "audit.estimators=[rloo]", "audit.samples=40", "audit.batch=2", "audit.warmup=0"]
    assert cli.main([*audit, "audit.temperatures=[]", "accelerator=cpu", "hydra.run.dir=audit"]) == 0
    assert cli.main(["compare", folder, "--output", "compared"]) == 0
    assert cli.main(["reproduce", "threads=1", folder]) == 0
    assert cli.main(["share", folder, "copy"]) == 0
    assert "copied to copy" in capsys.readouterr().out
    shutil.rmtree("copy")


def test_evaluate_and_share_take_what_a_shell_makes_of_a_pattern(job: str, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(job, "sweep/1, a 'second'")
    folders = [job, "sweep/1, a 'second'"]
    assert cli.main(["evaluate", *folders, "evaluation.samples=5", "accelerator=cpu"]) == 0
    assert "in each of the 2 run folders" in capsys.readouterr().out
    assert cli.main(["share", *folders, "copies"]) == 0
    assert "2 of 2 runs copied" in capsys.readouterr().out


def test_mistakes_in_folders_are_one_line(job: str, capsys: pytest.CaptureFixture) -> None:
    for command in ("evaluate", "audit", "compare", "board", "reproduce"):
        for word in ("nowhere", "run=nowhere"):
            assert "nowhere: no " in refusal(capsys, command, word)
    assert "nowhere: no such folder" in refusal(capsys, "share", "run=nowhere", "copy")
    assert "got none" in refusal(capsys, "reproduce", "threads=1")
    assert "got 2" in refusal(capsys, "reproduce", job, job)
    assert "wanted one run folder" in refusal(capsys, "audit", job, job)
    assert "in one of the two ways" in refusal(capsys, "evaluate", job, f"run={job}")
    assert f"resume={job} goes on" in refusal(capsys, "train", job)


def test_what_is_there_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run=a=b", "seed=1", "~threads", "+a=1", "outputs/x"]
    assert split_folders(words) == (["outputs/x"], words[:-1])
    assert folder_of("run=a=b") == "a=b"
    for name in ("run=a=b", "seed=1", "-m"):
        Path(name).mkdir()
    assert split_folders(words) == (["run=a=b", "seed=1", "outputs/x"], ["~threads", "+a=1"])
    assert folder_of("run=a=b") == "run=a=b"
    assert split_folders(["seed=*"]) == (["seed=*"], [])
