"""`vi-lab train -m sweep=NAME` and `vi-lab status`."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm import queue
from tests.support import SMALL, TIME_LIMIT, refusal
from vi_lab import cli
from vi_lab.commands import status as status_command
from vi_lab.commands.named import Task, drain
from vi_lab.console import Terminal
from vi_lab.runs.claims import Claims
from vi_lab.runs.files import Status
from vi_lab.runs.jobs import Jobs

ROOT = Path(__file__).resolve().parents[2]
TINY = [*SMALL, "trainer.max_epochs=1", "trainer.max_steps=2", "evaluation.samples=null", "logger=[]"]
CALLBACK = """
from pathlib import Path
import os
import signal
import sys
from lightning.pytorch.callbacks import Callback

class Fail(Callback):
    def on_train_start(self, trainer, pl_module):
        if pl_module.seed == 1 and Path("fails").exists():
            raise RuntimeError("as was planned")
        if pl_module.seed == 1 and Path("exits").exists():
            sys.exit(3)

    def on_train_batch_end(self, trainer, pl_module, *rest):
        steps = Path("preempted").read_text().split() if Path("preempted").exists() else []
        if pl_module.seed == 1 and str(trainer.global_step) in steps:
            Path("preempted").write_text(" ".join({*steps} - {str(trainer.global_step)}))
            os.kill(os.getpid(), signal.SIGUSR2)
"""
FAILING = "+callbacks.fail._target_=planned_failures.Fail"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "planned_failures.py").write_text(CALLBACK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "sweeps" / "first"


def train(*overrides: str, name: str = "first") -> int:
    return cli.main(["train", "-m", f"sweep={name}", *TINY, *overrides])


def times(folder: Path) -> dict[str, int]:
    """When each job was last written to."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/status.json")}


def test_the_same_command_does_what_is_left(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("estimator=rloo,arm", "seed=0") == 0
    before = times(folder)
    assert sorted(name.rsplit("-", 1)[0] for name in before) == ["arm-s0", "rloo-s0"]
    capsys.readouterr()
    assert train("estimator=rloo,arm", "seed=0") == 0
    assert "2 jobs below outputs/sweeps/first: 2 completed" in capsys.readouterr().out
    assert times(folder) == before
    # a value more; the order of the words, and what is no setting, do not matter
    assert train("seed=0,1", "threads=1", "notes='other words'", "estimator=arm,rloo") == 0
    after = times(folder)
    assert len(after) == 4
    assert after.items() >= before.items()
    assert "sweep: null" in (folder / next(iter(before)) / "config_resolved.yaml").read_text()


def test_what_is_complete_is_known_without_torch(folder: Path) -> None:
    assert train("seed=0,1") == 0
    code = "import sys; from vi_lab.cli import main; code = main(); assert not {'torch', 'lightning', 'matplotlib'} & {*sys.modules}; sys.exit(code)"  # noqa: E501
    command = [sys.executable, "-c", code, "train", "-m", "sweep=first", *TINY, "seed=0,1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_changed_base_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("seed=0", "optimizer.lr=0.002") == 0
    capsys.readouterr()
    told = refusal(capsys, "train", "-m", "sweep=first", *TINY, "seed=1", "optimizer.lr=0.003")
    assert "optimizer.lr is 0.002 there, 0.003 here" in told
    assert "choose another name" in told
    assert train("seed=0,1", "optimizer.lr=0.002,0.003") == 0  # it is swept now
    assert len(times(folder)) == 4
    assert train("seed=1", "optimizer.lr=0.003") == 0  # and free from then on
    assert len(times(folder)) == 4


def test_changed_configs_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own = tmp_path / "conf" / "schedule" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: vi_lab.schedules.Linear\nstart: ${temperature}\nend: 0.5\nsteps: 10\n")
    command = ["train", "-m", "sweep=first", "--config-dir", "conf", *TINY, "schedule=own", "seed=0"]
    assert cli.main(command) == 0
    own.write_text(own.read_text() + "# only a comment\n")
    assert cli.main(command) == 0
    own.write_text(own.read_text().replace("0.5", "0.6"))
    capsys.readouterr()
    told = refusal(capsys, *command)
    assert "schedule.end is 0.5 there, 0.6 here" in told


def test_failures_stop_nothing_and_are_tried_again(folder: Path, capfd: pytest.CaptureFixture) -> None:
    Path("fails").touch()
    assert train("seed=0,1,2", FAILING) == 1
    err = capfd.readouterr().err
    assert "RuntimeError" in err or "as was planned" in err
    states = Jobs.found(folder).states()
    assert [state.name for state in states.values()] == ["completed", "failed", "completed"]
    (failed,) = (name for name, state in states.items() if state.name == "failed")
    log = (folder / failed / "train.log").read_text()
    assert "Traceback" in log
    assert log.rstrip().endswith("as was planned")
    assert train("seed=0,1,2", FAILING, "retries=2") == 1  # each command tries once more, and twice again
    assert Claims(folder).read()[failed] == ["failed"] * 4
    Path("fails").unlink()
    assert train("seed=0,1,2", FAILING) == 0
    assert Claims(folder).read()[failed] == [*["failed"] * 4, "completed"]


def test_sys_exit_in_a_job_stops_nothing(folder: Path, capfd: pytest.CaptureFixture) -> None:
    Path("exits").touch()
    assert train("seed=1,2", FAILING) == 1
    assert "sys.exit(3)" in capfd.readouterr().err
    assert [state.name for state in Jobs.found(folder).states().values()] == ["failed", "completed"]


def test_a_dry_run_tells_and_does_nothing(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "-m", "sweep=first", "--dry-run", *TINY, "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert out.count("begins") == 2
    assert "2 jobs below outputs/sweeps/first: 2 new" in out
    assert not folder.exists()
    Path("fails").touch()
    train("seed=0,1", FAILING, "optimizer.lr=0.001")
    capsys.readouterr()
    words = ["seed=0,1,2", FAILING, "optimizer.lr=0.001"]
    assert cli.main(["train", "-m", "sweep=first", "--dry-run", *TINY, *words]) == 0
    out = capsys.readouterr().out
    assert out.index("is left as it is") < out.index("is tried again") < out.index("begins")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep=first", "seed=0"], "add -m"),
        (["-m", "sweep=../elsewhere", "seed=0,1"], "wanted a name of letters, digits and"),
        (["-m", "sweep=first", "resume=outputs"], "leave resume= out"),
        (["-m", "sweep=first", "seed=0,1", "stack=2"], "leave one of them out"),
        (["-m", "sweep=first", "seed=0,1", "hydra.sweep.dir=x"], "says where the jobs go"),
        (["-m", "sweep=first", "seed=0,1", "threads=1,2"], "threads: jobs that differ in it are the same"),
        (["-m", "sweep=first", "seed=0,1", "estimator=rlo"], "did you mean rloo"),
        (["-m", "sweep=first", "hydra/launcher=nowhere"], "no such choice"),
        (["-m", "--dry-run", "seed=0,1"], "sweep=NAME"),
    ],
)
def test_mistakes(words: list[str], told: str, capsys: pytest.CaptureFixture, folder: Path) -> None:
    assert told in refusal(capsys, "train", *words)
    assert not folder.exists()


def test_a_launcher_that_is_not_installed_is_told(capsys: pytest.CaptureFixture) -> None:
    try:
        import hydra_plugins.hydra_ray_launcher  # noqa: F401
    except ImportError:
        told = refusal(capsys, "train", "-m", "sweep=first", "seed=0,1", "hydra/launcher=ray")
        assert "pip install 'vi_lab[ray]'" in told
    else:
        pytest.skip("the launcher is installed")


def test_an_interrupted_job_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from vi_lab.models import VAE

    steps, before = [], VAE.training_step

    def interrupt(self: VAE, *rest: object) -> object:
        steps.append(self)
        if len(steps) == 2:
            os.kill(os.getpid(), 15)
        return before(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "training_step", interrupt)
        assert train("seed=0,1", "trainer.max_steps=4") == 143
    assert "the same command goes on" in capsys.readouterr().err
    ((job, outcomes),) = Claims(folder).read().items()
    assert outcomes == ["interrupted"]
    assert train("seed=0,1", "trainer.max_steps=4") == 0
    assert Claims(folder).read()[job] == ["interrupted", "completed"]
    assert "goes on from" in (folder / job / "train.log").read_text()


def test_a_job_that_kills_its_workers_has_failed(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("seed=0") == 0
    (name,) = times(folder)
    status = json.loads((folder / name / "status.json").read_text())
    (folder / name / "status.json").write_text(json.dumps({**status, "state": "running"}))
    jobs = Jobs(folder, [name])
    for number in range(2, 5):  # each dies before it has said a word
        assert jobs.claims.take(name, number, jobs.progress(name)) is not None
        os.utime(folder / ".sweep" / "claims" / f"{name}.{number}", (0, 0))
    assert train("seed=0") == 1
    assert "its worker has died each time at this place" in capsys.readouterr().err
    assert jobs.states()[name].name == "failed"
    assert train("seed=0") == 0  # a command tries again what has failed


def test_seeds_may_come_one_after_the_other(folder: Path) -> None:
    assert train("seed=0") == 0
    assert train("seed=1") == 0
    assert len(times(folder)) == 2


@pytest.mark.parametrize("name", ["../../../victim", "/tmp/victim", "", ".sweep", "comparison", "a\x00b-0123456789"])
def test_a_record_of_a_stranger_names_no_other_folder(name: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("seed=0") == 0
    (file,) = (folder / ".sweep" / "commands").iterdir()
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "jobs": dict.fromkeys(record["jobs"], name)}))
    capsys.readouterr()
    assert train("seed=0") == 1
    assert "damaged; remove it" in capsys.readouterr().err
    for wrong in ({"swept": None}, {"words": [1]}, {"jobs": []}):
        file.write_text(json.dumps({**record, **wrong}))
        assert train("seed=0,1") == 1
        assert "damaged; remove it" in capsys.readouterr().err


@pytest.mark.parametrize("link", [".sweep", "JOB", "JOB/.hydra", "multirun.yaml"])
def test_links_in_a_sweep_are_not_followed(
    link: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train("seed=0") == 0
    (name,) = times(folder)
    place = folder / link.replace("JOB", name)
    victim = tmp_path / "victim"
    (victim.touch if link == "multirun.yaml" else victim.mkdir)()
    shutil.rmtree(folder / name)
    (folder / name).mkdir() if link == "JOB/.hydra" else None
    if place.is_dir() and not link.startswith("JOB"):
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(victim)
    assert train("seed=0") == 1
    assert "link" in capsys.readouterr().err
    assert victim.stat().st_size == 0 if link == "multirun.yaml" else not any(victim.iterdir())


def test_resume_leaves_a_named_sweep_alone(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("seed=0,1") == 0
    before = times(folder)
    capsys.readouterr()
    assert "with sweep=first, goes on with it" in refusal(capsys, "train", f"resume={folder}")
    assert times(folder) == before


def test_a_name_stands_on_the_command_line_only(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert "as the word sweep=NAME" in refusal(capsys, "train", *TINY, "++sweep=first")
    assert not Path("outputs").exists()


def test_a_run_that_went_on_alone_is_not_ruined(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("seed=0") == 0
    (name,) = times(folder)
    status = json.loads((folder / name / "status.json").read_text())
    (folder / name / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    config = folder / name / "config_resolved.yaml"
    for before, after, told in (
        ("max_epochs: 1", "max_epochs: 50", "for 50 epochs where the sweep has 1"),
        ("lr: 0.001", "lr: 0.5", "holds another run: its optimizer.lr is 0.5"),
    ):
        text = config.read_text()
        assert before in text
        config.write_text(text.replace(before, after))
        capsys.readouterr()
        assert train("seed=0") == 1
        assert told in capsys.readouterr().err
        assert config.read_text() == text.replace(before, after)
        config.write_text(text)


def test_a_variable_that_has_changed_makes_another_job(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    own = tmp_path / "conf" / "optimizer" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [adam]\nlr: ${oc.decode:${oc.env:RATE}}\n")
    command = ["train", "-m", "sweep=first", "--config-dir", "conf", *TINY, "optimizer=own", "seed=0"]
    monkeypatch.setenv("RATE", "0.1")
    assert cli.main(command) == 0
    (name,) = times(folder)
    shutil.rmtree(folder / name)
    monkeypatch.setenv("RATE", "0.2")
    capsys.readouterr()
    assert cli.main(command) == 1
    assert "its settings have changed" in capsys.readouterr().err


def test_commands_at_the_same_moment_share_their_jobs(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [["temperature=0.5,1", "seed=0"], ["temperature=1", "seed=0,1"]]
    commands = [[sys.executable, "-m", "vi_lab", "train", "-m", "sweep=first", *TINY, *own] for own in words]
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for command in commands]
    assert [worker.wait(TIME_LIMIT) for worker in workers] == [0, 0]
    marks = [name[-10:] for name in times(folder)]
    assert len(marks) == len({*marks}) == 3


# --- vi-lab status ---------------------------------------------------------------------------------------------------


def test_status_of_a_sweep(folder: Path, capsys: pytest.CaptureFixture) -> None:
    Path("fails").touch()
    train("seed=0,1,2", FAILING)
    jobs = [*Jobs.found(folder).names]
    held = Claims(folder).take(f"{jobs[0][:-10]}0123456789", 1)
    assert held is not None
    capsys.readouterr()
    assert cli.main(["status", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("outputs/sweeps/first: 3 jobs: 2 completed, 1 failed")
    assert "as was planned" in out
    assert cli.main(["status"]) == 0  # the one sweep below outputs
    assert capsys.readouterr().out == out
    assert cli.main(["status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [job["state"] for job in found["jobs"]] == ["completed", "failed", "completed"]
    assert found["jobs"][1]["failures"] == 1
    assert cli.main(["status", str(folder / jobs[0])]) == 0
    assert "1 job: 1 completed" in capsys.readouterr().out
    assert cli.main(["status", str(folder), "--watch"]) == 0  # nothing is running
    assert "2 completed, 1 failed" in capsys.readouterr().out


def test_status_tells_how_far_a_running_job_is(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("seed=0,1") == 0
    name, other = Jobs.found(folder).names
    for job in (name, other):
        (folder / job / "config_resolved.yaml").write_text(
            (folder / job / "config_resolved.yaml").read_text().replace("max_epochs: 1", "max_epochs: 5")
        )
    (folder / name / "timing.csv").write_text("epoch,step,seconds\n1,2,1000\n")
    status = json.loads((folder / name / "status.json").read_text())
    (folder / name / "status.json").write_text(json.dumps({**status, "state": "running"}))
    held = Claims(folder).take(name, 2)
    assert held is not None
    assert cli.main(["status", str(folder), "--json"]) == 0
    captured = capsys.readouterr().out
    found = json.loads(captured[captured.index("{") :])
    running = found["jobs"][0]
    assert (running["state"], running["epoch"], running["epochs"]) == ("running", 1, 5)
    assert running["worker"].endswith(f":{os.getpid()}")
    assert 3000 < running["seconds_left"] <= 4000
    assert running["loss"] > 0
    assert found["seconds_left"] == running["seconds_left"]


def test_watching_shows_each_look_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("seed=0,1") == 0
    name, _ = Jobs.found(folder).names
    status = json.loads((folder / name / "status.json").read_text())
    (folder / name / "status.json").write_text(json.dumps({**status, "state": "running"}))
    held = Claims(folder).take(name, 2)
    assert held is not None
    monkeypatch.setattr(status_command, "PERIOD", 0.0)
    looks = []

    def look(path: Path) -> object:
        looks.append(report(path))
        if len(looks) == 3:
            with held:
                (folder / name / "status.json").write_text(json.dumps(status))
        return looks[-1]

    report = status_command.report
    monkeypatch.setattr(status_command, "report", look)
    screen = io.StringIO()
    status_command._watch(folder, Terminal(file=screen, width=80, force_terminal=True))
    assert [len([job for job in found.jobs if job.state.name == "running"]) for found in looks] == [1, 1, 1, 0]
    assert screen.getvalue().count("2 jobs:") == 5  # each look, and the last once more where it stays


def test_status_of_several_sweeps_and_of_none(folder: Path, capsys: pytest.CaptureFixture) -> None:
    Path("outputs").mkdir()
    assert "no sweep below it" in refusal(capsys, "status")
    assert "no such folder" in refusal(capsys, "status", "nowhere")
    assert train("seed=0") == 0
    assert cli.main(["train", "-m", *TINY, "seed=0,1", "hydra.sweep.dir=outputs/other"]) == 0
    capsys.readouterr()
    assert cli.main(["status"]) == 0
    out = capsys.readouterr().out
    assert "outputs/sweeps/first" in out
    assert "outputs/other" in out
    assert "name one of them" in refusal(capsys, "status", "--json")


# --- workers and launchers -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "worker_test.py")
    command = [sys.executable, script, "--workers", "2", "--jobs", "9", "--kills", "4", "trainer.max_epochs=6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing twice, nothing lost" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "local", "ray"])
def test_launchers(launcher: str, folder: Path) -> None:
    plugin = {"joblib": "joblib", "local": "submitit", "ray": "ray"}[launcher]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    Path("fails").touch()
    options = {"joblib": ["hydra.launcher.n_jobs=2"], "ray": ["+hydra.launcher.ray.init.num_cpus=2"]}.get(launcher, [])
    words = ["-m", "sweep=first", *TINY, "seed=0,1,2", FAILING, f"hydra/launcher={launcher}", *options]
    path = os.pathsep.join(filter(None, [os.getcwd(), str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "vi_lab", "train", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    states = Jobs.found(folder).states()
    assert [state.name for state in states.values()] == ["completed", "failed", "completed"]
    assert train("seed=0,1,2", FAILING, name="alone") == 1
    for name in states:
        ours, theirs = (sweep / name / "metrics.json" for sweep in (folder, folder.parent / "alone"))
        assert not ours.exists() or ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_job_that_slurm_preempts_goes_on(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    queue(tmp_path / "queue")
    Path("preempted").write_text("1 3")
    words = ["-m", "sweep=first", *TINY, "trainer.max_steps=4", "seed=0,1", FAILING, "hydra/launcher=slurm"]
    path = os.pathsep.join(filter(None, [os.getcwd(), str(ROOT), os.environ.get("PYTHONPATH")]))
    commands = os.pathsep.join([str(tmp_path / "queue"), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "PATH": commands}
    command = [sys.executable, "-m", "vi_lab", "train", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "queue").glob("*.requeued")] == ["1000_1.requeued"]
    outcomes = Claims(folder).read()
    assert sorted(outcomes.values()) == [["completed"], ["interrupted", "interrupted", "completed"]]
    script, *_ = (folder / ".submitit").rglob("*.sh")
    assert "--signal=USR2@120" in script.read_text()
    assert train("trainer.max_steps=4", "seed=0,1", FAILING, name="alone") == 0
    for name in outcomes:
        ours, theirs = (sweep / name / "metrics.json" for sweep in (folder, folder.parent / "alone"))
        assert ours.read_bytes() == theirs.read_bytes()


class Begun:
    """Stands for a launcher: a job is complete as soon as it begins."""

    parallel = False

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.batches: list[list[str]] = []

    def __call__(self, overrides: list[list[str]], first: int) -> None:
        names = [word.partition("=")[2].strip("'") for words in overrides for word in words if "subdir=" in word]
        self.batches.append(names)
        for name in names:
            with self.jobs.claims.take(name, 1) as held:
                (self.jobs.folder / name).mkdir()
                Status(self.jobs.folder / name).write("completed")
                held.outcome = "completed"


def test_a_source_may_be_asked_before_each_job(tmp_path: Path) -> None:
    """A budget of time would otherwise be looked at once."""
    jobs = Jobs(tmp_path, [])
    tasks, asked = [Task([], name, number) for number, name in enumerate("abc")], []
    for one_by_one, batches, left in ((True, [["a"], ["b"]], 2), (False, [["c"]], 3)):
        launch = Begun(jobs)

        def source(left: int = left) -> list[Task]:
            asked.append(left)
            return tasks[:left]

        drain(source, jobs, launch, {}, 0, one_by_one)
        assert launch.batches == batches
    assert asked == [2, 2, 2, 3, 3]
