"""The command line before a command runs: help, version, mistyped commands."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import TIME_LIMIT
from vi_lab import cli
from vi_lab.commands.help import read_comments
from vi_lab.schema import CONFIG_DIR


@pytest.mark.parametrize("arguments", [["--help"], ["trian"], ["train", "--help"], ["train", "estimator=gumbl"], []])
def test_help_and_mistakes_do_not_import_torch(arguments: list[str]) -> None:
    report = "atexit.register(lambda: print('torch' in sys.modules))"
    code = f"import atexit, sys; {report}; from vi_lab.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.stdout.endswith("False\n"), done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2)


def test_help_names_groups_and_examples(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("estimator: arm, ", "latent: ", "EXAMPLES", "max_epochs: 10"):
        assert word in text


@pytest.mark.parametrize("command", ["train", "evaluate", "audit"])
def test_help_explains_keys_in_eighty_columns(command: str, capsys: pytest.CaptureFixture) -> None:
    """The comments of the yaml files are the only place where keys are explained."""
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    words = " ".join(text.split())
    comments = read_comments(CONFIG_DIR / f"{command}.yaml")
    shown = {key: comment for key, comment in comments.items() if key.split(".")[0] not in ("hydra", "defaults")}
    assert len(shown) >= 8
    assert [comment for comment in shown.values() if " ".join(comment.split()) not in words] == []


def test_help_follows_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("# Of my own.\ndefaults: [digits]\nvalidation: 30 # a few\n")
    assert cli.main(["train", "--help", "--config-dir", str(tmp_path), "data=mine", "schedule=exponential"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^data: +Of my own\.$", text, re.MULTILINE)
    assert re.search(r"^  validation: 30 +a few$", text, re.MULTILINE)
    assert re.search(r"^  batch_size: 100 +per device$", text, re.MULTILINE)  # from the file that mine builds on
    assert "floor: 0.5" in text
    assert re.search(r"kmnist,\s+mine,\s+mnist", text)  # among the choices
    assert cli.main(["train", "--help", "estimator=typo"]) == 2


def test_mistyped_command(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["trian"]) == 2
    assert "there is no command 'trian'; did you mean train?" in capsys.readouterr().err


def test_missing_gpu(capsys: pytest.CaptureFixture) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["train", "accelerator=gpu"]) == 2
    assert "no CUDA device is visible here; use accelerator=cpu" in capsys.readouterr().err


def test_python_m_vi_lab() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vi_lab", "--version"], capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert done.returncode == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


def test_a_long_error_is_folded_between_words_on_a_terminal_only(tmp_path: Path) -> None:
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    missing = tmp_path / "a-folder-whose-name-is-longer-than-the-terminal"
    command = [sys.executable, "-m", "vi_lab", "compare", str(missing), "outputs/what-is-not-there-either"]
    reader, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    assert subprocess.run(command, stderr=terminal, timeout=TIME_LIMIT, cwd=tmp_path).returncode == 2
    os.close(terminal)
    shown = os.read(reader, 10_000).decode().splitlines()
    os.close(reader)
    assert len(shown) > 1
    assert all(len(line) <= 40 for line in shown if str(missing) not in line)
    plain = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, cwd=tmp_path).stderr
    assert plain.count("\n") == 1
    assert plain.split() == " ".join(shown).split()
