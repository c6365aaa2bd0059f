"""Small models to draw, and the pictures that there are of each kind."""

from __future__ import annotations

from omegaconf import DictConfig

from tests.support import compose
from vi_lab.build import build
from vi_lab.data import MNISTDataModule
from vi_lab.models import VAE

SMALL = ["data=digits", "trainer.max_epochs=1", "accelerator=cpu", "threads=1", "evaluation.samples=null"]
TINY = ["network.encoder.hidden=[16]", "network.decoder.hidden=[16]"]
ALWAYS = {"data", "reconstructions", "samples", "history", "interpolations"}
KINDS = {
    "categorical": (["latent=4x8"], {"relaxation", "code_usage", "codes", "tsne"}),
    "bernoulli": (["estimator=rloo", "latent=bernoulli", "latent.variables=25"], {"code_usage", "codes", "tsne"}),
    "vq": (["estimator=vq", "latent.variables=3", "latent.classes=24"], {"code_usage", "codes", "tsne"}),
    "plane": (["estimator=gaussian", "latent.dim=2"], {"manifold", "latent", "traversals"}),
    "gaussian": (["estimator=gaussian", "latent.dim=5"], {"traversals", "tsne"}),
    "line": (["estimator=gaussian", "latent.dim=1"], {"traversals", "tsne"}),
}


def config(*overrides: str) -> DictConfig:
    tiny = [] if "network=conv" in overrides else TINY
    return compose(*SMALL, *tiny, *overrides)


def untrained(*overrides: str) -> tuple[VAE, MNISTDataModule]:
    datamodule, model = build(config(*overrides))
    datamodule.setup()
    return model, datamodule
