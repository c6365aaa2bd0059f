"""`stack=N`: each run of a stack has the folder that it would have alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import SMALL, TIME_LIMIT, composed, read_rows, refusal
from vi_lab import cli
from vi_lab.commands import train
from vi_lab.errors import Interrupted, UserError
from vi_lab.models import VAE
from vi_lab.runs.run import Run
from vi_lab.runs.trust import load_checkpoint
from vi_lab.training.rehearsal import rehearse
from vi_lab.training.sweep import Stacks

KINDS = ("gaussian", "gumbel_softmax", "nvil", "vimco")
SEEDS = ("0", "1", "2")


def sweep(folder: Path, *overrides: str, code: int = 0) -> list[Path]:
    """The run folders of a small sweep over seeds."""
    assert cli.main(["train", *of_sweep(folder, *overrides)]) == code
    return folders(folder)


def of_sweep(folder: Path, *overrides: str) -> list[str]:
    return ["-m", *SMALL, f"seed={','.join(SEEDS)}", f"hydra.sweep.dir={folder}", *overrides]


def folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/status.json"))


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def assert_near(folder: Path, other: Path) -> None:
    """Two runs that round otherwise: then a sample falls otherwise now and then, and the runs part."""
    ours, own = metrics(folder), metrics(other)
    assert ours.keys() == own.keys()
    for name in ("train/loss", "test/loss"):
        assert ours[name] == pytest.approx(own[name], rel=3e-3)


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two checkpoints differ, but for wall times and the names of TensorBoard's files."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if path.endswith(("/timing", "/Recorder", "/Checkpoints")):
            a, b = ({k: v for k, v in one.items() if k not in ("timing", "elapsed", "events")} for one in (a, b))
        assert a.keys() == b.keys(), path
        return [found for key in a for found in differing(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        return [
            found for index, pair in enumerate(zip(a, b, strict=True)) for found in differing(*pair, f"{path}/{index}")
        ]
    return [] if a == b else [path]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gumbel_softmax", "nvil"])  # relaxed, and with state of its own
def test_a_run_of_a_stack_is_the_run_alone(kind: str, tmp_path: Path) -> None:
    """Within rounding the ordinary run, to the last bit its stack of one; with all files and the same checkpoint.

    In processes of their own, since the order in which products are summed is settled at the first one; of odd sizes,
    so that no two rows of the stack lie alike in memory.
    """
    odd = ["network.encoder.hidden=[13]", "network.decoder.hidden=[11]", "data.batch_size=99"]
    options = [f"estimator={kind}", *odd, "data.test_every_epoch=true", "checkpoint.every_n_steps=5"]
    for arguments in (
        of_sweep(tmp_path / "together", *options, "stack=2"),  # a stack of two, and one of one
        of_sweep(tmp_path / "alone", *options),
        [*SMALL, *options, "seed=1", "stack=2", f"hydra.run.dir={tmp_path / 'one'}"],
    ):
        subprocess.run([sys.executable, "-m", "vi_lab", "train", *arguments], check=True, timeout=TIME_LIMIT)
    together, alone = folders(tmp_path / "together"), folders(tmp_path / "alone")
    assert [run.state for run in map(Run, together)] == ["completed"] * 3
    assert read_rows(together[1]) == read_rows(tmp_path / "one")
    assert metrics(together[1]) == metrics(tmp_path / "one")
    last = "checkpoints/last.ckpt"
    assert not differing(*(load_checkpoint(folder / last) for folder in (together[1], tmp_path / "one")))
    for ours, own in zip(together, alone, strict=True):
        assert {path.name for path in ours.iterdir() if "tfevents" not in path.name} == {
            path.name for path in own.iterdir() if "tfevents" not in path.name
        }
        assert_near(ours, own)
        assert (ours / last).stat().st_size == pytest.approx((own / last).stat().st_size, rel=0.05)
        rounded = (
            "/state_dict",
            "/optimizer_states",
            "/callbacks/Recorder/rows",
            "/means",
            "/callbacks/Checkpoints/best",
        )
        differ = differing(*(load_checkpoint(folder / last) for folder in (ours, own)))
        assert not [path for path in differ if not path.startswith(rounded)]


def test_stacks_are_resumed_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that were stopped at different steps go on as stacks of those that stand at the same one."""
    options = ["estimator=gumbel_softmax", "schedule=exponential", "stack=3", "checkpoint.every_n_steps=3"]
    whole = sweep(tmp_path / "whole", *options)

    class Crash(Exception):
        pass

    real, calls = torch.save, iter(range(100))

    def save(*arguments: Any, **named: Any) -> None:
        if next(calls) in (4, 7):  # the second checkpoint of the second run, the third of the third
            raise Crash
        real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        stopped = sweep(tmp_path / "stopped", *options, code=1)
    assert [run.state for run in map(Run, stopped)] == ["completed", "failed", "failed"]
    assert [load_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] for folder in stopped] == [24, 3, 6]
    assert cli.main(["train", f"resume={tmp_path / 'stopped'}"]) == 0
    for own, other in zip(whole, stopped, strict=True):
        assert read_rows(own) == read_rows(other)
        assert metrics(own) == metrics(other)
        assert not differing(*(load_checkpoint(folder / "checkpoints/last.ckpt") for folder in (own, other)))


def test_one_run_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole = sweep(tmp_path / "whole", "stack=3")
    fill = VAE.configure_optimizers

    def spoil(model: VAE) -> Any:
        if model.seed == 1:
            with torch.no_grad():
                next(model.parameters()).fill_(torch.nan)
        return fill(model)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(VAE, "configure_optimizers", spoil)
        spoiled = sweep(tmp_path / "one", "stack=3", code=1)
    assert [run.state for run in map(Run, spoiled)] == ["completed", "failed", "completed"]
    (complaint,) = [line for line in capsys.readouterr().err.splitlines() if "as said above" not in line]
    assert "job 2 of 3" in complaint
    assert "failed: the loss became nan at step 1 (epoch 1, " in complaint
    for index in (0, 2):
        assert metrics(whole[index]) == metrics(spoiled[index])


def test_which_jobs_make_a_stack() -> None:
    """Those that differ in numbers only, in groups of at most N, in the order of the sweep."""
    jobs = [
        composed("data=digits", f"estimator={name}", f"seed={seed}", f"optimizer.lr={rate}", "stack=3")
        for seed in (0, 1)
        for name in ("rloo", "gumbel_softmax")
        for rate in (1e-3, 1e-2)
    ]
    members = Stacks(jobs).members
    assert sorted(map(tuple, {id(stack): stack for stack in members.values()}.values())) == [
        (0, 1, 4), (2, 3, 6), (5,), (7,)]  # fmt: skip
    assert not Stacks([{**jobs[0], "stack": None}]).members


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer=sgd", "torch.optim.SGD, but Adam and AdamW"),
        ("lr_scheduler=cosine", "a lr_scheduler"),
        ("estimator=rebar", "REBAR, which takes a derivative within its step"),
        ("compile=true", "compile=true"),
        ("callbacks=[early_stopping]", "callbacks"),
        ("trainer.gradient_clip_val=1.0", "a gradient_clip_val"),
        ("+trainer.max_time='00:00:00:10'", "a max_time"),
        ("trainer.precision=bf16-mixed", "trainer.precision=bf16-mixed, but 32-true and 64-true"),
    ],
)
def test_what_a_stack_does_not_do(override: str, named: str) -> None:
    with pytest.raises(UserError, match=f"stack=2: runs of a stack cannot have {named}; leave stack= out"):
        rehearse([composed("data=digits", "stack=2", override)])


def test_whoever_made_the_latent_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of the user's own are not made for a trial, but the config is read."""
    values = composed("data=digits", "stack=2", "optimizer=sgd")
    values["latent"]["_target_"] = "mine.Latent"
    with pytest.raises(UserError, match=r"stack=2: runs of a stack cannot have torch\.optim\.SGD"):
        rehearse([values])


def test_a_file_that_cannot_be_written_ends_one_run(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Another one speaks from then on, and its end is said and recorded at once."""
    whole = sweep(tmp_path / "whole", "stack=2")
    (tmp_path / "one/0-gumbel_softmax-s0/metrics.csv/in the way").mkdir(parents=True)
    capfd.readouterr()
    found = sweep(tmp_path / "one", "stack=2", code=1)
    assert [run.state for run in map(Run, found)] == ["failed", "completed", "completed"]
    assert "Is a directory" in (found[0] / "train.log").read_text()
    assert "job 1 of 3 (0-gumbel_softmax-s0) failed: [Errno 21] Is a directory" in capfd.readouterr().err
    assert metrics(whole[1]) == metrics(found[1])


def test_audits_of_a_run_do_not_depend_on_its_company(tmp_path: Path) -> None:
    audits = ["latent=2x10", "logger=csv", "audit.every_n_steps=8", "audit.samples=40", "trainer.max_epochs=1"]
    together = sweep(tmp_path / "together", *audits, "stack=3")
    one = tmp_path / "one"
    assert cli.main(["train", *SMALL, *audits, "seed=2", "stack=3", f"hydra.run.dir={one}"]) == 0

    def measured(folder: Path) -> list[str]:
        return [line for line in (folder / "scalars.csv").read_text().splitlines() if "audit/" in line]

    assert measured(together[2]) == measured(one) != []


def test_a_signal_before_the_last_job_is_known_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = train.time_left

    def interrupted(folder: Path, number: int) -> str:
        if number == 2:
            raise Interrupted(2)
        return real(folder, number)

    monkeypatch.setattr(train, "time_left", interrupted)
    assert sweep(tmp_path, "stack=3", code=130) == []
    assert "as one stack" not in capsys.readouterr().out


def test_a_stack_needs_one_process(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    said = refusal(capsys, "train", "-m", "data=digits", "seed=0,1", "stack=2", "hydra/launcher=joblib")
    assert "stack= trains jobs in one process; leave hydra/launcher= or stack= out" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["estimator=gumbel_softmax", "estimator.learn_temperature=true", "figures=true", "figures_every_n_epochs=1"],
        ["estimator=vq", "trainer.precision=64-true", "optimizer=adamw"],
        ["estimator=disarm", "data.validation=0", "data.drop_last=false", "trainer.accumulate_grad_batches=2"],
        ["estimator=straight_through", "audit.every_n_steps=7", "logger=[tensorboard,csv]", "trainer.max_steps=17"],
    ],
)
def test_whatever_else_a_run_does(options: list[str], tmp_path: Path) -> None:
    """A stack of all against the runs alone, within rounding, and repeated from a folder to the last bit."""
    together = sweep(tmp_path / "together", *options, "stack=8")
    for ours, own in zip(together, sweep(tmp_path / "alone", *options), strict=True):
        names = [
            {path.relative_to(folder) for path in folder.rglob("*") if "tfevents" not in path.name}
            for folder in (ours, own)
        ]
        assert names[0] == names[1]
        assert_near(ours, own)
    assert cli.main(["reproduce", str(together[2]), "--output", str(tmp_path / "again")]) == 0
