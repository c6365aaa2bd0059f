"""Run folders read back: what a notebook sees."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vi_lab
from tests.support import SMALL, TIME_LIMIT, read_rows
from vi_lab import cli, find_runs, load_run
from vi_lab.errors import UserError, ViLabError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("sweep")
    for name in ("gaussian", "rloo"):
        assert cli.main(["train", *SMALL, f"estimator={name}", f"hydra.run.dir={sweep}/{name}"]) == 0
    return sweep


def test_what_a_notebook_sees(folder: Path) -> None:
    run = load_run(folder / "rloo")
    assert run.state == "completed"
    assert run.config.estimator.samples == 4
    assert list(run.metrics["epoch"]) == [1, 2]
    assert run.metrics["val/loss"].iloc[-1] == float(read_rows(folder / "rloo")[-1]["val/loss"])
    assert run.final["val/loss"] == run.metrics["val/loss"].iloc[-1]
    assert len(run.timing) == 2
    assert run.epoch_seconds > 0
    samples = run.sample(64)
    assert samples.shape == (64, 1, 28, 28)
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert torch.equal(samples, run.sample(64))
    assert not torch.equal(samples, run.sample(64, seed=1))
    x = torch.rand(5, 28, 28)
    assert run.encode(x).mean.shape == (5, 30, 10)
    assert run.encode(x[0]).mean.shape == (1, 30, 10)
    assert run.reconstruct(x[:, None]).shape == (5, 1, 28, 28)
    assert not run.reconstruct(x).requires_grad
    with pytest.raises(ValueError, match="wanted images"):
        run.encode(torch.rand(5, 27, 27))
    with pytest.raises(ValueError, match=r"wanted pixels in \[0, 1\], got 0 to 255"):
        run.encode(torch.tensor([0.0, 255.0]).expand(28, 14, 2).reshape(28, 28))
    assert [found.folder for found in find_runs(str(folder / "rloo"))] == [folder / "rloo"]
    assert find_runs(folder)[0].folder.parent == folder


def test_the_global_generator_is_left_alone(folder: Path) -> None:
    run = load_run(folder / "gaussian")
    x, state = torch.rand(2, 28, 28), torch.get_rng_state()
    run.sample(3)
    run.reconstruct(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_has_the_weights_of_the_run(folder: Path) -> None:
    """Its loss on the validation split is the recorded one."""
    run = load_run(folder / "rloo")
    run.datamodule.setup()
    model, total, images = run.model, 0.0, 0
    from vi_lab.seeding import EVALUATION, seed_noise

    with torch.no_grad():
        for index, (x, _) in enumerate(run.datamodule.loader("val")):
            seed_noise(torch.device("cpu"), run.config.seed, EVALUATION, index, 0)
            terms = model.objective.unrelaxed(model.posterior(x), model.latent.prior(), model.nats(x))
            total, images = total + terms.loss.double().sum().item(), images + len(x)
    assert total / images == pytest.approx(run.final["val/loss"], rel=1e-6)


def test_best_and_last(folder: Path) -> None:
    best, last = (load_run(folder / "rloo", weights=name).model.state_dict() for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in best)  # the last epoch was the best one here
    with pytest.raises(UserError, match="weights='first': wanted last or best"):
        load_run(folder / "rloo", weights="first")


def test_finding_runs(folder: Path) -> None:
    assert [run.folder.name for run in find_runs([folder])] == ["gaussian", "rloo"]
    assert [run.folder.name for run in find_runs([f"{folder}/rl*"])] == ["rloo"]
    assert len(find_runs([folder, folder / "rloo"])) == 2
    with pytest.raises(UserError, match="no such folder"):
        find_runs([folder / "nothing*"])
    with pytest.raises(UserError, match="no runs below"):
        find_runs([folder / "rloo" / "checkpoints"])


def test_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        load_run(tmp_path)
    shutil.copy(folder / "rloo" / "config_resolved.yaml", tmp_path)
    run = load_run(tmp_path)
    assert run.state == "unknown"
    assert run.final == {}
    assert math.isnan(run.epoch_seconds)
    for what in ("metrics", "model"):
        with pytest.raises(ViLabError):
            getattr(run, what)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, vi_lab; print([m for m in ('torch', 'pandas', 'hydra', 'lightning') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.stdout == "[]\n", done.stderr
    assert not hasattr(vi_lab, "nothing")
