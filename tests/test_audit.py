"""The gradient lab: its statistics against known bias and noise, its gradients against autograd, its command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import run
from vi_lab import audit, cli
from vi_lab.audit import Bench, Moments
from vi_lab.build import build
from vi_lab.config import check_overrides
from vi_lab.distributions import number_of_states
from vi_lab.estimators import RLOO, Exact, MovingAverage, Pathwise, Reinforce, StraightThrough
from vi_lab.objectives import ELBO
from vi_lab.runs.trust import check_targets
from vi_lab.schema import CONFIG_DIR

SMALL = ["data=digits", "network.encoder.hidden=[16]", "network.decoder.hidden=[16]", "threads=1", "accelerator=cpu"]


def bench(*overrides: str, images: int = 4) -> Bench:
    """A fresh small model in float64, its posterior sharpened so that estimators differ."""
    config = OmegaConf.create(check_overrides("train", [*SMALL, *overrides], False)[0])
    datamodule, model = build(config)
    datamodule.setup()
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return Bench(model, next(iter(datamodule.train_dataloader()))[0][:images].double())


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_moments_find_a_known_bias_in_noise(bias: float) -> None:
    torch.manual_seed(0)
    exact = torch.full((50,), 2.0, dtype=torch.float64)
    moments = Moments(exact, 2000)
    for _ in range(20):
        moments.add(exact + bias + 3 * torch.randn(100, 50, dtype=torch.float64))
    measured = moments.measure()
    relative = bias / 2.0
    assert measured.relative_bias_low <= relative <= measured.relative_bias_high
    assert measured.relative_bias_high - measured.relative_bias_low < 0.1 + 0.2 * (bias == 0)
    assert measured.variance == pytest.approx(9 * 50, rel=0.02)
    assert measured.mean_squared_error == pytest.approx((9 + bias**2) * 50, rel=0.02)
    assert measured.signal_to_noise == pytest.approx((2 + bias) / 3, rel=0.05)


def test_the_interval_covers_as_often_as_it_says() -> None:
    torch.manual_seed(0)
    exact = torch.ones(10, dtype=torch.float64)
    hits = 0
    for _ in range(200):
        moments = Moments(exact, 200)
        moments.add(exact + 0.5 + torch.randn(200, 10, dtype=torch.float64))
        measured = moments.measure()
        hits += measured.relative_bias_low <= 0.5 <= measured.relative_bias_high
    assert hits >= 176  # 190 expected; fewer than 176 has probability 1e-4 at 95 % coverage


def test_logits_and_encoder_gradients_are_autograds() -> None:
    lab = bench("estimator=exact", "latent=2x10")
    exact = lab.exact()
    terms = ELBO()(lab.model.posterior(lab.x), lab.model.latent.prior(), lab.model.nats(lab.x), Exact(), lab.x)
    weights = list(lab.model.encoder.parameters())
    expected = torch.autograd.grad(terms.loss.mean(), weights)
    carried = lab.to_encoder(exact[None])[0]
    torch.testing.assert_close(carried, torch.cat([g.flatten() for g in expected]))


def test_enumeration_in_chunks_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = bench("latent=2x10")
    whole = lab.exact()
    monkeypatch.setattr(audit, "ROWS", 100)
    torch.testing.assert_close(lab.exact(), whole)


def test_biased_and_unbiased_are_told_apart() -> None:
    torch.manual_seed(0)
    lab = bench("latent=2x10")
    reference = lab.reference()
    assert reference.how == "exact, by enumeration"
    unbiased = lab.measure(RLOO(4), ELBO(), reference, 1000)
    biased = lab.measure(StraightThrough(), ELBO(), reference, 1000)
    for group in ("logits", "encoder"):
        assert unbiased[group].relative_bias_low == 0
        assert biased[group].relative_bias_low > 0.02
    exact = lab.measure(Exact(), ELBO(), reference, 1000)["logits"]
    assert exact.relative_bias == exact.variance == 0
    assert exact.cosine == pytest.approx(1)


def test_a_large_space_gets_an_averaged_reference_with_its_error() -> None:
    torch.manual_seed(0)
    lab = bench("latent=2x10")
    average = lab.reference(max_states=10, error=0.05, most=4000)
    assert "LocalExpectation" in average.how
    assert average.error <= 0.05
    exact = lab.exact()
    assert (average.gradient - exact).norm() / exact.norm() < 4 * average.error
    assert number_of_states(lab.model.latent(lab.features)) == 100


def test_the_gaussian_reference_is_pathwise() -> None:
    torch.manual_seed(0)
    lab = bench("estimator=gaussian", "latent.dim=3")
    reference = lab.reference(error=0.1, most=500)
    assert "Pathwise" in reference.how
    measured = lab.measure(Pathwise(), ELBO(), reference, 400)["logits"]
    assert measured.relative_bias_low < 4 * reference.error


def test_warm_up_teaches_the_estimator_and_not_the_model() -> None:
    lab = bench("latent=2x10")
    before = [p.clone() for p in lab.model.parameters()]
    estimator = Reinforce(1, MovingAverage()).double()
    lab.warm_up(estimator, ELBO(), 30)
    assert estimator.baseline.total > 100
    assert not estimator.training
    assert all(torch.equal(a, b) for a, b in zip(before, lab.model.parameters(), strict=True))


def test_evaluations_are_counted() -> None:
    lab = bench("latent=2x10")
    assert lab.cost(RLOO(4), ELBO(), repeats=2)[0] == 4
    assert lab.cost(Exact(), ELBO(), repeats=2)[0] == 100


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
    assert "relative bias" in capsys.readouterr().out


def test_the_command_on_a_terminal(tmp_path: Path) -> None:
    """With its progress bars, which a pipe does not show."""
    command = [sys.executable, "-m", "vi_lab", "audit", *AUDIT, "audit.estimators=[rloo]", "hydra.run.dir=lab"]
    inside = f"import os, pty, sys; os.chdir({str(tmp_path)!r}); sys.exit(pty.spawn({command!r}) >> 8)"
    done = subprocess.run([sys.executable, "-c", inside], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert json.loads((tmp_path / "lab" / "status.json").read_text())["state"] == "completed"
    assert b"Traceback" not in done.stdout


def test_the_command_on_a_trained_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL, "estimator=rloo", "latent=2x10", "trainer.max_epochs=1", "figures=false"]
    Path("trained").mkdir()
    run(OmegaConf.create(check_overrides("train", overrides, False)[0]), Path("trained"))
    options = ["audit.estimators=[rloo]", "audit.samples=40", "audit.batch=2", "threads=1", "accelerator=cpu"]
    assert cli.main(["audit", "run=trained", *options, "hydra.run.dir=lab"]) == 0
    assert json.loads(Path("lab/audit.json").read_text())["estimators"][0]["estimator"] == "rloo"
    assert cli.main(["audit", "run=trained", "latent=4x8"]) == 2
    assert cli.main(["audit", "run=nowhere"]) == 2
    Path("trained/checkpoints/last.ckpt").write_bytes(b"no checkpoint")
    assert cli.main(["audit", "run=trained", *options]) == 1


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
    values = check_overrides("train", [*SMALL, "latent=2x10"], False)[0]
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
    for name in sorted(path.stem for path in (CONFIG_DIR / "estimator").glob("*.yaml")):
        check_targets(check_overrides("train", [f"estimator={name}"], False)[0], name)


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


@pytest.mark.parametrize("estimator", ["reinforce_moving_average", "gumbel_softmax"])
def test_watching_the_gradient_does_not_change_the_training(tmp_path: Path, estimator: str) -> None:
    results = []
    for name, extra in (("plain", []), ("watched", ["audit.every_n_steps=5", "audit.samples=40", "audit.batch=2"])):
        (tmp_path / name).mkdir()
        overrides = [*SMALL, f"estimator={estimator}", "latent=2x10", "trainer.max_epochs=1", "figures=false", *extra]
        run(OmegaConf.create(check_overrides("train", overrides, False)[0]), tmp_path / name)
        results.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    assert results[0] == results[1]
    events = EventAccumulator(str(tmp_path / "watched"), size_guidance={"scalars": 0}).Reload()
    assert [e.step for e in events.Scalars("audit/variance")] == [5, 10]
    assert all(math.isfinite(e.value) for e in events.Scalars("audit/relative_bias"))
