"""`vi-lab audit`: its tables and figures, on fresh and on trained models, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import TIME_LIMIT, compose, run
from vi_lab import cli, find_runs
from vi_lab.audit import Bench
from vi_lab.errors import UserError

SMALL = ["data=digits", "network.encoder.hidden=[16]", "network.decoder.hidden=[16]", "threads=1", "accelerator=cpu"]


AUDIT = [*SMALL, "latent=2x10", "audit.samples=60", "audit.batch=4", "audit.warmup=2", "audit.temperatures=[0.5,1]"]


def test_the_command_writes_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = "audit.estimators=[gumbel_softmax,rloo,nvil,rebar,vimco]"
    assert cli.main(["audit", *AUDIT, chosen, "audit.reference_draws=100", "hydra.run.dir=lab"]) == 0
    report = json.loads(Path("lab/audit.json").read_text())
    names = [row["estimator"] for row in report["estimators"] if row["group"] == "logits"]
    assert names == ["gumbel_softmax", "rloo", "nvil", "rebar", "vimco"]
    assert {row["temperature"] for row in report["temperatures"]} == {0.5, 1}
    assert report["references"]["ELBO"]["relative_error"] == 0
    assert report["references"]["bound of 5 samples"]["relative_error"] > 0
    for name in ("bias_variance", "error_cost", "temperature", "simplex"):
        assert Path(f"lab/figures/{name}.png").stat().st_size > 5000
    assert Path("lab/audit.csv").read_text().count("\n") == 11
    out = capsys.readouterr().out
    assert "relative bias" in out
    assert "(wanted 0.01: raise audit.reference_draws=100)" in out
    assert out.count("(wanted") == 1  # the other one is exact


def test_estimators_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """One of a folder of the user's own has its name beside those that are shipped."""
    monkeypatch.chdir(tmp_path)
    Path("conf/estimator").mkdir(parents=True)
    family = "defaults:\n  - family: score_function\n"
    Path("conf/estimator/mine.yaml").write_text(f"{family}_target_: vi_lab.estimators.Reinforce\nsamples: 3\n")
    options = ["audit.estimators=[mine,rloo]", "audit.samples=40", "hydra.run.dir=lab"]
    assert cli.main(["audit", "--config-dir", "conf", *AUDIT, *options]) == 0
    rows = json.loads(Path("lab/audit.json").read_text())["estimators"]
    assert [row["estimator"] for row in rows if row["group"] == "logits"] == ["mine", "rloo"]
    assert cli.main(["audit", *AUDIT, *options, "hydra.run.dir=other"]) == 2
    assert "there is no mine (one of arm, concrete" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_on_a_terminal(tmp_path: Path) -> None:
    """With its progress bars, which a pipe does not show."""
    chosen = ["audit.estimators=[rloo,vimco]", "audit.reference_draws=2000", "audit.reference_error=0.001"]
    command = [sys.executable, "-m", "vi_lab", "audit", *AUDIT, *chosen, "hydra.run.dir=lab"]
    inside = f"import os, pty, sys; os.chdir({str(tmp_path)!r}); sys.exit(pty.spawn({command!r}) >> 8)"
    done = subprocess.run(
        [sys.executable, "-c", inside], stdin=subprocess.DEVNULL, capture_output=True, timeout=TIME_LIMIT
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert json.loads((tmp_path / "lab" / "status.json").read_text())["state"] == "completed"
    assert b"Traceback" not in done.stdout
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", done.stdout.decode())
    assert re.search(r"reference, relative error 0\.\d+ .*\d+/2000 0:00:\d\d", plain)


def test_the_command_on_a_trained_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL, "estimator=rloo", "latent=2x10", "trainer.max_epochs=1", "figures=false"]
    Path("trained").mkdir()
    run(compose(*overrides), Path("trained"))
    options = ["audit.estimators=[rloo]", "audit.samples=40", "audit.batch=2", "threads=1", "accelerator=cpu"]
    assert cli.main(["audit", "run=trained", *options, "hydra.run.dir=lab"]) == 0
    assert json.loads(Path("lab/audit.json").read_text())["estimators"][0]["estimator"] == "rloo"
    assert cli.main(["audit", "run=trained", "latent=4x8"]) == 2
    assert cli.main(["audit", "run=nowhere"]) == 2
    Path("trained/checkpoints/last.ckpt").write_bytes(b"no checkpoint")
    assert cli.main(["audit", "run=trained", *options]) == 1


def test_interrupted_it_writes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measure, calls = Bench.measure, []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(Bench, "measure", interrupted)
    assert cli.main(["audit", *AUDIT, "audit.estimators=[rloo,muprop]", "hydra.run.dir=lab"]) == 130
    report = json.loads(Path("lab/audit.json").read_text())
    assert report["interrupted"]
    assert {row["estimator"] for row in report["estimators"]} == {"rloo"}
    assert json.loads(Path("lab/status.json").read_text())["state"] == "interrupted"


def test_an_audit_is_no_run_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted(*arguments: object, **options: object) -> object:
        with pytest.raises(UserError, match="lab: the folder of an audit, not of a run"):
            find_runs("lab")
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "measure", interrupted)
    assert cli.main(["audit", *AUDIT, "audit.estimators=[rloo]", "hydra.run.dir=lab"]) == 130
    assert json.loads(Path("lab/status.json").read_text())["state"] == "interrupted"
    assert "interrupted before the first estimator was measured" in capsys.readouterr().err
    for command in (["compare", "lab"], ["evaluate", "lab"], ["reproduce", "lab"], ["train", "resume=lab"]):
        assert cli.main(command) == 2
        assert "lab: the folder of an audit, not of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("audit.estimators=[gumbl]", "there is no gumbl"),
        ("audit.estimators=[gaussian]", "gaussian does not work with a categorical latent"),
        ("audit.samples=3", "audit.samples=3: wanted"),
        ("audit.sample=30", "did you mean samples"),
    ],
)
def test_mistakes(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["audit", *SMALL, override, "hydra.run.dir=lab"]) == 2
    assert message in capsys.readouterr().err
