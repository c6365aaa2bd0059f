"""The command line before a command runs: help, version, mistyped commands."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support import TIME_LIMIT
from vi_lab import cli


@pytest.mark.parametrize("arguments", [["--help"], ["trian"], ["train", "--help"], ["train", "estimator=gumbl"], []])
def test_help_and_mistakes_do_not_import_torch(arguments: list[str]) -> None:
    report = "atexit.register(lambda: print('torch' in sys.modules))"
    code = f"import atexit, sys; {report}; from vi_lab.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.stdout.endswith("False\n"), done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2)


def test_help_names_groups_and_examples(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_code:  # Hydra leaves by itself
        cli.main(["train", "--help"])
    assert exit_code.value.code in (0, None)
    text = capsys.readouterr().out
    for word in ("estimator: arm, ", "latent: ", "EXAMPLES", "max_epochs: 10"):
        assert word in text


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
