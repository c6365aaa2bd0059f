"""`vi-lab reproduce`: equal where nothing changed, and by how much not where something did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.support import SMALL, store
from vi_lab import cli
from vi_lab.runs.trust import load_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", *SMALL, "estimator=rebar", f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    return Path("run")


def reproduce(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.main(["reproduce", "run", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_equal_to_the_last_bit(copy: Path, capsys: pytest.CaptureFixture) -> None:
    code, text = reproduce(capsys)
    assert code == 0
    assert "run: equal to the last bit" in text
    assert "nothing of code, versions, hardware, threads and data has changed" in text
    (again,) = Path("outputs/reproduce").iterdir()
    assert json.loads((again / "reproduction.json").read_text())["equal"] is True
    assert (again / "metrics.csv").read_bytes() == (copy / "metrics.csv").read_bytes()


def test_says_which_metric_differs_and_what_has_changed(copy: Path, capsys: pytest.CaptureFixture) -> None:
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["test/loss"] += 0.25
    (copy / "metrics.json").write_text(json.dumps(metrics))
    snapshot = json.loads((copy / "environment.json").read_text())
    snapshot["packages"]["torch"] = "1.0"
    (copy / "environment.json").write_text(json.dumps(snapshot))
    code, text = reproduce(capsys, "--output", "again")
    assert code == 1
    assert "not equal to the last bit" in text
    (line,) = [line for line in text.splitlines() if "test/loss" in line and "│" in line]
    assert "-0.25" in line
    assert f"packages.torch is {torch.__version__.split('+')[0]}, was 1.0" in text


def test_says_that_weights_differ(copy: Path, capsys: pytest.CaptureFixture) -> None:
    file = copy / "checkpoints" / "last.ckpt"
    checkpoint = load_checkpoint(file)
    name = next(name for name in checkpoint["state_dict"] if name.startswith("decoder"))
    checkpoint["state_dict"][name].view(-1)[0] += 0.5
    store(checkpoint, file)
    code, text = reproduce(capsys)
    assert code == 1
    assert f"weights of last.ckpt: differ by up to 0.5 (in {name})" in text
    assert "metrics.csv (each epoch): equal" in text


def test_the_folder_decides_threads_and_data(copy: Path, capsys: pytest.CaptureFixture) -> None:
    values = OmegaConf.load(copy / "config_resolved.yaml")
    values.threads = None  # then those of the snapshot
    (copy / "config_resolved.yaml").write_text(OmegaConf.to_yaml(values))
    code, text = reproduce(capsys, "--output", "again")
    assert code == 0, text
    assert json.loads(Path("again/environment.json").read_text())["threads"] == 1


def test_mistakes(copy: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["seed=3"], "seed cannot change with vi-lab reproduce"),
        (["--output", "run"], "the folder is not empty"),
        (["trainer.max_epochs=1"], "trainer.max_epochs cannot change"),
    ):
        code, text = reproduce(capsys, *arguments)
        assert (code, len(text.splitlines())) == (2, 1)
        assert message in text
    (copy / "status.json").write_text('{"state": "interrupted"}')
    assert "is interrupted, not completed; go on with: vi-lab train resume=run" in reproduce(capsys)[1]
    assert cli.main(["reproduce", "nothing"]) == 2
