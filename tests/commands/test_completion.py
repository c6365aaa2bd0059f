"""What TAB completes, asked of real shells; quickly, and silent on errors."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import TIME_LIMIT, refusal
from vi_lab import cli
from vi_lab.commands.completion import complete

JOB = "0-rloo-temperature=0.5-s0"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "outputs" / "a sweep" / JOB).mkdir(parents=True)
    (tmp_path / "outputs" / "a sweep" / JOB / "config_resolved.yaml").touch()
    (tmp_path / "outputs" / ".hidden").mkdir()
    (tmp_path / "output.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bash(folder: Path, line: str, install: str = "vi-lab train -sc install=bash") -> list[str]:
    """COMPREPLY of a bash that has the script, for a line with the cursor at its end."""
    command = folder / "bin" / "vi-lab"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vi_lab "$@"\n')
    command.chmod(0o755)
    script = f"""
        eval "$({install})" || exit 9
        [[ $(complete -p vi-lab) == *"-F _vi_lab vi-lab" ]] || exit 8
        COMP_LINE=$1 COMP_POINT=${{#1}}; COMP_WORDS=(vi-lab "${{1##* }}"); COMP_CWORD=1
        _vi_lab
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shutil.which("bash") or "bash", "--norc", "-c", script, "bash", line],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


def test_bash_completes(here: Path) -> None:
    assert bash(here, "vi-lab tr") == ["train"]
    assert bash(here, "vi-lab train estimator=gu") == ["gumbel_rao", "gumbel_softmax"]  # bash has replaced nothing yet
    assert bash(here, "vi-lab compare outputs/a", "vi-lab -sc install=bash") == ["outputs/a\\ sweep/"]


def test_no_name_is_run(here: Path) -> None:
    """What is offered can be typed: between quotes the shell would take a name as it stands."""
    for name in (
        "data$(touch run)",
        "data`touch run`",
        "data';touch run;'",
        'data";touch run;"',
        "data\ntouch run",
        "data!",
    ):
        (here / name).mkdir()
    single = {'data";touch run;"/', "data!/", "data$(touch run)/", "data`touch run`/"}
    assert set(complete("vi-lab compare 'da")) == single
    assert complete('vi-lab compare "da') == ["data';touch run;'/"]
    assert complete('vi-lab compare run="da') == []
    for answer in bash(here, "vi-lab compare da"):
        subprocess.run([shutil.which("bash") or "bash", "-c", f"test -d {answer}"], check=True)
    assert len(bash(here, "vi-lab compare da")) == 5  # but the one of two lines
    assert not (here / "run").exists()


def test_bash_is_silent_on_errors(here: Path) -> None:
    assert bash(here, "vi-lab nosuch x") == [""]


COMPLETED = {
    "vi-lab train esti": ["estimator="],
    "vi-lab train estimator": ["estimator.", "estimator/", "estimator="],
    "vi-lab train optimizer.l": ["optimizer.lr="],
    "vi-lab train optimizer=sgd optimizer.mom": ["optimizer.momentum="],
    "vi-lab train estimator=typo optimizer.l": ["optimizer.lr="],
    "vi-lab train seed=0,1 -m estimator=gaussian,gumbel_s": ["estimator=gaussian,gumbel_softmax"],
    "vi-lab train logger=[tensorboard,c": ["logger=[tensorboard,csv"],
    "vi-lab train objective.kl=": ["objective.kl=analytic", "objective.kl=monte_carlo", "objective.kl=path"],
    "vi-lab train figures=f": ["figures=false"],
    "vi-lab train network.encoder.hid": ["network.encoder.hidden="],
    "vi-lab train latent._": [],
    "vi-lab train --mul": ["--multirun"],
    "vi-lab train --cfg j": ["job"],
    "vi-lab train --config-dir out": ["outputs/"],
    "vi-lab train resume=out": ["resume=outputs/"],
    "vi-lab train data.root=out": ["data.root=outputs/"],
    "vi-lab evaluate out": ["outputs/"],
    "vi-lab evaluate 'outputs/a sweep/0": [f"outputs/a sweep/{JOB}"],
    "vi-lab evaluate run=outputs/": ["run=outputs/a\\ sweep/"],
    "vi-lab evaluate outputs/a\\ sweep/0": [f"outputs/a\\ sweep/{JOB}"],
    "vi-lab evaluate est": [],
    "vi-lab evaluate acc": ["accelerator="],
    "vi-lab audit data=dig": ["data=digits"],
    "vi-lab audit run=out": ["run=outputs/"],
    "vi-lab compare --sel": ["--select"],
    "vi-lab compare --output out": ["outputs/"],
    "vi-lab board run=out": ["run=outputs/"],
    "vi-lab share out": ["outputs/"],
    "vi-lab reproduce log": ["logger="],
}


@pytest.mark.parametrize("line", COMPLETED)
def test_what_is_completed(line: str, here: Path) -> None:
    assert complete(line) == sorted(COMPLETED[line])


def test_groups_of_ones_own_are_completed(here: Path) -> None:
    (here / "conf" / "estimator").mkdir(parents=True)
    (here / "conf" / "estimator" / "mine.yaml").touch()
    assert complete("vi-lab train --config-dir conf estimator=mi") == ["estimator=mine"]


def test_what_the_shell_breaks_off_is_not_repeated(here: Path) -> None:
    assert complete("vi-lab train estimator=rl", " \t\n=:") == ["rloo"]
    assert complete(f"vi-lab evaluate run=outputs/a\\ sweep/{JOB[:-2]}", " \t\n=:") == ["0.5-s0"]


def test_nothing_heavy_is_imported(here: Path) -> None:
    code = "import sys; from vi_lab import cli; cli.main(['-sc', 'query=bash']); print({0} & set(sys.modules))"
    for line in ("vi-lab train estimator=rl", "vi-lab compare --re", "vi-lab reproduce --ou", "vi-lab share --he"):
        done = subprocess.run(
            [sys.executable, "-c", code.format({"torch", "lightning", "pandas", "numpy", "tensorboard"})],
            env={**os.environ, "COMP_LINE": line, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
        assert done.stdout.endswith("\nset()\n"), line
        assert done.stdout.count("\n") == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str, capsys: pytest.CaptureFixture) -> None:
    for word in ("install", "uninstall"):
        assert cli.main(["train", "-sc", f"{word}={shell}"]) == 0
        assert "vi-lab" in capsys.readouterr().out


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a shell that finds this `vi-lab`, and no start file of the user's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    home = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "dumb"}
    return {**os.environ, **home, "PATH": path, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes(here: Path, environment: dict[str, str]) -> None:
    code = "vi-lab -sc install=fish | source; complete -C 'vi-lab train estimator=strai'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", code], env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert done.stdout == "estimator=straight_through\n", done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes_without_a_start_file(here: Path, environment: dict[str, str]) -> None:
    """Its completion needs a terminal, and a TAB."""
    ours, theirs = os.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(["zsh", "-f", "-i"], env=environment, start_new_session=True, **streams) as zsh:
        os.write(ours, b'eval "$(vi-lab -sc install=zsh)"; echo READY $((1 + 1))\n')
        ready = shown(ours, "READY 2")
        os.write(ours, b"vi-lab train estimator=strai\t")
        completed = shown(ours, "estimator=straight_through")
        zsh.kill()
    os.close(ours)
    os.close(theirs)
    assert ready
    assert completed


def shown(terminal: int, text: str) -> bool:
    """Whether a terminal comes to show a text within a minute."""
    found = ""
    while text not in found and select.select([terminal], [], [], 60)[0]:
        found += os.read(terminal, 4096).decode(errors="replace")
    return text in found


def test_another_shell(capsys: pytest.CaptureFixture) -> None:
    assert "wanted one of install=bash" in refusal(capsys, "-sc", "install=csh")
