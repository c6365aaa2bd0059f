"""The loops that are compared: the mathematics alone, a tutorial's, and vi_lab's through Lightning."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_tensor

from benchmarks.common import Loop, now
from vi_lab.build import build
from vi_lab.console import make_console
from vi_lab.data import MNISTDataModule
from vi_lab.models import VAE
from vi_lab.training.display import Voice
from vi_lab.training.process import prepare_process
from vi_lab.training.trainer import build_trainer


def made(config: DictConfig) -> tuple[MNISTDataModule, VAE, torch.device]:
    """Data and model of a config, on its device."""
    device = torch.device(prepare_process(config)[0])
    datamodule, model = build(config)
    datamodule.setup()
    datamodule.splits = {name: (x.to(device), y.to(device)) for name, (x, y) in datamodule.splits.items()}
    return datamodule, model.to(device), device


def bare(config: DictConfig, steps: int) -> Loop:
    """The mathematics alone, on one batch that stays in place: with the loss at true samples, which vi_lab logs of
    estimators that relax; of the others it is known."""
    datamodule, model, _ = made(config)
    x, _ = next(iter(datamodule.train_dataloader()))
    optimizer = model.optimizer(model.parameters())

    def block() -> float:
        start = now()
        for _ in range(steps):
            q, nats = model.posterior(x), model.nats(x)
            terms = model.objective(q, model.latent.prior(), nats, model.estimator, x)
            if model.estimator.relaxed:
                model.objective.unrelaxed_given_kl(q, nats, terms.kl).loss.mean()
            optimizer.zero_grad(set_to_none=True)
            (terms.loss.mean() + terms.control_loss).backward()
            optimizer.step()
        return (now() - start) / steps

    torch.manual_seed(0)
    return block


class Samples(torch.utils.data.Dataset):
    """Images as torchvision's data sets give them: a PIL image through ToTensor, one at a time."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.squeeze(1).numpy()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return to_tensor(Image.fromarray(self.images[index]))


def forever(loader: torch.utils.data.DataLoader) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    while True:
        yield from loader


class TutorialVAE(torch.nn.Module):
    """The Gumbel-softmax VAE as tutorials write it (after Jang et al. 2017), in plain PyTorch: a config's sizes, a
    ReLU on the logits and a sigmoid at the end."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__()
        self.variables, self.classes = config.latent.variables, config.latent.classes
        width = self.variables * self.classes
        self.encoder = self.dense(784, *config.network.encoder.hidden, width)
        self.decoder = self.dense(width, *config.network.decoder.hidden, 784)

    @staticmethod
    def dense(*sizes: int) -> torch.nn.ModuleList:
        return torch.nn.ModuleList(torch.nn.Linear(i, o) for i, o in itertools.pairwise(sizes))

    def encode(self, x: Tensor) -> Tensor:
        """(B, 1, 28, 28) -> logits (B, L, C)."""
        for layer in self.encoder:
            x = F.relu(layer(x.flatten(1)))
        return x.view(-1, self.variables, self.classes)

    def decode(self, z: Tensor) -> Tensor:
        """(B, L, C) -> (B, 784) means."""
        *hidden, last = self.decoder
        z = z.flatten(1)
        for layer in hidden:
            z = F.relu(layer(z))
        return torch.sigmoid(last(z))

    def forward(self, x: Tensor, temperature: float, hard: bool = False) -> Tensor:
        """() mean negative ELBO in nats, relaxed, or at hard samples."""
        logits = self.encode(x)
        z = F.gumbel_softmax(logits, temperature, hard=hard)
        nats = F.binary_cross_entropy(self.decode(z), x.flatten(1), reduction="none").sum(-1)
        q = F.softmax(logits, -1)
        kl = (q * torch.log(q * self.classes + 1e-20)).sum((-1, -2))
        return (nats + kl).mean()


def tutorial(config: DictConfig) -> Loop:
    """An epoch as tutorials write it: a DataLoader over PIL images with ToTensor, plain Adam, `.item()` in each step,
    the loss at hard samples beside the relaxed one, and the evaluations that vi_lab does after the epoch."""
    datamodule, _, device = made(config)
    batch, dynamic = config.data.batch_size, config.data.binarization == "dynamic"
    raw = {name: Samples(images.cpu()) for name, (images, _) in datamodule.splits.items()}
    training = torch.utils.data.DataLoader(raw["train"], batch, shuffle=True, drop_last=True)
    evaluated = [
        torch.utils.data.DataLoader(raw[name], config.data.eval_batch_size) for name in datamodule.validation_splits
    ]
    model = TutorialVAE(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def pixels(x: Tensor) -> Tensor:
        x = x.to(device)
        return torch.bernoulli(x) if dynamic else x

    def epoch() -> float:
        start = now()
        relaxed = unrelaxed = 0.0
        for x in map(pixels, training):
            optimizer.zero_grad()
            loss = model(x, config.temperature)
            loss.backward()
            optimizer.step()
            relaxed += loss.item()
            with torch.no_grad():
                unrelaxed += model(x, config.temperature, hard=True).item()
        with torch.no_grad():
            for loader in evaluated:
                sum(model(x, config.temperature, hard=True).item() for x in map(pixels, loader))
        return now() - start

    return epoch


class Stopwatch(Callback):
    """When the parts of an epoch begin and end. To stand before the checkpoints, which come last."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: object) -> None:
        self.at["start"] = now()

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        self.at["trained"] = now()

    def on_validation_start(self, trainer: Trainer, pl_module: object) -> None:
        self.at["evaluation"] = now()

    def on_validation_end(self, trainer: Trainer, pl_module: object) -> None:
        self.at["evaluated"] = now()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: object) -> None:
        self.at["checkpoint"] = now()

    def on_train_end(self, trainer: Trainer, pl_module: object) -> None:
        self.at["end"] = now()


class Fit:
    """Epochs of `vi-lab train` as its session fits them, each with a trainer of its own, so that others can take turns;
    the model goes on from the last.

    Args:
        steps: so many in place of an epoch, without evaluation; None: the whole epoch.
    """

    def __init__(self, config: DictConfig, scratch: Path, steps: int | None = None) -> None:
        part = {"limit_val_batches": 0, "limit_train_batches": steps} if steps else {}
        self.config = OmegaConf.merge(config, {"trainer": {"max_epochs": 1, **part}})
        self.scratch = scratch
        prepare_process(self.config)
        self.datamodule, self.model = build(self.config)
        self.datamodule.load()
        self.steps = 0
        """Of the last epoch."""
        self.rounds: list[dict[str, float]] = []
        """Seconds of each epoch by part: training, evaluation, checkpoint, and what else is between them."""

    def trainer(self) -> Trainer:
        """A trainer in a folder of its own."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        return build_trainer(self.config, folder, Voice(make_console(quiet=True)))[0]

    def epoch(self) -> float:
        """Seconds of a whole epoch."""
        trainer, watch = self.trainer(), Stopwatch()
        trainer.callbacks.insert(-1, watch)
        trainer.fit(self.model, self.datamodule)
        at, self.steps = watch.at, trainer.global_step
        evaluation = at["evaluated"] - at["evaluation"] if "evaluated" in at else 0.0
        training, checkpoint = at["trained"] - at["start"], at["end"] - at["checkpoint"]
        whole = at["end"] - at["start"]
        self.rounds.append(
            {
                "training": training,
                "evaluation": evaluation,
                "checkpoint": checkpoint,
                "between these": whole - training - evaluation - checkpoint,
            }
        )
        return whole

    def block(self) -> float:
        """Seconds of a training step, evaluation and checkpoint left out."""
        self.epoch()
        return self.rounds[-1]["training"] / self.steps
