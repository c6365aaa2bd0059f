"""What tests share: small configs, short runs, and data in files. No test imports another test."""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import json
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from vi_lab import cli
from vi_lab.config import check_overrides
from vi_lab.schema import CONFIG_DIR

SMALL = ["data=digits", "trainer.max_epochs=2", "figures=false", "network.encoder.hidden=[16]",
         "network.decoder.hidden=[16]", "accelerator=cpu", "threads=1", "trainer.log_every_n_steps=5",
         "evaluation.samples=10"]  # fmt: skip
TIME_LIMIT = 600
"""Seconds that a process may take; ends what hangs, measures nothing: the longest takes 30 s on an idle machine."""
REAL_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
ESTIMATORS = sorted(path.stem for path in (CONFIG_DIR / "estimator").glob("*.yaml"))


@functools.cache
def _composed(*overrides: str) -> dict:
    return check_overrides("train", list(overrides), multirun=False)[0]


def composed(*overrides: str) -> dict:
    """The checked values of one run, as given. Composing takes Hydra long, so the same overrides are composed once."""
    return copy.deepcopy(_composed(*overrides))


def compose(*overrides: str) -> DictConfig:
    """The checked config of one run, as given."""
    return OmegaConf.create(composed(*overrides))


def config(*overrides: str) -> DictConfig:
    """The checked config of a small run."""
    return compose(*SMALL, *overrides)


def run(values: DictConfig, folder: Path, **options: Any) -> float:
    """Train in this process, without a lock or a status; see `vi_lab.training.session.Session`."""
    from vi_lab.training.session import Session

    folder.mkdir(parents=True, exist_ok=True)
    return Session(values, folder, **options).train()


def train(folder: Path, *overrides: str) -> dict[str, float]:
    """Train a small run; its final metrics."""
    run(config(*overrides), folder)
    return json.loads((folder / "metrics.json").read_text())


def store(checkpoint: Any, file: Path) -> None:
    """Write any object as a checkpoint file, digest included, with nothing kept of what stood there."""
    from vi_lab.training.checkpoints import AtomicCheckpointIO

    file.unlink(missing_ok=True)
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)


def read_rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv as it stands."""
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def write_idx(folder: Path, train: int = 300, test: int = 100, name: str = "MNIST") -> Path:
    """Random images in the idx files that torchvision reads: FOLDER/NAME/raw/... Returns FOLDER."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("t10k", test)):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), dtype=torch.uint8, generator=generator)
        header = struct.pack(">IIII", 0x0803, count, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        header = struct.pack(">II", 0x0801, count)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())
    return folder


def refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line with which `vi-lab` refuses a user's mistake, before it says anything else."""
    assert cli.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def small_vae(latent: Any, estimator: Any, objective: Any = None, **arguments: Any) -> Any:
    """A VAE of linear networks on 28 x 28 images, made without a config."""
    from vi_lab import likelihoods, networks
    from vi_lab.models import VAE
    from vi_lab.objectives import ELBO

    torch.manual_seed(0)
    shape = (1, 28, 28)
    encoder = networks.MLPEncoder(shape, latent.feature_size, [])
    decoder = networks.MLPDecoder(latent.size, shape, [])
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    return VAE(
        latent, encoder, decoder, likelihoods.Bernoulli(), objective or ELBO(), estimator, optimizer, **arguments
    )


@contextlib.contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen]:
    """A process whose output is read while it runs; ended at the end, and after `TIME_LIMIT` so that no read hangs."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        limit = threading.Timer(TIME_LIMIT, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            process.kill()
