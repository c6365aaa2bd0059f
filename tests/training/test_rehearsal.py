"""What only constructors know is found before the first job starts and before there is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import ESTIMATORS, SMALL, composed, refusal, train
from vi_lab.config import check_overrides
from vi_lab.errors import UserError
from vi_lab.training.rehearsal import rehearse

REFUSED = {
    "estimator=vimco samples=1": "VIMCO needs samples=2 or more, got samples=1",
    "estimator=gaussian_dreg objective.kl=analytic": "needs objective.kl=path, got analytic",
    "likelihood=discretized_logistic": "data.binarization=dynamic: DiscretizedLogistic is .*use data.binarization=none",
    "network=resnet network.encoder.channels=[8,8,8]": "images of 28x28 cannot be halved 3 times",
    "data=arrays data.root=/nowhere/x.npz": "data.root=/nowhere/x.npz: wanted an .npz file",
    "network=conv network.decoder.channels=[2,2,2]": "cannot be halved 3 times",
    "optimizer=sgd +optimizer.nesterov=true": "optimizer: Nesterov momentum requires a momentum",
    "+optimizer.eps=-0.0 +optimizer.foreach=true": "`fused` and `foreach` cannot be `True` together",
    "lr_scheduler=plateau lr_scheduler.scheduler.factor=7": "lr_scheduler: Factor should be < 1.0",
    "callbacks=[early_stopping] callbacks.early_stopping.mode=up": "`mode` can be min, max, got up",
    "+trainer.gradient_clip_algorithm=foo": "trainer: `gradient_clip_algorithm` foo is invalid",
    "samples=1000000": "would need at least .* GiB, for .* 1,000,000 samples of 100 images; this machine has",
    "network.encoder.hidden=[100000,100000,100000]": "GiB, for 20,.* weights",
    "latent.variables=100000 latent.classes=100000": "GiB, for .* weights",
    "estimator=gumbel_rao estimator.inner_samples=1000000": "GiB, for",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_constructors_rule_is_found_by_the_constructor(overrides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vi_lab.training.rehearsal.memory", lambda: 64 * 2**30)
    monkeypatch.setattr("vi_lab.training.rehearsal._memory_of_gpus", lambda config: 0)
    with pytest.raises(UserError, match=REFUSED[overrides]):
        rehearse([composed(*overrides.split())])


def test_every_estimator_passes_and_makes_nothing() -> None:
    rehearse([composed(*SMALL, f"estimator={name}") for name in ESTIMATORS])
    assert torch.zeros(1).device.type == "cpu"


def test_jobs_that_differ_in_the_seed_are_rehearsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "vi_lab.training.rehearsal._rehearse", lambda config, values: seen.append(values["temperature"])
    )
    rehearse(check_overrides("train", ["seed=0,1,2", "temperature=0.5,1.0"], multirun=True))
    assert seen == [0.5, 1.0]


@pytest.mark.parametrize(
    "command",
    ["train -m estimator=rloo,gaussian samples=4,1", "train samples=1000000 accelerator=cpu",
     "train accelerator=cpu accelerator.devices=1000", "audit network=conv network.encoder.channels=[2,2,2]",
     "train data=digits data.validation=1437", "train data=digits trainer.limit_test_batches=0.5 accelerator=cpu"],
)  # fmt: skip
def test_no_folder_is_left(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(capsys, *command.split())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_jobs_whose_images_differ_are_each_rehearsed() -> None:
    """As networks and likelihoods that suit one of the data sets do not suit another."""
    overrides = ["network=conv", "network.encoder.channels=[4,4,4]", "network.decoder.channels=[4,4,4]"]
    rehearse(check_overrides("train", [*overrides, "data=cifar10"], multirun=True))
    with pytest.raises(UserError, match="images of 28x28 cannot be halved 3 times"):
        rehearse(check_overrides("train", [*overrides, "data=cifar10,mnist"], multirun=True))


def test_a_sweep_without_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"the sweep has 1,000,000,000 jobs, more than 10,000"):
        check_overrides("train", ["seed=range(0,1000000000)"], multirun=True)


def test_one_sample_of_a_bound_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(tmp_path, "estimator=gaussian_iwae", "samples=1", "trainer.max_epochs=1")
    assert "with one sample the importance-weighted bound is the ELBO" in " ".join(capsys.readouterr().out.split())
