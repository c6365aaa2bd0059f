"""The example package, installed into a folder of its own: found, trained with, evaluated and opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from tests.support import TIME_LIMIT

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "examples" / "plugin"
SMALL = ["trainer.max_epochs=1", "figures=false", "evaluation.samples=20", "accelerator=cpu", "threads=1",
         "network=mlp_small"]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a process that has the package, built as a user would build it."""
    source = tmp_path_factory.mktemp("source") / "plugin"  # the build leaves nothing in the checkout
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__", "build", "dist"))
    target = tmp_path_factory.mktemp("installed")
    installers = {"uv": ["uv", "pip", "install", "--python", sys.executable], "pip": ["pip", "install"]}
    installer = next((command for module, command in installers.items() if util.find_spec(module)), None)
    if installer is None:
        pytest.skip("there is neither uv nor pip")
    command = [sys.executable, "-m", *installer, "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, text=True)
    assert (target / "vi_lab_example" / "configs" / "data" / "bars.yaml").is_file()
    assert not (target / "vi_lab").exists()
    paths = [str(target), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {name: value for name, value in os.environ.items() if name != "VI_LAB_TRUST"}
    return {**variables, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def python(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


EVALUATE_AND_OPEN = """
from vi_lab import load_run
from vi_lab.cli import main

assert main(["evaluate", "run=run", "evaluation.samples=10", "threads=1"]) == 0
r = load_run("run")
parts = r.model.estimator, r.model.latent, r.datamodule
print(r.state, tuple(r.sample(3).shape), *(type(part).__module__ for part in parts))
"""
CHOICES = {
    "estimator": ["estimator=tempered_straight_through", "temperature=0.5", "data=digits"],
    "latent": ["estimator=gaussian", "latent=correlated_gaussian", "latent.dim=4", "data=digits"],
    "data": ["data=bars"],
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES.values(), ids=list(CHOICES))
def test_the_plugin(environment: dict[str, str], tmp_path: Path, choice: list[str]) -> None:
    """Train, evaluate, open: without --config-dir and without VI_LAB_TRUST."""
    python(environment, tmp_path, "-m", "vi_lab", "train", *choice, *SMALL, "hydra.run.dir=run")
    assert (tmp_path / "run" / "metrics.json").is_file()
    opened = python(environment, tmp_path, "-c", EVALUATE_AND_OPEN).splitlines()[-1]
    assert opened.startswith("completed (3, 1, ")
    assert "vi_lab_example" in opened


def test_its_choices_are_listed(environment: dict[str, str], tmp_path: Path) -> None:
    text = python(environment, tmp_path, "-m", "vi_lab", "train", "--help")
    for choice in ("tempered_straight_through", "correlated_gaussian", "bars"):
        assert choice in text


MATHEMATICS = """
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, OneHotCategorical, kl_divergence
from vi_lab_example.data import Bars
from vi_lab_example.estimators import TemperedStraightThrough
from vi_lab_example.latents import CorrelatedGaussian
from vi_lab.estimators import StraightThrough

# the registered KL is that of full covariance matrices
p = CorrelatedGaussian(dim=5, correlation=0.6).prior()
q = Independent(Normal(torch.randn(3, 5), torch.rand(3, 5) + 0.2), 1)
full = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
torch.testing.assert_close(
    kl_divergence(q, p), kl_divergence(full, MultivariateNormal(torch.zeros(5), p.covariance_matrix))
)
assert torch.allclose(p.covariance_matrix[0], 0.6 ** torch.arange(5.0), atol=1e-6)

# at temperature 1 the estimator is straight-through; elsewhere it is what its equation says
logits = torch.randn(2, 3, 4, requires_grad=True)

def gradient(estimator):
    q = Independent(OneHotCategorical(logits=logits), 1)
    torch.manual_seed(0)
    estimate = estimator(q, lambda z: (z - 0.3).pow(4).sum((-1, -2)))
    return estimate.loss.detach(), torch.autograd.grad(estimate.loss.sum(), logits)[0]

for ours, theirs in zip(gradient(TemperedStraightThrough()), gradient(StraightThrough())):
    torch.testing.assert_close(ours, theirs)
value, tempered = gradient(TemperedStraightThrough(temperature=0.5))
torch.testing.assert_close(value, gradient(StraightThrough())[0])  # the value is a true sample's
from vi_lab.distributions import sample
torch.manual_seed(0)
z = sample(Independent(OneHotCategorical(logits=logits), 1), 1)[0]
p, slope = (logits.detach() / 0.5).softmax(-1), 4 * (z - 0.3).pow(3)
torch.testing.assert_close(tempered, p * (slope - (p * slope).sum(-1, keepdim=True)) / 0.5)

# the data do not depend on the seed
first, second = (Bars(source="bars", root=None, validation=200, binarization="none", seed=s) for s in (0, 1))
assert first.checksum() == second.checksum()
assert first.load().train_images.shape == (2000, 1, 16, 16)
"""


@pytest.mark.slow
def test_its_mathematics(environment: dict[str, str], tmp_path: Path) -> None:
    python(environment, tmp_path, "-c", MATHEMATICS)
