"""Opening what somebody else made runs nothing of theirs: run folders, checkpoints and sweeps with planted payloads,
through every command that reads them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pickle
import shutil
import signal
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from rich.progress import Progress
from rich.table import Table

from tests.support import ESTIMATORS, SMALL, composed, config, run, store
from vi_lab import __version__, cli, find_runs, load_run
from vi_lab.commands.resume import resume_sweep
from vi_lab.console import Terminal, Words
from vi_lab.errors import ViLabError
from vi_lab.runs.lock import hold
from vi_lab.runs.run import Run
from vi_lab.runs.trust import check_targets, load_checkpoint, read_bytes, refuse_links, seal
from vi_lab.schema import CONFIG_DIR
from vi_lab.training.loggers import cut

COMMANDS = {
    "train": ["train", "resume=theirs"],
    "audit": ["audit", "run=theirs", "hydra.run.dir=lab"],
    "reproduce": ["reproduce", "theirs", "--output", "again"],
    "compare": ["compare", "theirs"],
    "evaluate": ["evaluate", "run=theirs", "evaluation.samples=2"],
}


class Payload:
    def __reduce__(self):
        return os.system, ("touch planted",)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed run, for tests to copy."""
    folder = tmp_path_factory.mktemp("runs") / "sound"
    run(config("trainer.max_epochs=1"), folder)
    (folder / "status.json").write_text('{"state": "completed"}')
    return folder


@pytest.fixture
def theirs(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sound completed run, for a test to spoil; nothing may touch `planted` nor change `outside`."""
    monkeypatch.chdir(tmp_path)
    folder = Path("theirs")
    shutil.copytree(sound, folder)
    Path("outside").write_text("mine")
    yield folder
    assert not Path("planted").exists()
    assert Path("outside").read_text() == "mine"


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(list(arguments)) in (1, 2)
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err + captured.out


def rewrite(folder: Path, **changes: object) -> None:
    values = OmegaConf.to_container(OmegaConf.load(folder / "config_resolved.yaml"))
    config = OmegaConf.create(values)
    for path, value in changes.items():
        OmegaConf.update(config, path.replace("__", ".", 1), value, force_add=True)
    (folder / "config_resolved.yaml").write_text(OmegaConf.to_yaml(config))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "target", ["os.system", "pty.spawn", "vi_lab.runs.environment.subprocess.run", "torch.hub.load"]
)
def test_targets(theirs: Path, command: str, target: str, capsys: pytest.CaptureFixture) -> None:
    rewrite(theirs, estimator__baseline={"_target_": target, "command": "touch planted"})
    assert "not a part of vi_lab" in refused(capsys, *COMMANDS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_yaml_that_builds_objects(theirs: Path, command: str, capsys: pytest.CaptureFixture) -> None:
    file = theirs / "config_resolved.yaml"
    file.write_text(file.read_text() + "extra: !!python/object/apply:os.system ['touch planted']\n")
    assert "could not determine a constructor" in refused(capsys, *COMMANDS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_yaml_that_grows(theirs: Path, command: str, capsys: pytest.CaptureFixture) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(30))
    (theirs / "config_resolved.yaml").write_text(bomb)
    assert "aliases are not accepted" in refused(capsys, *COMMANDS[command])


def test_interpolations_are_not_filled_in(theirs: Path, capsys: pytest.CaptureFixture) -> None:
    rewrite(theirs, name="${oc.env:HOME}")
    assert "wanted a plain value" in refused(capsys, *COMMANDS["train"])


@pytest.mark.parametrize("command", ["train", "audit", "evaluate"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "inside"])
def test_checkpoints_with_code(theirs: Path, command: str, kind: str, capsys: pytest.CaptureFixture) -> None:
    file = theirs / "checkpoints" / "last.ckpt"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Payload()))
    elif kind == "torch":
        store(Payload(), file)
    else:
        store({**load_checkpoint(file), "callbacks": {"Checkpoints": Payload()}}, file)
    for other in ("previous.ckpt", "best.ckpt"):
        (theirs / "checkpoints" / other).unlink(missing_ok=True)
    extra = ["trainer.max_epochs=2"] if command == "train" else []
    assert "damaged, or not a checkpoint" in refused(capsys, *COMMANDS[command], *extra)
    with pytest.raises(ViLabError, match="damaged, or not a checkpoint"):
        _ = load_run(theirs).model


def unsealed(file: Path) -> bytes:
    return file.read_bytes()[:-48]


def resealed(file: Path, content: bytes) -> None:
    file.unlink()
    with file.open("x+b") as sealed:
        sealed.write(content)
        seal(sealed)


@pytest.mark.parametrize("kind", ["compressed", "doubled", "longer", "protocol 4", "bytearray", "no archive"])
def test_archives_that_are_larger_than_they_are(theirs: Path, kind: str) -> None:
    file = theirs / "checkpoints" / "last.ckpt"
    whole = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(unsealed(file))) as old, zipfile.ZipFile(whole, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("data.pkl"):
                if kind == "longer":
                    content = content.replace(b"K\x10", b"K\x11")  # 16 hidden units are 17
                elif kind == "protocol 4":
                    content = pickle.dumps({"state_dict": {}}, protocol=4)
                elif kind == "bytearray":
                    content = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."
            how = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
            new.writestr(member.filename, content, how)
            if kind == "doubled" and member.filename.endswith("data.pkl"):
                new.writestr(member.filename.upper(), content)
    resealed(file, pickle.dumps({"state_dict": {}}) if kind == "no archive" else whole.getvalue())
    with pytest.raises(ViLabError, match="damaged, or not a checkpoint"):
        load_checkpoint(file)


def _spoil(checkpoint: dict, path: str, value: object) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("|")]
    node = checkpoint
    for part in parents:
        node = node[part]
    if value is Ellipsis:
        del node[last]
    else:
        node[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optimizer_states|0|state|0|exp_avg", torch.zeros(3)),
        ("optimizer_states|0|state|0|exp_avg", torch.zeros(16, 784, dtype=torch.int64)),
        ("optimizer_states|0|state|0|exp_avg", torch.zeros(1).expand(16, 784)),
        ("optimizer_states|0|state|0|exp_avg", torch.zeros(16, 784).to_sparse()),
        ("optimizer_states|0|state|0|exp_avg", torch.zeros(16, 784, device="meta")),
        ("optimizer_states|0|state|0|exp_avg", torch.zeros(16, 784, dtype=torch.complex64)),
        ("optimizer_states|0|state|0|step", 5),
        ("optimizer_states|0|state|99", {}),
        ("optimizer_states|0|state|0|exp_avg_sq", ...),
        ("optimizer_states|0|param_groups|0|amsgrad", True),
        ("optimizer_states|0|param_groups|0|lr", "fast"),
        ("optimizer_states|0|param_groups|0|lr", float("nan")),
        ("optimizer_states|0|param_groups|0|params", [0]),
        ("optimizer_states", []),
        ("state_dict|encoder.1.weight", "weights"),
        ("state_dict|encoder.1.weight", ...),
        ("loops|fit_loop", {}),
        ("loops|fit_loop|epoch_progress|current|processed", -1),
        ("loops|fit_loop|epoch_progress|current|processed", 10**30),
        ("loops|fit_loop|epoch_progress|current|processed", 7),
        ("loops|fit_loop|state_dict|combined_loader", [{"next_batch": "x"}]),
        ("callbacks|Recorder|rows", [{"epoch": 1, "step": 12, "\x1b[2J[bold]": 1.0}]),
        ("callbacks|Recorder|rows", [{"epoch": 1, "step": 12, "train/loss": "\x1b[2J"}]),
        ("callbacks|Recorder|rows", "rows"),
        ("callbacks|Checkpoints|events", ...),
        ("callbacks|Checkpoints|best", None),
        ("means|epoch|names", [1]),
        ("means|window|total", torch.zeros(99)),
        ("epoch", "1"),
        ("global_step", ...),
        ("pytorch-lightning_version", "new"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_no_run_of_this_config_writes(
    theirs: Path, path: str, value: object, capsys: pytest.CaptureFixture
) -> None:
    file = theirs / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(io.BytesIO(unsealed(file)), weights_only=True)
    _spoil(checkpoint, path, value)
    store(checkpoint, file)
    (theirs / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    assert "checkpoint" in (text := refused(capsys, *COMMANDS["train"], "trainer.max_epochs=2"))
    assert "\x1b" not in text


def test_weights_in_float64_are_not_rounded(tmp_path: Path) -> None:
    run(config("trainer.max_epochs=1", "trainer.precision=64-true"), tmp_path / "run")
    opened = load_run(tmp_path / "run")
    stored = load_checkpoint(opened.checkpoint())["state_dict"]
    assert all(torch.equal(stored[name], weights) for name, weights in opened.model.state_dict().items())


@pytest.mark.parametrize(
    "swept",
    [
        ["seed=range(0,100000000)"],
        [f"+trainer.a{i}=range(0,10)" for i in range(12)],
        ["optimizer.lr=range(0,1e12,0.1)"],
        ["optimizer.lr=range(0,1,0.0)"],
        ["seed=shuffle(range(0,100000000))"],
        ["seed=int(range(0.0,1e9))"],
    ],
)
def test_sweeps_without_end(tmp_path: Path, swept: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs").mkdir()
    sweep = OmegaConf.create(SWEEP)
    sweep.hydra.overrides.task = swept
    Path("theirs/multirun.yaml").write_text(OmegaConf.to_yaml(sweep))
    for arguments in (["train", "resume=theirs"], ["train", "-m", *swept]):
        text = refused(capsys, *arguments)
        assert "more than 10,000" in text or "wanted range(" in text


def test_nothing_is_written_through_links(theirs: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("figures", "hparams.yaml", ".lock", "checkpoints/best.ckpt", "train.log"):
        link = theirs / name
        before = link.read_bytes() if link.is_file() else None
        link.unlink(missing_ok=True)
        link.symlink_to(Path("outside").resolve())
        for arguments in (["train", "resume=theirs", "trainer.max_epochs=2"], COMMANDS["evaluate"]):
            assert "link" in refused(capsys, *arguments)
        link.unlink()
        if name == "train.log":  # nor through one within the folder
            link.symlink_to("metrics.csv")
            assert "a link or a folder in place of a file" in refused(capsys, *arguments)
            link.unlink()
        if before is not None:
            link.write_bytes(before)
    Path("elsewhere").mkdir()
    (theirs / "checkpoints").rename("elsewhere/checkpoints")
    (theirs / "checkpoints").symlink_to(Path("elsewhere/checkpoints").resolve())
    assert "leads out of the run folder" in refused(capsys, "train", "resume=theirs", "trainer.max_epochs=2")
    with pytest.raises(ViLabError, match="leads out of the run folder"):
        _ = load_run(theirs).model


def test_nothing_is_read_through_links(theirs: Path, capsys: pytest.CaptureFixture) -> None:
    (theirs / "config_resolved.yaml").rename("config.yaml")
    (theirs / "config_resolved.yaml").symlink_to(Path("config.yaml").resolve())
    assert "leads out of the run folder" in refused(capsys, "train", "resume=theirs")
    (theirs / ".lock").unlink(missing_ok=True)
    (theirs / ".lock").symlink_to(Path("outside").resolve())
    with pytest.raises(ViLabError, match="a link"), hold(theirs):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_not_waited_for(theirs: Path) -> None:
    def late(*_: object) -> None:
        pytest.fail("waits for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    try:
        for name in ("config_resolved.yaml", "environment.json", "status.json", "metrics.json", "metrics.csv",
                     "timing.csv", "checkpoints/last.ckpt"):  # fmt: skip
            file, aside = theirs / name, Path("aside")
            file.rename(aside)
            os.mkfifo(file)
            signal.alarm(20)
            for read in (lambda run: run.state, lambda run: run.config, lambda run: run.environment,
                         lambda run: run.final, lambda run: run.metrics, lambda run: run.timing,
                         lambda run: run.epoch_seconds, lambda run: run.model):  # fmt: skip
                with contextlib.suppress(ViLabError):
                    read(Run(theirs))
            signal.alarm(0)
            file.unlink()
            aside.rename(file)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ValueError, match="more than 3 bytes"):
        read_bytes(theirs / "metrics.csv", 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", [".lock", "metrics.csv", "events.out.tfevents.1", "hparams.yaml"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "hard link"])
def test_nothing_is_written_into_what_is_no_file_of_the_folder(
    theirs: Path, name: str, kind: str, capsys: pytest.CaptureFixture
) -> None:
    file = theirs / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(file))
    else:
        os.link("outside", file)
    for arguments in (["train", "resume=theirs", "trainer.max_epochs=2"], COMMANDS["evaluate"]):
        assert "link" in (text := refused(capsys, *arguments)) or "neither a file nor a folder" in text
    with pytest.raises(ViLabError, match=r"it is not used") if name == ".lock" else contextlib.nullcontext():
        cut(theirs, {name: 2})
        with hold(theirs):
            pass


def test_a_circle_of_links(theirs: Path, capsys: pytest.CaptureFixture) -> None:
    (theirs / "metrics.csv").unlink()
    (theirs / "metrics.csv").symlink_to("metrics.csv")
    assert load_run(theirs).final
    with pytest.raises(ViLabError, match="cannot be read"):
        _ = load_run(theirs).metrics


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: 1\n", "stand there twice"),
        ("? [1, 2]\n: 3\n", "no text"),
        ("extra: 2020-01-01\n", "of the kind date"),
        ("extra: " + "9" * 4000 + "\n", "more than 64 bits"),
        ("extra: " + "[" * 200 + "]" * 200 + "\n", "nested"),
        ("extra: '" + "x" * 300_000 + "'\n", "more than 262,144 bytes"),
        ("extra: \0\n", "cannot be read"),
    ],
)
def test_yaml_that_is_none_of_ours(theirs: Path, text: str, reason: str, capsys: pytest.CaptureFixture) -> None:
    file = theirs / "config_resolved.yaml"
    file.write_text(file.read_text() + text)
    assert reason in refused(capsys, *COMMANDS["train"])


@pytest.mark.parametrize("text", ['{"state": NaN}', '{"state": ' + "9" * 4000 + "}", '{"state":' * 99 + "1" + "}" * 99])
def test_json_that_is_none_of_ours(theirs: Path, text: str) -> None:
    (theirs / "status.json").write_text(text)
    assert Run(theirs).status == {}


@pytest.mark.parametrize("name", ["../../planted", "a/b", "..", "\x1b[2Jname"])
def test_names_that_lead_elsewhere(theirs: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    rewrite(theirs, name=name)
    assert "name=" in refused(capsys, "reproduce", "theirs")
    assert "name=" in refused(capsys, "train", "resume=theirs")
    assert not (theirs.parent / "outputs").exists()


SWEEP = {
    "hydra": {
        "overrides": {"task": ["seed=0,1"], "hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir=theirs"]},
        "launcher": {"_target_": "os.system"},
    }
}


@pytest.mark.parametrize(
    ("task", "own"),
    [
        (["+latent.x._target_=os.system"], []),
        (["hydra.launcher._target_=os.system"], []),
        ([], ["hydra.launcher._target_=os.system"]),
        ([], ["hydra/launcher=theirs"]),
        ([], ["hydra.sweep.subdir=../../elsewhere"]),
        ([], ["hydra.sweep.subdir=/elsewhere"]),
        ([], ["hydra.callbacks.x._target_=os.system"]),
        ([], ["hydra.job_logging.handlers.x=1"]),
        (["name=../../elsewhere"], []),
        (["logger.tensorboard.save_dir=/tmp/elsewhere"], []),
        (["logger=mlflow"], []),
    ],
)
def test_sweeps(
    tmp_path: Path, task: list[str], own: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = OmegaConf.create(SWEEP)
    sweep.hydra.overrides.task += [*SMALL, *task]
    sweep.hydra.overrides.hydra += own
    Path("theirs").mkdir()
    Path("theirs/multirun.yaml").write_text(OmegaConf.to_yaml(sweep))
    refused(capsys, "train", "resume=theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    assert [path.name for path in Path("theirs").iterdir()] == ["multirun.yaml"]


@pytest.mark.parametrize(
    "subdir",
    [
        "../${hydra.job.num}",
        "/elsewhere/${hydra.job.num}",
        "${oc.env:HOME}/${hydra.job.num}",
        "${hydra.runtime.cwd}/${hydra.job.num}",
        "${paths.data_dir}/${hydra.job.num}",
        "${numbered:${hydra.job.num},[0,0]}",
        "${numbered:${hydra.job.num},[0,,1]}",
        "${notes}",
        "${lr_scheduler.monitor}/${hydra.job.num}",
        "${numbered:${hydra.job.num},[0,1,2]}",
        None,
    ],
)
def test_a_sweep_that_is_given_more(
    tmp_path: Path, subdir: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = OmegaConf.create({"hydra": {**SWEEP["hydra"], "sweep": {"subdir": subdir}}, "seed": 0})
    sweep.hydra.overrides.task += [*SMALL, "notes=../elsewhere", f"+lr_scheduler.monitor={tmp_path}/elsewhere"]
    Path("theirs").mkdir()
    Path("theirs/multirun.yaml").write_text(OmegaConf.to_yaml(sweep))
    refused(capsys, "train", "resume=theirs", "seed=0,1,2")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    assert [path.name for path in Path("theirs").iterdir()] == ["multirun.yaml"]


@pytest.mark.parametrize("subdir", ["${notes}", "a${notes}", "${hydra.job.num}-${notes}"])
def test_a_sweep_stays_in_its_folder(
    tmp_path: Path, subdir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for notes in ("/tmp/elsewhere", "../../elsewhere"):
        sweep = OmegaConf.create(SWEEP)
        sweep.hydra.overrides.task += [*SMALL, f"notes={notes}"]
        sweep.hydra.overrides.hydra.append(f"hydra.sweep.subdir='{subdir}'")
        Path("theirs").mkdir(exist_ok=True)
        Path("theirs/multirun.yaml").write_text(OmegaConf.to_yaml(sweep))
        assert "names the folders of this sweep's jobs" in refused(capsys, "train", "resume=theirs")
        assert [path.name for path in Path("theirs").iterdir()] == ["multirun.yaml"]


def test_a_sweep_does_not_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = OmegaConf.create(SWEEP)
    sweep.hydra.overrides.task += [*SMALL, "data.download=true"]
    Path("theirs").mkdir()
    Path("theirs/multirun.yaml").write_text(OmegaConf.to_yaml(sweep))
    assert "data.download=true" not in resume_sweep(Path("theirs"), [])
    assert "data.download=false" in resume_sweep(Path("theirs"), [])
    assert "data.download=true" in resume_sweep(Path("theirs"), ["data.download=true"])  # at the user's own word


@pytest.mark.parametrize("command", [["train", "resume=theirs", "trainer.max_epochs=2"], ["reproduce", "theirs"]])
@pytest.mark.parametrize(
    "logger",
    [
        {"tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "elsewhere"}},
        {"csv": {"_target_": "vi_lab.training.loggers.CSVLogger", "save_dir": "elsewhere"}},
        {"mlflow": {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://127.0.0.1:9"}},
        {"mine": {"_target_": "lightning.pytorch.loggers.WandbLogger", "save_dir": "elsewhere"}},
    ],
    ids=lambda logger: next(iter(logger)),
)
def test_loggers_that_write_elsewhere(
    theirs: Path, command: list[str], logger: dict, capsys: pytest.CaptureFixture
) -> None:
    rewrite(theirs, logger=logger)
    name = next(iter(logger))
    assert f"logger.{name} writes or sends results to where this folder says" in refused(capsys, *command)
    assert not Path("elsewhere").exists()
    assert cli.main(["compare", "theirs"]) == 0  # reading it is no harm
    if command[0] == "train":
        assert cli.main([*command, "logger=tensorboard"]) == 0


def test_a_config_of_another_version(theirs: Path, capsys: pytest.CaptureFixture) -> None:
    sound = (theirs / "config_resolved.yaml").read_text()
    values = OmegaConf.create(sound)
    del values["evaluation"]
    (theirs / "config_resolved.yaml").write_text(OmegaConf.to_yaml(values))
    text = refused(capsys, *COMMANDS["train"])
    assert f"made by another version of vi_lab ({__version__}): it lacks evaluation" in text
    (theirs / "config_resolved.yaml").write_text(sound + "color: blue\n")
    assert "color is not known here" in refused(capsys, *COMMANDS["audit"])
    (theirs / "config_resolved.yaml").write_text(sound.replace("batch_size: 100", "batch_size: -1"))
    assert "data.batch_size=-1: wanted" in refused(capsys, *COMMANDS["reproduce"])


@pytest.mark.slow
def test_every_shipped_config_is_accepted(tmp_path: Path) -> None:
    for kind in ("estimator", "experiment", "likelihood", "network", "optimizer", "schedule", "objective"):
        for path in sorted((CONFIG_DIR / kind).glob("*.yaml")):
            choice = "concrete" if path.stem == "relaxed" else None
            arguments = [f"estimator={choice}"] if choice else [f"{kind}={path.stem}"]
            folder = tmp_path / kind / path.stem
            folder.mkdir(parents=True)
            values = composed(*arguments)
            (folder / "config_resolved.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
            assert load_run(folder).config.seed == 0
    assert len(find_runs([tmp_path])) > 40


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], id="basic"),
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], id="joblib", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_compares_what_it_has_run(
    tmp_path: Path, launcher: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With classes of the user's own in some of its jobs; another command trusts its folder no more than any other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    source = "from vi_lab.estimators.reinforce import Reinforce\n\n\nclass Mine(Reinforce):\n    pass\n"
    Path("sweptlib.py").write_text(source)
    Path("conf/estimator").mkdir(parents=True)
    Path("conf/estimator/mine.yaml").write_text("defaults: [reinforce]\n_target_: sweptlib.Mine\n")
    small = [*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "evaluation.samples=null"]
    sweep = ["-m", "--config-dir", "conf", "estimator=mine,rloo", *small, *launcher, "hydra.sweep.dir=sweep"]
    assert cli.main(["train", *sweep]) == 0
    with Path("sweep/comparison/comparison_runs.csv").open() as file:
        assert {row["group"] for row in csv.DictReader(file)} == {"mine", "rloo"}
    capsys.readouterr()
    assert cli.main(["compare", "sweep"]) == 0
    assert "set VI_LAB_TRUST=sweptlib" in capsys.readouterr().out


def test_classes_of_the_users_own(theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    Path("minelib.py").write_text(
        "from vi_lab.estimators import GumbelSoftmax\n\nclass Mine(GumbelSoftmax):\n    pass\n"
    )
    monkeypatch.syspath_prepend(".")
    rewrite(theirs, estimator___target_="minelib.Mine")
    assert "set VI_LAB_TRUST=minelib" in refused(capsys, *COMMANDS["reproduce"])
    monkeypatch.setenv("VI_LAB_TRUST", "other,minelib")
    assert cli.main(COMMANDS["reproduce"]) == 0


HOSTILE = [
    "os.system",
    "vi_lab.runs.environment.subprocess.run",
    "builtins.exec",
    "torch.hub.load",
    "vi_lab.build.hydra.main",
]


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("key", ["latent", "estimator", "hidden"])
def test_a_strangers_run_folder_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, target: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    values = composed(*SMALL, "latent=2x10")
    if key == "hidden":
        values["network"]["encoder"]["hidden"] = [{"_target_": target, "command": "touch planted"}]
    else:
        values[key]["_target_"] = target
    Path("theirs").mkdir()
    Path("theirs/config_resolved.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    assert cli.main(["audit", "run=theirs", "hydra.run.dir=lab"]) == 2
    assert "not a part of vi_lab" in capsys.readouterr().err
    assert not Path("planted").exists()


def test_every_shipped_target_is_trusted() -> None:
    for name in ESTIMATORS:
        check_targets(composed(f"estimator={name}"), name)


STEERING = "\x1b[2J\u202e[/bold]:smile:"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_strangers_words_are_shown_as_escapes(terminal: bool) -> None:
    screen = io.StringIO()
    console = Terminal(file=screen, force_terminal=terminal, width=200)
    table = Table(STEERING, title=STEERING)
    table.add_row(STEERING)
    console.print(table)
    console.say(STEERING)
    with Progress(Words("{task.description}{task.fields[x]}"), console=console) as progress:
        progress.add_task(STEERING, x=STEERING)
    shown = screen.getvalue()
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert shown.count(r"\x1b[2J\u202e[/bold]:smile:") >= 5


def test_names_and_values_of_metrics(theirs: Path, capsys: pytest.CaptureFixture) -> None:
    (theirs / "metrics.json").write_text(json.dumps({STEERING: 1.0, "test/loss": 1.5, "val/loss": 1}))
    for command in ("reproduce", "compare"):
        assert cli.main(COMMANDS[command]) in (0, 1)
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\u202e" not in captured.out + captured.err


def test_what_a_kill_leaves_of_the_best_checkpoint_is_no_strangers_link(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"x")
    os.link(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / ".best.ckpt.c7dd09469410847c.tmp")
    refuse_links(tmp_path)
    os.link(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "metrics.csv")
    with pytest.raises(ViLabError, match=r"metrics\.csv: a hard link"):
        refuse_links(tmp_path)
