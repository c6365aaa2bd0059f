"""The loops of benchmarks/peers.py, one in each process: reads a line, does a block of steps, answers with the seconds
of a step.

    python -m benchmarks.peer_loops NAME STEPS FOLDER [overrides of vi-lab train]
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import Loop, compose
from benchmarks.loops import Fit, Samples, Stopwatch, forever
from vi_lab.build import build
from vi_lab.training.process import prepare_process

COMMON = ("estimator=gaussian", "accelerator=cpu", "data.binarization=none", "data.validation=0")
BATCH, SIZES, LATENT, RATE = 100, (784, 512, 256), 20, 1e-3


def encoder() -> nn.Sequential:
    """784 pixels -> mean and log variance."""
    wide, narrow = SIZES[1:]
    layers = nn.Linear(SIZES[0], wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, 2 * LATENT)
    return nn.Sequential(nn.Flatten(), *layers)


def decoder() -> nn.Sequential:
    """z -> logits of 784 pixels."""
    wide, narrow = SIZES[1:]
    layers = nn.Linear(LATENT, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, SIZES[0])
    return nn.Sequential(*layers)


def vi_lab(config: DictConfig, images: Tensor, steps: int, folder: Path) -> Loop:
    """`vi-lab train`, through Lightning."""
    return Fit(config, folder, steps).block


def pyro(config: DictConfig, images: Tensor, steps: int, folder: Path) -> Loop:
    """`SVI.step` on the batches of a DataLoader, as in Pyro's VAE tutorial (pyro-ppl/pyro, examples/vae)."""
    import pyro as library
    from pyro import distributions
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    networks = nn.ModuleDict({"encoder": encoder(), "decoder": decoder()})

    def model(x: Tensor) -> None:
        library.module("decoder", networks["decoder"])
        with library.plate("data", len(x)):
            standard = x.new_zeros(len(x), LATENT), x.new_ones(len(x), LATENT)
            z = library.sample("z", distributions.Normal(*standard).to_event(1))
            logits = networks["decoder"](z)
            # gray pixels are outside of a Bernoulli's support
            pixels = distributions.Bernoulli(logits=logits, validate_args=False)
            library.sample("x", pixels.to_event(1), obs=x.flatten(1))

    def guide(x: Tensor) -> None:
        library.module("encoder", networks["encoder"])
        with library.plate("data", len(x)):
            mean, log_variance = networks["encoder"](x).chunk(2, 1)
            library.sample("z", distributions.Normal(mean, (log_variance / 2).exp()).to_event(1))

    inference = SVI(model, guide, Adam({"lr": RATE}), loss=Trace_ELBO())
    batches = forever(DataLoader(TensorDataset(images), BATCH, shuffle=True, drop_last=True))

    def block() -> float:
        start, loss = time.perf_counter(), 0.0
        for _ in range(steps):
            loss += inference.step(next(batches)[0])
        return (time.perf_counter() - start) / steps

    return block


class Experiment(LightningModule):
    """A VAE in the way of PyTorch-VAE (github.com/AntixK/PyTorch-VAE, experiment.py and models/vanilla_vae.py): mean,
    log variance, reparameterization, and a dictionary of losses of which each is read and logged in each step. Its
    convolutions and its squared error are this comparison's MLP and cross-entropy here."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(), decoder()

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        pixels = F.binary_cross_entropy_with_logits(self.decoder(z), x.flatten(1), reduction="none").sum(1).mean()
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        losses = {"loss": pixels + divergence, "reconstruction": pixels.detach(), "kl": divergence.detach()}
        self.log_dict({name: value.item() for name, value in losses.items()}, sync_dist=True)
        return losses["loss"]

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE, weight_decay=0.0)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.95)]


def pytorch_vae(config: DictConfig, images: Tensor, steps: int, folder: Path) -> Loop:
    """Lightning's Trainer with the logger and callbacks of PyTorch-VAE's run.py, and a loader without workers, as is
    the default of its data module; no progress bar."""
    module = Experiment()
    loader = DataLoader(Samples((images * 255).byte()), BATCH, shuffle=True, drop_last=True)

    def block() -> float:
        watch = Stopwatch()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=steps,
            logger=TensorBoardLogger(str(folder), name="pytorch_vae"),
            callbacks=[LearningRateMonitor(), ModelCheckpoint(save_top_k=2, save_last=True, monitor="loss"), watch],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        return (watch.at["trained"] - watch.at["start"]) / trainer.global_step

    return block


def pythae(config: DictConfig, images: Tensor, steps: int, folder: Path) -> Loop:
    """`BaseTrainer.train_step`, which is an epoch, on as many images as a block has."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = encoder()

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_variance = self.layers(x).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = decoder()

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z).sigmoid().unflatten(1, (1, 28, 28)))

    shape = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    data = BaseDataset(images[: steps * BATCH], torch.zeros(len(images[: steps * BATCH])))
    settings = BaseTrainerConfig(
        output_dir=str(folder), per_device_train_batch_size=BATCH, learning_rate=RATE, no_cuda=True
    )
    trainer = BaseTrainer(VAE(shape, Encoder(), Decoder()), data, training_config=settings)
    trainer.prepare_training()

    def block() -> float:
        start = time.perf_counter()
        trainer.train_step(epoch=1)
        return (time.perf_counter() - start) / len(trainer.train_loader)

    return block


def jax(config: DictConfig, images: Tensor, steps: int, folder: Path) -> Loop:
    """A block in one compiled call: `lax.scan` over batches of an order drawn on the device, Adam written out."""
    import jax as library
    from jax import lax, nn, random
    from jax import numpy as jnp

    pixels = jnp.asarray(images.flatten(1).numpy())
    wide = (*SIZES, 2 * LATENT), (LATENT, *SIZES[::-1])

    def dense(key: library.Array, inputs: int, outputs: int) -> tuple[library.Array, library.Array]:
        bound = inputs**-0.5  # as torch.nn.Linear begins
        return random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound), jnp.zeros(outputs)

    def network(key: library.Array, sizes: tuple[int, ...]) -> list[tuple[library.Array, library.Array]]:
        keys = random.split(key, len(sizes) - 1)
        return [dense(one, *pair) for one, pair in zip(keys, itertools.pairwise(sizes), strict=True)]

    def apply(layers: list, x: library.Array) -> library.Array:
        for weight, bias in layers[:-1]:
            x = nn.relu(x @ weight + bias)
        weight, bias = layers[-1]
        return x @ weight + bias

    def loss(parameters: tuple, x: library.Array, key: library.Array) -> library.Array:
        mean, log_variance = jnp.split(apply(parameters[0], x), 2, axis=1)
        z = mean + random.normal(key, mean.shape) * jnp.exp(log_variance / 2)
        logits = apply(parameters[1], z)
        cost = (nn.softplus(logits) - x * logits).sum(1)
        divergence = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum(1)
        return (cost + divergence).mean()

    each = library.tree_util.tree_map

    def step(state: tuple, inputs: tuple) -> tuple:
        parameters, first, second, count = state
        index, key = inputs
        value, gradient = library.value_and_grad(loss)(parameters, pixels[index], key)
        count += 1
        first = each(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = each(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)
        rate = RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        parameters = each(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), parameters, first, second)
        return (parameters, first, second, count), value

    @library.jit
    def train(state: tuple, key: library.Array) -> tuple:
        order, noise = random.split(key)
        index = random.permutation(order, len(pixels))[: steps * BATCH].reshape(steps, BATCH)
        return lax.scan(step, state, (index, random.split(noise, steps)))

    first, second, key = random.split(random.PRNGKey(0), 3)
    parameters = network(first, wide[0]), network(second, wide[1])
    zeros = each(jnp.zeros_like, parameters)
    state = parameters, zeros, zeros, jnp.zeros(())

    def block() -> float:
        nonlocal state, key
        key, own = random.split(key)
        start = time.perf_counter()
        state, losses = train(state, own)
        losses.block_until_ready()
        return (time.perf_counter() - start) / steps

    return block


LOOPS = {"vi_lab": vi_lab, "pyro": pyro, "pytorch_vae": pytorch_vae, "pythae": pythae, "jax": jax}


def requests() -> Iterator[str]:
    """The lines of stdin."""
    return iter(sys.stdin.readline, "")


def main() -> int:
    name, steps, folder, *overrides = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    config = compose(*overrides, *COMMON, f"data.batch_size={BATCH}")
    prepare_process(config)
    images = build(config)[0].load().train_images.float().div(255)
    block = LOOPS[name](config, images, min(int(steps), len(images) // BATCH), Path(folder))
    for _ in requests():
        print(block(), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
