"""Composition, checks and the messages that mistakes get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.support import composed, refusal
from vi_lab.adapters.hydra import Quick
from vi_lab.config import check_overrides, compose_job, read_arguments, split_sweep
from vi_lab.errors import UserError, one_line
from vi_lab.schema import CONFIG_DIR, leaves

GROUPS = sorted(p.name for p in CONFIG_DIR.iterdir() if p.is_dir() and p.name not in ("model", "published", "atlas"))


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_every_group_composes(group: str) -> None:
    for path in (CONFIG_DIR / group).glob("*.yaml"):
        # some need an estimator that takes them
        suited = {"latent": "reinforce", "latent/vq": "vq", "objective/relaxed": "concrete",
                  "prior/mixture": "gaussian", "prior/vamp": "gaussian"}  # fmt: skip
        estimator = suited.get(f"{group}/{path.stem}", suited.get(group))
        composed(f"{group}={path.stem}", *([f"estimator={estimator}"] if estimator else []))


def test_an_estimator_brings_model_and_latent() -> None:
    assert composed("estimator=gaussian")["latent"]["_target_"].endswith("Gaussian")
    assert composed("estimator=gaussian")["model"]["_target_"].endswith("GaussianVAE")
    assert composed("estimator=rloo")["model"]["_target_"].endswith("ReinforceVAE")
    both = check_overrides("train", ["estimator=gaussian,gumbel_softmax,straight_through,reinforce"], multirun=True)
    assert [c["name"] for c in both] == ["gaussian", "gumbel_softmax", "straight_through", "reinforce"]


def test_latent_presets_and_numbers() -> None:
    assert composed("latent=30x10")["latent"] == composed("latent=categorical")["latent"]
    latent = composed("latent=20x10")["latent"]
    assert (latent["variables"], latent["classes"]) == (20, 10)  # always variables x classes
    assert composed("estimator=gaussian", "latent=gaussian", "latent.dim=20")["latent"]["dim"] == 20
    assert composed("latent=bernoulli", "latent.variables=50")["latent"]["variables"] == 50


def test_temperature_and_samples_reach_where_they_are_used() -> None:
    config = composed("temperature=0.7", "samples=3", "schedule=exponential")
    assert config["schedule"]["start"] == config["estimator"]["temperature"] == 0.7
    assert config["estimator"]["samples"] == 3
    assert composed("estimator=rloo")["estimator"]["samples"] == 4  # its own default
    assert composed("estimator=rloo", "samples=2")["estimator"]["samples"] == 2


def test_experiments_are_overridden_by_the_command_line() -> None:
    config = composed("experiment=seed_gumbel", "trainer.max_epochs=3", "estimator=st_gumbel_softmax")
    assert config["trainer"]["max_epochs"] == 3
    assert config["network"]["encoder"]["output_activation"] == "relu"
    assert config["name"] == "st_gumbel_softmax"


def test_seed_gaussian_is_the_tutorial() -> None:
    config = composed("experiment=seed_gaussian")
    assert config["network"]["encoder"]["hidden"] == [256, 128]
    assert config["optimizer"]["_target_"] == "torch.optim.SGD"
    assert (config["optimizer"]["lr"], config["latent"]["dim"], config["trainer"]["max_epochs"]) == (5e-3, 2, 20)


MISTAKES = {
    "estimator=gumbl": r"estimator=gumbl: no such choice.*one of .*gumbel_softmax.*straight_through",
    "estimator=": "estimator=: no such choice",
    "estimatr=gaussian": "there is no key estimatr; did you mean estimator",
    "trainer.max_epoch=3": "there is no key trainer.max_epoch; did you mean max_epochs",
    "trainer.max_epoch=3 estimatr=foo": "there is no key trainer.max_epoch; did you mean max_epochs",  # two mistakes
    "latent=12x5": "use latent=categorical latent.variables=12 latent.classes=5",
    "latent.dim=3": "there is no key latent.dim .*variables, classes",
    "lr=0.1": r"there is no key lr; did you mean optimizer\.lr\?",
    "epochs=3": r"did you mean trainer\.max_epochs or",
    "estimator=gaussian latent.dims=2": r"there is no key latent\.dims; did you mean dim\? \(keys of latent: dim\)",
    "schedule=exponential schedule.flor=0.1": "did you mean floor",
    "+seed=1": "leave out the +",
    "estimator.samples=${nope}": "estimator.samples: Interpolation key 'nope' not found",
    "data.root=${oc.env:VI_LAB_NOT_SET}": "environment variable VI_LAB_NOT_SET is not set",
    "callbak=early_stopping": r"did you mean callbacks\? \(keys: .*\bestimator\b.*\bcallbacks, experiment, model, .*\)",
    "--seed 3": r"--seed is no flag; write seed=3$",
    "--trainer.max-epochs=3": r"write trainer\.max_epochs=3$",
    "--estimator -m seed=1,2": "write estimator=VALUE$",
    "--multrun seed=1,2": r"did you mean --multirun\?$",
    "trainer.max_epochs={a:1}": "trainer.max_epochs: wanted a value, and no mapping",
    "callbacks={a:1}": r"there is no key callbacks \(keys",
    "a[b": "cannot read the override 'a\\[b'",
}


def test_hints_are_those_of_the_command(capsys: pytest.CaptureFixture) -> None:
    assert "did you mean evaluation.samples?" in refusal(capsys, "evaluate", "samples=5")
    assert "callbacks" not in refusal(capsys, "evaluate", "callbak=lr_monitor")


@pytest.mark.parametrize("overrides", MISTAKES)
def test_mistakes_get_one_line_that_names_what_is_accepted(overrides: str, capsys: pytest.CaptureFixture) -> None:
    assert re.search(MISTAKES[overrides], refusal(capsys, "train", *overrides.split()))


def test_a_mistake_in_any_job_of_a_sweep_is_found_before_the_first_starts() -> None:
    with pytest.raises(UserError, match="gaussian does not work with a categorical latent"):
        check_overrides("train", ["estimator=straight_through,gaussian", "latent=30x10"], multirun=True)


def test_flags_may_stand_anywhere() -> None:
    arguments = read_arguments(["seed=1", "-m", "estimator=rloo", "--config-dir", "/tmp"])
    assert arguments.overrides == ["seed=1", "estimator=rloo"]
    assert (arguments.multirun, arguments.config_dir) == (True, "/tmp")
    with pytest.raises(UserError, match="unrecognized arguments: --foo"):
        read_arguments(["--foo"])


def test_a_users_own_config_dir_adds_choices(tmp_path: Path) -> None:
    folder = tmp_path / "my configs, ünïcode 'quoted'"
    (folder / "estimator").mkdir(parents=True)
    (folder / "estimator" / "cold.yaml").write_text("defaults: [gumbel_softmax]\ntemperature: 0.1\n")
    (config,) = check_overrides("train", ["estimator=cold"], False, str(folder))
    assert config["estimator"]["temperature"] == 0.1
    with pytest.raises(UserError, match="no such folder"):
        check_overrides("train", [], False, str(tmp_path / "nope"))


def test_an_experiment_may_not_bring_unknown_keys(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nobjective:\n  betta: 0.5\n")
    with pytest.raises(UserError, match="objective has no key betta; did you mean beta"):
        check_overrides("train", ["experiment=mine"], False, str(tmp_path))


def test_sweeps_split_as_hydra_splits_them() -> None:
    jobs = split_sweep(["estimator=rloo,exact", "seed=range(0,3)", "network.encoder.hidden=[1,2]"])
    assert len(jobs) == 6
    assert jobs[0] == ["estimator=rloo", "seed=0", "network.encoder.hidden=[1,2]"]
    shipped = list((CONFIG_DIR / "estimator").glob("*.yaml"))
    assert len(split_sweep(["estimator=glob(*)"])) == len(shipped)


SHIPPED = dict(leaves(check_overrides("train", [], False)[0]))
PATHS = st.one_of(
    st.sampled_from([*SHIPPED, *GROUPS, "hydra.run.dir", "hydra/launcher", "trainer.gradient_clip_algorithm"]),
    st.sampled_from(["nope", "data.nope", "trainer", "", "a.b.c", "latent@x", "estimator._target_", "évaluation.k"]),
)
WORDS = [
    "null",
    "true",
    "abc",
    "[]",
    "[1,2]",
    "{a: 1}",
    "${temperature}",
    "${",
    "",
    "'a b'",
    "1,2",
    "range(3)",
    "??",
    "ü",
]
WORDS += [
    "rloo",
    "30x10",
    "gaussian",
    "bernoulli",
    "exponential",
    "digits",
    "os.system",
    "${oc.env:HOME}",
    "???",
    "1e400",
]
# a run in this process may have switched subnormal numbers off
FLOATS = st.floats(allow_subnormal=False)
VALUES = st.one_of(
    st.integers(-5, 50).map(str),
    FLOATS.map(str),
    st.sampled_from(WORDS),
    st.sampled_from([str(value) for value in SHIPPED.values()]),
    st.text(max_size=8),
)
SOUND = [f"{key}={value}" for key, value in SHIPPED.items() if isinstance(value, (int, float))]
SOUND += ["estimator=rloo", "latent=4x8", "data=digits", "seed=7", "++seed=7", "schedule=cosine", "name='a b'"]
OVERRIDES = st.lists(
    st.one_of(
        st.sampled_from(SOUND),
        st.builds(lambda p, k, v: f"{p}{k}={v}", st.sampled_from(["", "", "+", "++", "~"]), PATHS, VALUES),
        st.builds(lambda k, v: f"{k}={v}", st.sampled_from(list(SHIPPED)), VALUES),
        st.text(max_size=12),
    ),
    min_size=1,
    max_size=3,
)


def composes_or_explains(overrides: list[str]) -> bool:
    """Any other exception is a bug."""
    problem = None
    try:
        check_overrides("train", overrides, multirun=False)
    except UserError as error:
        problem = error
    assert problem is None or (problem.exit_code == 2 and len(one_line(problem).splitlines()) == 1)
    return problem is None


@pytest.mark.parametrize("lists", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_overrides_compose_or_end_in_one_line(lists: int) -> None:
    """Other lists each time; a composition takes Hydra a sixth of a second."""
    outcomes = []

    @settings(max_examples=lists, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(OVERRIDES)
    def check(overrides: list[str]) -> None:
        outcomes.append(composes_or_explains(overrides))

    check()
    assert len(outcomes) >= 0.9 * lists
    assert 0.05 < sum(outcomes) / len(outcomes) < 0.95  # both kinds were met


VALUES = st.sampled_from(
    ["seed=3", "temperature=0.7", "optimizer.lr=1e-5", "optimizer.betas=[0.5,0.6]", "network.encoder.hidden=[3,4]",
     "network.encoder={hidden:[5]}", "data.root=null", "notes='a, b'", "tags=[x,y]", "name=${estimator._target_}",
     "+trainer.min_epochs=2", "++trainer.max_epochs=3", "trainer.max_epochs=4", "++temperature=3", "~optimizer.betas",
     "~trainer.deterministic", "estimator=rloo", "estimator=vq", "schedule=linear", "latent=4x8", "logger=[]",
     "logger=[csv,tensorboard]", "callbacks=[lr_monitor]", "samples=2", "hydra.sweep.subdir=here",
     "+hydra.job.env_set.ONE='1'", "experiment=seed_gumbel", "objective.beta=0.5"]
)  # fmt: skip
JOBS = st.lists(VALUES, max_size=5)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(JOBS, min_size=2, max_size=3))
def test_what_is_composed_quickly_is_what_hydra_composes(jobs: list[list[str]]) -> None:
    quick = Quick()
    for words in (*jobs, *jobs):  # the second time from what is known
        composed_, told = [], []
        for shared in (quick, None):
            try:
                composed_.append(OmegaConf.to_yaml(compose_job("train", words, None, shared)))
            except (HydraException, OmegaConfBaseException) as error:
                told.append(str(error))
        assert len({*composed_}) + len({*told}) == 1
