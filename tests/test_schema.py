"""The table of keys: what a value may be, and that it agrees with the code which takes it."""

from __future__ import annotations

import re

import pytest

from tests.support import refusal
from vi_lab import data, networks, schema
from vi_lab.schema import ACTIVATION, KEYS

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
