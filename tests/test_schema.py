"""The table of keys: each key of the configs has its one row, marks do what they say, and rules agree with the code."""

from __future__ import annotations

import inspect
import re
from fnmatch import fnmatchcase
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.support import ESTIMATORS, composed, read_rows, refusal, train
from vi_lab import data, networks, schema
from vi_lab.config import check_added, check_overrides, compose_job, resolved
from vi_lab.errors import UserError
from vi_lab.schema import ACTIVATION, CONFIG_DIR, KEYS, WATCHABLE, Mark, check, has, leaves, marked, row

MISTAKES = {
    "estimator=gaussian latent=30x10": "gaussian does not work with a categorical latent.*latent=gaussian",
    "estimator=exact latent=30x10": "sums over all states.*latent=1x10",
    "temperature=0": "temperature=0: wanted a number from 1e-06 to",
    "temperature=-1": "wanted a number from 1e-06 to",
    "temperature=abc": "temperature='abc': wanted a number from 1e-06 to",
    "temperature=nan": "wanted numbers that float32 can hold",
    "temperature=null": "temperature=null: wanted a number from 1e-06 to",
    "data.batch_size=0": "data.batch_size=0: wanted a whole number from 1 to",
    "data.batch_size=1.5": "wanted a whole number",
    "data.download=1": "wanted true or false",
    "data.binarization=dither": "wanted one of dynamic, fixed, threshold, none, dequantize",
    "network.encoder.hidden=[1,a]": "wanted a list of whole numbers",
    "network.encoder.activation=swosh": "wanted one of relu",
    "network.encoder=3": "wanted a mapping",
    "network=3": "network=3",
    "optimizer.lr=null": "optimizer.lr=null: wanted a number from 1e-30",
    "seed=-1": "wanted a whole number from 0",
    "name=a/b": r"wanted a name that can be a folder.s",
    "+foo=1": "there is no key foo",
    "+estimator.foo=1": "estimator has no key foo",
    "+estimator.sample=1": "did you mean samples",
    "accelerator.devices=0": "wanted a whole number from 1 to",
    "trainer.precision=33": "wanted one of 32-true",
    "~optimizer": "optimizer is missing, which is needed; leave out ~optimizer",
    "~latent.classes": "latent.classes is missing",
    "~optimizer.lr": "optimizer.lr is missing",
}


NONSENSE = """
temperature=1e300 temperature=1e-300 temperature=.inf temperature=1e400 temperature=[] temperature=true
latent.classes=1 latent.variables=1000000000 samples=1000000000 samples=-1 samples=1.5 samples=true
data.batch_size=1000000000000 data.eval_batch_size=1000000000000 data.validation=-1 data.seed=-1 data.root=3
trainer.max_epochs=1e24 trainer.max_epochs=1000000000000000000000000 trainer.max_steps=-2 trainer.max_steps=0
trainer.log_every_n_steps=1000000000000 trainer.gradient_clip_val=1e300 trainer.limit_train_batches=0
trainer.precision=null trainer.deterministic=warn trainer.check_val_every_n_epoch=0
optimizer.betas=[0.9] optimizer.betas=[0.9,2] optimizer.betas=[a,b] optimizer.betas=[] optimizer.betas=null
optimizer.lr=1e300 optimizer.lr=nan optimizer.lr=inf optimizer.weight_decay=1e300 optimizer.weight_decay=-1
+optimizer.maximize=true +optimizer.differentiable=true +optimizer.capturable=true +optimizer.eps=1e300
+trainer.num_nodes=2 +trainer.max_time=-1 +trainer.max_time=soon trainer.accumulate_grad_batches=0
+trainer.val_check_interval=0 +trainer.detect_anomaly=maybe +trainer.limit_predict_batches=-1
accelerator.devices=1000000 seed=99999999999999999999 seed=1.5 threads=100000 threads=0
network.encoder.hidden=[1000000000] network.encoder.hidden=[true] network.encoder.hidden=[[16]]
evaluation.samples=1000000000 evaluation.images=1000000000000 checkpoint.every_n_steps=1000000000000
audit.samples=1000000000000 audit.batch=1000000 audit.max_states=1000000000000 audit.reference_draws=1000000000000
audit.reference_error=1e-300 audit.every_n_steps=1000000000000 objective.beta=1e300 objective.beta=-1
figures_every_n_epochs=1e12 lr_scheduler.frequency=1000000000000
"""
SEVERAL = [
    "schedule=exponential schedule.rate=1e300",
    "schedule=linear schedule.steps=1000000000000",
    "lr_scheduler=step lr_scheduler.scheduler.step_size=0",
    "lr_scheduler=step lr_scheduler.scheduler.gamma=-1",
    "lr_scheduler=cosine lr_scheduler.scheduler.eta_min=1e300",
    "lr_scheduler=plateau lr_scheduler.monitor=val/nope",
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=train/loss",
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=test/loss",
    "callbacks=[early_stopping] callbacks.early_stopping.patience=-1",
    "callbacks=[early_stopping] callbacks.early_stopping.min_delta=abc",
    "callbacks=[early_stopping] +callbacks.early_stopping.stopping_threshold=abc",
    "callbacks=[model_summary] callbacks.model_summary.max_depth=-7",
]


@pytest.mark.parametrize("overrides", NONSENSE.split())
def test_nonsense_is_refused_by_the_table_with_its_key_and_what_is_wanted(overrides: str) -> None:
    """Put into a composed config: composing each would take Hydra half a minute in all."""
    shipped = composed()
    (override,) = OverridesParser.create().parse_overrides([overrides])
    config = OmegaConf.create(composed())
    OmegaConf.update(config, override.key_or_group, override.value())
    values = resolved(config)

    def checked() -> None:
        check(values, shipped)
        check_added(values, shipped)

    with pytest.raises(UserError, match=r"wanted|is not taken") as caught:
        checked()
    assert override.key_or_group in str(caught.value)


@pytest.mark.parametrize("overrides", [*SEVERAL, "temperature=1e300", "+trainer.num_nodes=2"])
def test_nonsense_is_refused_by_the_command_too(overrides: str) -> None:
    with pytest.raises(UserError, match=r"wanted|is not taken") as caught:
        check_overrides("train", overrides.split(), multirun=False)
    path = overrides.split()[-1].lstrip("+").partition("=")[0]
    assert path in str(caught.value)


def test_the_metrics_that_callbacks_may_watch_are_those_of_an_evaluation(tmp_path: Path) -> None:
    train(tmp_path, "data.test_every_epoch=true", "trainer.max_epochs=1")
    assert {name for name in read_rows(tmp_path)[0] if name.split("/")[0] in ("val", "test")} == set(WATCHABLE)


@pytest.mark.parametrize("overrides", MISTAKES)
def test_mistakes_get_one_line_that_names_what_is_accepted(overrides: str, capsys: pytest.CaptureFixture) -> None:
    assert re.search(MISTAKES[overrides], refusal(capsys, "train", *overrides.split()))


def test_rules_agree_with_the_code() -> None:
    """The rules are written out, so that a mistake is answered without importing torch."""
    assert all(ACTIVATION.holds(name) for name in networks.ACTIVATIONS)
    assert ACTIVATION.wanted == "one of " + ", ".join(networks.ACTIVATIONS)
    assert KEYS["data.binarization"].rule.wanted == "one of " + ", ".join(data.BINARIZATIONS)
    assert tuple(data.SOURCES) == schema.SOURCES


COMMANDS = ("train", "tune", "audit", "evaluate")
OPTIONAL = {"latent": "reinforce", "objective/relaxed": "concrete", "latent/vq": "vq"}


def keys() -> set[str]:
    """Every key that some choice of some group ships, of every command."""
    found = {path for name in COMMANDS for path, _ in leaves(resolved(compose_job(name, [])))}
    for folder in (
        path for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name not in ("model", "published", "atlas")
    ):
        for file in folder.glob("*.yaml"):
            choice = f"{folder.name}/{file.stem}"
            estimator = OPTIONAL.get(choice, OPTIONAL.get(folder.name))
            overrides = [f"{folder.name}={file.stem}", *([f"estimator={estimator}"] if estimator else [])]
            found |= {path for path, _ in leaves(resolved(compose_job("train", overrides)))}
    for file in (CONFIG_DIR / "estimator/baseline").glob("*.yaml"):
        overrides = ["estimator=reinforce", f"estimator/baseline={file.stem}"]
        found |= {path for path, _ in leaves(resolved(compose_job("train", overrides)))}
    return {path for path in found if not path.rpartition(".")[2].startswith("_")}


@pytest.mark.slow
def test_each_key_has_its_row_and_each_row_a_key() -> None:
    shipped = keys()
    assert sorted(path for path in shipped if row(path) is None) == []
    parts = shipped | {path.split(".")[0] for path in shipped}
    parts |= {f"trainer.{name}" for name in inspect.signature(lightning.Trainer).parameters}
    parts |= {f"optimizer.{name}" for name in inspect.signature(torch.optim.SGD).parameters}
    parts |= {f"optimizer.{name}" for name in inspect.signature(torch.optim.Adam).parameters}
    names = inspect.signature(lightning.pytorch.callbacks.EarlyStopping).parameters
    parts |= {f"callbacks.early_stopping.{name}" for name in names}
    of_hydra = {name for name in KEYS if name.startswith("hydra")}
    unused = [name for name in KEYS if not any(fnmatchcase(path, name) for path in parts)]
    assert sorted(unused) == sorted(of_hydra)


@pytest.mark.slow
def test_shipped_values_hold_their_own_rules() -> None:
    for name in ESTIMATORS:
        for path, value in leaves(resolved(compose_job("train", [f"estimator={name}"]))):
            key = row(path)
            assert key is None or key.rule is None or key.rule.holds(value), path


def test_marks() -> None:
    assert has("seed", Mark.INCIDENTAL)
    assert not has("seed", Mark.RESUME)
    assert not has("temperature", Mark.INCIDENTAL)
    assert not has("nope.nope", Mark.RESUME)
    assert "trainer.max_epochs" in marked(Mark.RESUME)
    assert "trainer.max_epochs" not in marked(Mark.REPRODUCE)
    assert set(marked(Mark.SWEEP)) >= {"threads", "hydra/launcher"}
    # what may change where a run is repeated may also change where it is resumed, and is no setting
    for name in marked(Mark.REPRODUCE):
        assert has(name, Mark.RESUME), name
        assert has(name, Mark.INCIDENTAL), name


@pytest.mark.parametrize("file", sorted((CONFIG_DIR / "estimator").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_estimators_file_is_short_and_names_its_family_once(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    families = [item["family"] for item in values["defaults"] if "family" in item]
    assert len(families) == 1
    assert "latents" not in values
    assert not any("model" in key for item in values["defaults"] for key in item)
    assert len(file.read_text().splitlines()) < 15
