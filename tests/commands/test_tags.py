"""`tags` and `notes`: recorded, shown beside the hyperparameters, and no difference between experiments."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.support import SMALL, refusal
from vi_lab import cli, load_run

SHORT = [*SMALL, "trainer.max_epochs=1", "evaluation.samples=null"]


def test_tags_and_notes_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    notes = "it's a first try, mostly (lr=1): ün{i}t $5"
    assert cli.main(["train", *SHORT, "tags=[paper,v1.0]", f"notes={notes}", "hydra.run.dir=runs/a"]) == 0
    run = load_run("runs/a")
    assert (run.config.tags, run.config.notes) == (["paper", "v1.0"], notes)
    hyperparameters = yaml.safe_load(Path("runs/a/hparams.yaml").read_text())
    assert (hyperparameters["tags"], hyperparameters["notes"]) == ("['paper', 'v1.0']", notes)
    shutil.copytree("runs/a", "plain")
    other = ["train", "resume=runs/a", "trainer.max_epochs=2", "tags=[baseline]", "notes=what ??? for longer"]
    assert cli.main(other) == 0
    run = load_run("runs/a")
    assert (run.config.tags, run.config.notes) == (["baseline"], "what ??? for longer")
    assert cli.main(["train", "resume=plain", "trainer.max_epochs=2"]) == 0
    assert load_run("plain").key == run.key  # the same experiment
    assert load_run("plain").final == run.final

    assert cli.main(["train", *SHORT, "trainer.max_epochs=2", "seed=1", "hydra.run.dir=runs/b"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", "runs"]) == 0
    assert "One seed only" not in capsys.readouterr().out  # tags and notes make no groups
    assert cli.main(["compare", "runs", "--tag", "baseline"]) == 0
    assert "One seed only" in capsys.readouterr().out
    assert "none of the 2 runs; there are baseline" in refusal(capsys, "compare", "runs", "--tag", "paper")
    assert "none of the 2" in refusal(capsys, "compare", "runs", "--tag", "baseline", "--tag", "paper")


def test_runs_from_before_there_were_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *SHORT, "hydra.run.dir=run"]) == 0
    file = Path("run/config_resolved.yaml")
    old = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key not in ("tags", "notes")}
    file.write_text(yaml.safe_dump(old))
    assert cli.main(["compare", "run", "--output", "out"]) == 0
    assert cli.main(["train", "resume=run", "trainer.max_epochs=2", "tags=[late]"]) == 0
    assert load_run("run").config.tags == ["late"]


@pytest.mark.parametrize("value", ["paper", "[a b]", "[a/b]", "[[a]]", "[1]", "null", f"[{'a' * 41}]"])
def test_tags_are_words(value: str, capsys: pytest.CaptureFixture) -> None:
    assert "wanted a list of words" in refusal(capsys, "train", f"tags={value}")
