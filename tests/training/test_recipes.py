"""Training recipes: KL warm-up, rates of parts, centering, averaged weights, and weights of another run."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from tests.support import SMALL, compose, config, read_rows, refusal, run, small_vae, train
from tests.training.crash import crashed, unequal
from vi_lab import cli, load_run
from vi_lab.build import build
from vi_lab.commands.reproduce import reproduce
from vi_lab.commands.resume import resume_run
from vi_lab.errors import UserError
from vi_lab.estimators import RELAX, Reinforce
from vi_lab.latents import Bernoulli
from vi_lab.models import part_of
from vi_lab.objectives import ELBO
from vi_lab.runs.files import CONFIG_FILE
from vi_lab.schedules import Cosine, LearningRate, WarmUp
from vi_lab.schema import LATER
from vi_lab.training.checkpoints import Checkpoints

WARM_UP = ["beta_schedule=linear", "beta_schedule.steps=18"]
RECIPES = {
    "KL warm-up": WARM_UP,
    "learning rate by step": ["lr_scheduler=warmup_cosine", "lr_scheduler.scheduler.schedule.steps=5",
                              "lr_scheduler.scheduler.schedule.then.steps=25"],
    "groups": ["estimator=nvil", "optimizer_groups.baseline.lr=0.01", "optimizer_groups.baseline.weight_decay=0.1"],
    "groups with a learning-rate schedule": ["estimator=relax", "optimizer_groups.control_variate.lr=0.01",
                                             "lr_scheduler=warmup"],
    "centering": ["network.center=true", "network.output_bias=true"],
    "mean of weights": ["callbacks=stochastic_weight_averaging", "callbacks.stochastic_weight_averaging.start_epoch=1"],
    "mean of weights, plateau": ["callbacks=[stochastic_weight_averaging,early_stopping]", "lr_scheduler=plateau",
                                 "callbacks.stochastic_weight_averaging.start_epoch=0"],
    "accumulation and clipping": ["trainer.accumulate_grad_batches=4", "trainer.gradient_clip_val=1", *WARM_UP],
    "radam": ["optimizer=radam"],
    "rmsprop": ["optimizer=rmsprop", "optimizer.momentum=0.9"],
    "adamax": ["optimizer=adamax"],
}  # fmt: skip
ENDS = [(recipe, at) for recipe in RECIPES for at in ((2, 7) if "acc" in recipe else (9, 24))]


# 12 steps an epoch, or 3: within an epoch, and at the end of one
@pytest.mark.parametrize(
    ("recipe", "crash_at"), [*ENDS[::2], *(pytest.param(*end, marks=pytest.mark.slow) for end in ENDS[1::2])]
)
def test_a_run_by_it_resumes_to_the_last_bit(
    tmp_path: Path, whole: Callable[..., Path], recipe: str, crash_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["checkpoint.every_n_steps=2", "trainer.max_epochs=3", *RECIPES[recipe]]
    crashed(tmp_path, *overrides, at=crash_at, monkeypatch=monkeypatch)
    resume_run(tmp_path, [])
    assert unequal(whole(*overrides), tmp_path) == []


# --- KL warm-up ----------------------------------------------------------------------------------------------------


def test_the_weight_of_the_kl_follows_its_schedule_in_training_only(whole: Callable[..., Path]) -> None:
    folder = whole("checkpoint.every_n_steps=2", "trainer.max_epochs=3", *WARM_UP)
    rows = read_rows(folder)
    assert [float(row["train/beta"]) for row in rows] == pytest.approx([11 / 18, 1, 1])
    for row in rows:
        assert float(row["val/loss"]) == pytest.approx(float(row["val/reconstruction"]) + float(row["val/kl"]))
    loss, parts = (float(rows[0][f"train/{name}"]) for name in ("loss_unrelaxed", "reconstruction"))
    assert loss < parts + float(rows[0]["train/kl"])  # the KL weighed less than 1
    assert not any("scheduled" in name for name in load_run(folder).model.state_dict())


def test_a_constant_schedule_at_beta_changes_nothing(whole: Callable[..., Path], tmp_path: Path) -> None:
    plain = whole("objective.beta=0.3")
    train(tmp_path, "objective.beta=0.3", "beta_schedule=constant")
    assert json.loads((plain / "metrics.json").read_text()).items() <= (
        json.loads((tmp_path / "metrics.json").read_text()).items()
    )


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_the_gradient_is_that_of_the_scheduled_weight(kl: str) -> None:
    def gradient(beta: float, scheduled: float | None) -> torch.Tensor:
        model = small_vae(Bernoulli(5), Reinforce(), ELBO(kl, beta))
        if scheduled is not None:
            model.objective.schedule_beta()
            model.objective.scheduled.fill_(scheduled)
        torch.manual_seed(1)
        model.losses(torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(2)))[0].backward()
        return model.encoder[1].weight.grad

    assert torch.equal(gradient(1.0, 0.25), gradient(0.25, None))
    assert not torch.equal(gradient(1.0, 0.25), gradient(1.0, None))


def test_the_relaxed_objective_is_scheduled_too(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", "estimator=concrete", "objective=relaxed", "trainer.max_epochs=1")
    warmed = train(tmp_path / "warmed", "estimator=concrete", "objective=relaxed", "trainer.max_epochs=1", *WARM_UP)
    assert plain["train/loss"] != warmed["train/loss"]


# --- the learning rate and its parts ------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = LearningRate(optimizer, WarmUp(2, Cosine(1.0, 0.0, 4)))
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1, 2, 2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0, 0])


def test_the_learning_rate_by_epochs_is_that_of_torchs_schedulers() -> None:
    """A linear rise from a thousandth and then a cosine, as torch's SequentialLR of the two."""
    rates: list[list[float]] = [[], []]
    for found in rates:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        if found is rates[0]:
            config = compose("lr_scheduler=warmup_cosine_epochs")
            assert config.lr_scheduler.interval == "epoch"
            schedule = hydra.utils.instantiate(config.lr_scheduler.scheduler)(optimizer)
        else:
            parts = [LinearLR(optimizer, 1e-3, total_iters=10), CosineAnnealingLR(optimizer, 490)]
            schedule = SequentialLR(optimizer, parts, [10])
        for _ in range(500):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    assert rates[0][0] == pytest.approx(0.002)
    assert rates[0] == pytest.approx(rates[1], abs=1e-6)


def test_parts_are_told_by_the_names_of_parameters() -> None:
    names = {
        "encoder.1.weight": None,
        "p_z.logits": "prior",
        "estimator.baseline.network.1.weight": "baseline",
        "deeper.0.baseline.network.1.weight": "baseline",
        "estimator.eta": "control_variate",
        "deeper.1.eta": "control_variate",
        "latent.codebook": None,
    }
    assert {name: part_of(name) for name in names} == names


def test_a_part_has_the_rate_that_it_is_given_and_the_rest_the_optimizers() -> None:
    node = config("estimator=relax", "optimizer_groups.control_variate.lr=0.5", "optimizer.weight_decay=0.25")
    _, model = build(node)
    optimizer = model.configure_optimizers()
    main, own = optimizer.param_groups
    assert (main["lr"], own["lr"], main["weight_decay"], own["weight_decay"]) == (1e-3, 0.5, 0.25, 0.25)
    assert {id(p) for p in own["params"]} == {id(p) for p in model.estimator.parameters()}
    assert len(main["params"]) + len(own["params"]) == len(list(model.parameters()))
    assert isinstance(model.estimator, RELAX)


def test_without_rates_of_their_own_there_is_one_group() -> None:
    _, model = build(config("estimator=relax"))
    assert len(model.configure_optimizers().param_groups) == 1


# --- centering -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "conv", "linear"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_centered_run_begins_at_the_mean_image(tmp_path: Path, network: str, likelihood: str) -> None:
    from vi_lab.training.start import center

    options = ["network.center=true", "network.output_bias=true", f"likelihood={likelihood}", f"network={network}"]
    values = compose("data=digits", *options)
    datamodule, model = build(values)
    center(values, model, datamodule)
    pixels = datamodule.splits["train"][0]
    mean = (pixels.double() / 255).mean(0)
    assert datamodule.mean_image().numpy() == pytest.approx(mean.numpy(), abs=1e-12)
    seen = []
    model.encoder.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.encoder(pixels.float() / 255)
    assert seen[0].mean(0).abs().max() < 1e-5
    last = [layer for layer in model.decoder.modules() if [*layer.parameters(recurse=False)]][-1]
    with torch.no_grad():
        last.weight.zero_()
    found = model.likelihood.mean(model.decoder(torch.zeros(1, model.latent.size)))[0]
    if network == "conv":  # one bias for all pixels
        assert found.std() < 1e-6
    else:
        assert found.detach().numpy() == pytest.approx(mean.clamp(0.001, 0.999).numpy(), abs=2e-3)


def test_the_mean_is_that_of_what_the_model_sees() -> None:
    datamodule, _ = build(config("data.binarization=threshold"))
    datamodule.setup()
    loader = datamodule.loader("train")
    seen = loader.pixels(datamodule.splits["train"][0], 0)
    assert datamodule.mean_image().numpy() == pytest.approx(seen.double().mean(0).numpy(), abs=1e-12)


def test_a_centered_run_is_opened_without_its_data(whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole("checkpoint.every_n_steps=2", "trainer.max_epochs=3", *RECIPES["centering"])
    monkeypatch.setattr("vi_lab.data.module.load", lambda *_: 1 / 0)
    model = load_run(folder).model
    assert model.encoder.mean.abs().max() > 0.1


def test_a_decoder_without_a_last_bias_is_refused() -> None:
    from vi_lab.networks import set_output_bias

    with pytest.raises(ValueError, match=r"wanted a bias for each of 784 pixels.*got none"):
        set_output_bias(torch.nn.Sequential(torch.nn.Linear(3, 784, bias=False)), torch.zeros(1, 28, 28))


# --- averaged weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1])
def test_the_mean_of_the_weights_is_what_is_evaluated_and_kept(
    tmp_path: Path, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[dict[str, torch.Tensor]] = []
    after = Checkpoints.on_train_epoch_end

    def keep(self, trainer, module):
        ends.append({name: value.clone() for name, value in module.state_dict().items()})
        after(self, trainer, module)

    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", keep)
    option = f"callbacks.stochastic_weight_averaging.start_epoch={start}"
    metrics = train(tmp_path, "callbacks=stochastic_weight_averaging", option, "trainer.max_epochs=3")
    mean = {name: torch.stack([one[name] for one in ends[start:]]).mean(0) for name in ends[0]}
    model = load_run(tmp_path).model
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(weights, mean[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(mean[name], ends[-1][name]) for name in mean)
    assert cli.main(["evaluate", str(tmp_path), "evaluation.samples=10", "accelerator=cpu", "threads=1"]) == 0
    (report,) = (tmp_path / "evaluations").glob("*.json")
    assert json.loads(report.read_text())["metrics"]["nll"] == metrics["test/nll"]


def test_before_the_first_mean_the_weights_themselves_are_evaluated(whole: Callable[..., Path]) -> None:
    """Lightning's own keeps those from before the first step until then."""
    options = ["checkpoint.every_n_steps=2", "trainer.max_epochs=3"]
    rows, plain = read_rows(whole(*options, *RECIPES["mean of weights"])), read_rows(whole(*options))
    assert rows[0]["val/loss"] == plain[0]["val/loss"]
    assert rows[1]["val/loss"] == plain[1]["val/loss"]  # the mean of one
    assert rows[2]["val/loss"] != plain[2]["val/loss"]


# --- weights of another run ----------------------------------------------------------------------------------------


def test_a_run_begins_with_the_weights_of_another(
    whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = whole()
    overrides = [f"init_from={source}", "seed=1", "optimizer=sgd", "checkpoint.every_n_steps=4"]
    reference = tmp_path / "whole"
    run(config(*overrides), reference)
    known = json.loads((reference / "environment.json").read_text())["init_from"]
    assert known["run"] == str(source.resolve())
    assert len(known["sha256"]) == 64
    scratch = train(tmp_path / "scratch", "seed=1", "optimizer=sgd")
    assert float(read_rows(reference)[0]["train/loss"]) < scratch["train/loss"]
    # it resumes without them
    crashed(tmp_path / "killed", *overrides, at=6, monkeypatch=monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("vi_lab.training.session.Source", lambda folder: 1 / 0)
        resume_run(tmp_path / "killed", [])
    assert unequal(reference, tmp_path / "killed") == []


def test_a_run_from_another_is_reproduced_and_a_changed_source_is_named(
    whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "source"
    shutil.copytree(whole(), source)
    folder = tmp_path / "run"
    words = [*SMALL, f"init_from={source}", "trainer.max_epochs=1", f"hydra.run.dir={folder}"]
    assert cli.main(["train", *words]) == 0
    assert reproduce(str(folder), str(tmp_path / "again"), [])
    shutil.copy(source / "checkpoints/previous.ckpt", source / "checkpoints/last.ckpt")
    capsys.readouterr()
    assert not reproduce(str(folder), str(tmp_path / "other"), [])
    assert "init_from.sha256 is" in capsys.readouterr().out


def test_a_run_without_a_checkpoint_begins_with_the_same_weights_or_not_at_all(
    whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(whole(), source)
    crashed(folder, f"init_from={source}", at=2, monkeypatch=monkeypatch)
    shutil.copy(source / "checkpoints/previous.ckpt", source / "checkpoints/last.ckpt")
    with pytest.raises(UserError, match=r"is not the one that .* began with"):
        resume_run(folder, [])


def test_the_weights_of_another_estimator_stay_behind(
    whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = whole("latent=2x10")
    run(config(f"init_from={source}", "estimator=nvil", "latent=2x10", "trainer.max_epochs=1"), tmp_path)
    assert "what the estimator learns begins anew" in capsys.readouterr().out


def test_weights_that_do_not_fit_are_refused_before_a_folder_exists(
    whole: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, folder = whole("latent=2x10"), tmp_path / "run"
    words = [*SMALL, f"init_from={source}", f"hydra.run.dir={folder}"]
    assert "encoder.3.weight is (20, 16) there and (300, 16) here" in refusal(capsys, "train", *words)
    assert "encoder.mean is absent there" in refusal(capsys, "train", *words, "latent=2x10", "network.center=true")
    assert "no run folder" in refusal(capsys, "train", *SMALL, f"init_from={tmp_path}/nope")
    (source / "checkpoints/last.ckpt").rename(source / "checkpoints/gone")
    try:
        assert cli.main(["train", *words, "latent=2x10"]) == 1
        assert "there is no such checkpoint" in capsys.readouterr().err
    finally:
        (source / "checkpoints/gone").rename(source / "checkpoints/last.ckpt")
    assert not folder.exists()


# --- mistakes, and runs of before ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("beta_schedule=linear estimator=gaussian_dreg", "estimator gaussian_dreg depends on one beta"),
        ("beta_schedule=linear objective.beta=0", "beta_schedule.end=0.0: the schedule cannot move"),
        ("beta_schedule=exponential beta_schedule.start=1", "beta_schedule.floor=1.0: wanted below the start"),
        ("beta_schedule=linear beta_schedule.start=-1", "beta_schedule.start=-1: wanted a number from 0"),
        ("beta_schedule=quadratic", "no such choice"),
        ("beta_schedule.steps=10", "there is no key beta_schedule.steps"),
        ("schedule=step schedule.factor=1", "schedule.factor=1: wanted a number between 0 and 1"),
        ("schedule=step temperature=0.1", "schedule.floor=0.1: wanted below the start"),
        ("lr_scheduler=warmup lr_scheduler.scheduler.schedule.steps=0", "steps=0: wanted a whole number"),
        ("lr_scheduler=warmup_cosine lr_scheduler.scheduler.schedule.then.end=1", "it cannot move"),
        ("optimizer=rmsprop optimizer.alpha=1", "optimizer.alpha=1: wanted a number in"),
        ("optimizer_groups.baseline.lr=0.1", "optimizer_groups.baseline: nothing of it is learned"),
        ("estimator=relax optimizer_groups.prior.lr=0.1", r"which learn: control_variate"),
        ("optimizer_groups.encoder.lr=0.1", "there is no key"),
        ("optimizer_groups.baseline.lr=-1", "optimizer_groups.baseline.lr=-1: wanted a number"),
        ("network.center=1", "network.center=1: wanted true or false"),
        ("callbacks=stochastic_weight_averaging callbacks.stochastic_weight_averaging.start_epoch=2",
         "start_epoch=2: wanted less than trainer.max_epochs=2"),
        ("callbacks=weight_averaging callbacks.weight_averaging.decay=1", "decay=1: wanted a number in"),
        ("trainer.accumulate_grad_batches=0", "wanted a whole number from 1"),
        ("init_from=3", "init_from=3: wanted a run folder"),
        ("stack=2 estimator=nvil optimizer_groups.baseline.lr=0.1", "cannot have optimizer_groups"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(overrides: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refusal(capsys, "train", *SMALL, *overrides.split())


def test_runs_from_before_these_keys_are_opened_resumed_and_the_same_experiment(
    whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["trainer.max_epochs=2", "checkpoint.every_n_steps=4"]
    crashed(tmp_path, *overrides, at=14, monkeypatch=monkeypatch)
    values = yaml.safe_load((tmp_path / CONFIG_FILE).read_text())
    for path in LATER:
        *nodes, key = path.split(".")
        node = values
        for name in nodes:
            node = node.get(name, {})
        node.pop(key, None)
    for name in ("optimizer_groups", "beta_schedule"):
        del values[name]
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(values))
    assert load_run(tmp_path).key == load_run(whole(*overrides)).key
    resume_run(tmp_path, [])
    assert unequal(whole(*overrides), tmp_path) == []


def test_a_stack_has_a_weight_of_the_kl_for_each_run(tmp_path: Path) -> None:
    from vi_lab.training.execution import Job, execute_stack

    overrides = [*WARM_UP, "stack=2"]
    jobs = [
        Job(config(*overrides, f"beta_schedule.start={start}"), tmp_path / str(start), {"bar": False})
        for start in (0.0, 0.5)
    ]
    for job in jobs:
        job.folder.mkdir()
    losses = execute_stack(jobs)
    assert all(isinstance(loss, float) for loss in losses)
    first = [float(read_rows(job.folder)[0]["train/beta"]) for job in jobs]
    assert first == pytest.approx([11 / 18, 0.5 + 0.5 * 11 / 18])


def test_numbers_of_the_config_are_not_those_of_the_other_run(whole: Callable[..., Path], tmp_path: Path) -> None:
    small = ["estimator=concrete", "latent=2x10", "likelihood=gaussian", "data.binarization=none"]
    source = whole(*small, "likelihood.scale=1.0", "trainer.max_epochs=1")
    train(tmp_path, *small, f"init_from={source}", "estimator.prior_temperature=0.2", "trainer.max_epochs=1")
    weights = load_run(tmp_path).model.state_dict()
    assert weights["likelihood.log_scale"].exp().item() == pytest.approx(0.1)
    assert weights["estimator.prior_temperature"].item() == pytest.approx(0.2)


def test_a_run_in_double_precision_begins_with_those_of_another(whole: Callable[..., Path], tmp_path: Path) -> None:
    source = whole("latent=2x10")
    train(tmp_path, "latent=2x10", f"init_from={source}", "trainer.precision=64-true", "trainer.max_epochs=1")
    assert {p.dtype for p in load_run(tmp_path).model.parameters()} == {torch.float64}


def test_averages_are_of_weights_and_not_of_temperatures(tmp_path: Path) -> None:
    train(tmp_path, "callbacks=weight_averaging", "schedule=linear", "schedule.steps=3", "schedule.end=0.1")
    assert load_run(tmp_path).model.estimator.temperature.item() == pytest.approx(0.1)
