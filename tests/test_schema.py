"""The table of keys: each key of the configs has its one row, marks do what they say, and rules agree with the code."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from tests.support import ESTIMATORS, refusal
from vi_lab import data, networks, schema
from vi_lab.config import compose_job, resolved
from vi_lab.schema import ACTIVATION, CONFIG_DIR, KEYS, Mark, has, leaves, marked, row

MISTAKES = {
    "estimator=gaussian latent=30x10": "gaussian does not work with a categorical latent.*latent=gaussian",
    "estimator=exact latent=30x10": "sums over all states.*latent=1x10",
    "temperature=0": "temperature=0: wanted a number above 0",
    "temperature=-1": "wanted a number above 0",
    "temperature=abc": "temperature='abc': wanted a number above 0",
    "temperature=nan": "wanted a number above 0",
    "temperature=null": "temperature=null: wanted a number above 0",
    "data.batch_size=0": "data.batch_size=0: wanted a whole number of at least 1",
    "data.batch_size=1.5": "wanted a whole number",
    "data.download=1": "wanted true or false",
    "data.binarization=dither": "wanted one of dynamic, fixed, threshold, none",
    "network.encoder.hidden=[1,a]": "wanted a list of whole numbers",
    "network.encoder.activation=swosh": "wanted one of relu",
    "network.encoder=3": "wanted a mapping",
    "network=3": "network=3",
    "optimizer.lr=null": "optimizer.lr=null: wanted a number above 0",
    "seed=-1": "wanted a whole number from 0",
    "name=a/b": r"wanted a name that can be a folder.s",
    "+foo=1": "there is no key foo",
    "+estimator.foo=1": "estimator has no key foo",
    "+estimator.sample=1": "did you mean samples",
    "accelerator.devices=0": "wanted a whole number of at least 1",
    "trainer.precision=33": "wanted one of 32-true",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_mistakes_get_one_line_that_names_what_is_accepted(overrides: str, capsys: pytest.CaptureFixture) -> None:
    assert re.search(MISTAKES[overrides], refusal(capsys, "train", *overrides.split()))


def test_rules_agree_with_the_code() -> None:
    """The rules are written out, so that a mistake is answered without importing torch."""
    assert all(ACTIVATION.holds(name) for name in networks.ACTIVATIONS)
    assert ACTIVATION.wanted == "one of " + ", ".join(networks.ACTIVATIONS)
    assert KEYS["data.binarization"].rule.wanted == "one of " + ", ".join(data.BINARIZATIONS)
    assert (*data.SOURCES, "digits") == schema.SOURCES


COMMANDS = ("train", "audit", "evaluate")
OPTIONAL = {"latent": "reinforce", "objective/relaxed": "concrete", "latent/vq": "vq"}


def keys() -> set[str]:
    """Every key that some choice of some group ships, of every command."""
    found = {path for name in COMMANDS for path, _ in leaves(resolved(compose_job(name, [])))}
    for folder in (path for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name != "model"):
        for file in folder.glob("*.yaml"):
            choice = f"{folder.name}/{file.stem}"
            estimator = OPTIONAL.get(choice, OPTIONAL.get(folder.name))
            overrides = [f"{folder.name}={file.stem}", *([f"estimator={estimator}"] if estimator else [])]
            found |= {path for path, _ in leaves(resolved(compose_job("train", overrides)))}
    for file in (CONFIG_DIR / "estimator/baseline").glob("*.yaml"):
        overrides = ["estimator=reinforce", f"estimator/baseline={file.stem}"]
        found |= {path for path, _ in leaves(resolved(compose_job("train", overrides)))}
    return {path for path in found if not path.rpartition(".")[2].startswith("_")}


def test_each_key_has_its_row_and_each_row_a_key() -> None:
    shipped = keys()
    assert sorted(path for path in shipped if row(path) is None) == []
    parts = shipped | {path.split(".")[0] for path in shipped}
    of_hydra = {name for name in KEYS if name.startswith("hydra")}
    unused = [name for name in KEYS if not any(fnmatchcase(path, name) for path in parts)]
    assert sorted(unused) == sorted(of_hydra)


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
