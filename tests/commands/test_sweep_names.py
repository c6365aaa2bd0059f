"""The folders of a sweep's jobs say what was swept, by every launcher."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import ListConfig

from tests.support import SMALL
from vi_lab import cli
from vi_lab.commands.launch import _swept_in_vain
from vi_lab.config import check_overrides, swept_subdir, swept_text

TINY = [*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "evaluation.samples=null"]


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], id="basic", marks=pytest.mark.slow),
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], id="joblib", marks=pytest.mark.slow),
    ],
)
def test_job_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    swept = ["estimator=gumbel_softmax,reinmax", "network.encoder.hidden=[8],[4,4]"]
    swept += [override for override in TINY if "encoder" not in override]
    assert cli.main(["train", "-m", *swept, *launcher, "hydra.sweep.dir=sweep"]) == 0
    names = sorted(folder.name for folder in Path("sweep").glob("*-s0"))
    wanted = [
        f"{estimator}-hidden={hidden}-s0" for estimator in ("gumbel_softmax", "reinmax") for hidden in ("8", "4,4")
    ]
    assert [name.partition("-")[2] for name in sorted(names, key=lambda name: int(name.split("-")[0]))] == wanted
    # started again in its folder it finds its jobs, completed
    assert cli.main(["train", "resume=sweep"]) == 0
    assert sorted(folder.name for folder in Path("sweep").glob("*-s0")) == names


@pytest.mark.slow
def test_two_parallel_sweeps_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        monkeypatch.chdir(place)
        assert cli.main(["train", "-m", "seed=0,1", *TINY, *parallel]) == 0
        assert len([*place.glob("sweep/*/metrics.json")]) == 2


def test_nothing_but_estimator_and_seed_needs_no_more() -> None:
    assert swept_subdir(["estimator=gaussian,rloo", "seed=0,1", "temperature=0.5"]) is None
    assert swept_subdir(["temperature=0.5,1", "hydra.sweep.subdir=mine"]) is None


def test_names_are_short_and_safe() -> None:
    def name(overrides: list[str], *keys: str) -> str:
        return swept_text(ListConfig(overrides), ListConfig(list(keys)))

    assert name(["data.root=/a/../b c", "seed=1"], "data.root") == "root=_a_.._b_c"
    both = ["network.encoder.hidden=[1]", "network.decoder.hidden=[2]"]
    assert name(both, "network.encoder.hidden", "network.decoder.hidden") == (
        "network.encoder.hidden=1-network.decoder.hidden=2"
    )
    long = [name([f"name={'x' * 200}{i}"], "name") for i in (0, 1)]
    assert all(len(text) <= 80 for text in long)
    assert long[0] != long[1]
    assert name(["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches") == "accumulate_grad_batches=2"


@pytest.mark.parametrize(
    ("overrides", "without"),
    [
        (["estimator=gaussian", "temperature=0.5,1"], "gaussian; jobs that differ in temperature only are the same"),
        (
            ["estimator=gumbel_softmax,rloo,straight_through", "schedule=constant,exponential"],
            "rloo, straight_through;",
        ),
        (["estimator=gumbel_softmax,concrete", "temperature=0.5,1"], ""),
        (["estimator=gaussian,rloo", "temperature=0.5"], ""),
    ],
)
def test_a_sweep_over_temperatures_names_estimators_that_have_none(overrides: list[str], without: str) -> None:
    note = _swept_in_vain(check_overrides("train", overrides, multirun=True), overrides)
    assert note.startswith(f"note: without a temperature: {without}") if without else note == ""
