"""With which weights a run begins, beyond the random ones of its seed: what follows from the training images, and those
of another run."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from vi_lab.errors import UserError, one_line
from vi_lab.models import VAE
from vi_lab.networks import Centered, set_output_bias
from vi_lab.runs.run import Run
from vi_lab.runs.trust import LARGEST_CHECKPOINT, load_checkpoint, read_bytes

if TYPE_CHECKING:
    from vi_lab.data import MNISTDataModule


def center(config: DictConfig, model: VAE, datamodule: MNISTDataModule) -> None:
    """What the options `network.center` and `network.output_bias` set by the mean of the training images.

    Raises:
        UserError: the data module has no mean, the likelihood no output of a mean, or the decoder no last bias.
    """
    if not (config.network.center or config.network.output_bias):
        return
    if not hasattr(datamodule, "mean_image"):
        raise UserError(f"network.center and network.output_bias: {type(datamodule).__name__} has no mean_image()")
    mean = datamodule.mean_image()
    if isinstance(model.encoder, Centered):
        model.encoder.mean.copy_(mean)
    if config.network.output_bias:
        try:
            set_output_bias(model.decoder, model.likelihood.output_of(mean))
        except (ValueError, NotImplementedError, AttributeError) as error:  # the last of a likelihood of one's own
            raise UserError(f"network.output_bias=true: {one_line(error)}; leave it out") from error


class Source:
    """Another run, whose last weights a model begins with.

    Args:
        folder: of the run.

    Raises:
        UserError: no run folder, one of another version, or weights that are not finite.
        ViLabError: its checkpoint is absent or damaged.
    """

    def __init__(self, folder: str) -> None:
        self.run = Run(folder)
        self.estimator: str = self.run.config.estimator._target_
        file = self.run.checkpoint()
        self.weights: dict[str, Tensor] = load_checkpoint(file)["state_dict"]
        if not all(weights.isfinite().all() for weights in self.weights.values()):
            raise UserError(f"init_from={folder}: its weights are not finite; give another run")
        self.digest = hashlib.sha256(read_bytes(file, LARGEST_CHECKPOINT)).hexdigest()

    def record(self) -> dict[str, str]:
        """For the snapshot of the run that begins."""
        return {"run": str(self.run.folder.resolve()), "sha256": self.digest}

    def fitting(self, model: VAE, estimator: str) -> tuple[dict[str, Any], set[str]]:
        """The weights for a model, and which of its parts begin anew, as `ANEW` calls them. Numbers of the config that
        are kept as buffers, such as a fixed scale, are the model's own.

        Args:
            estimator: the model's, as its config has it.

        Raises:
            UserError: weights of another part do not fit; names the first.
        """
        own = model.state_dict()
        misfits = [name for name in {**own, **self.weights} if _shape(own, name) != _shape(self.weights, name)]
        for name in misfits:
            if _part(name) is None:
                raise UserError(
                    f"init_from={self.run.folder}: its weights do not fit this model: {name} is "
                    f"{_shown(self.weights, name)} there and {_shown(own, name)} here; give the latent, network and "
                    "likelihood of that run"
                )
        numbers = {name for name, _ in model.named_buffers() if name.startswith("likelihood.") or "temperature" in name}
        anew = {_part(name) for name in misfits} | ({"estimator"} if estimator != self.estimator else set())
        theirs = {n: value for n, value in self.weights.items() if _part(n) not in anew and n not in numbers}
        return {**own, **theirs}, {part for name in own if (part := _part(name)) is not None and part in anew}

    def fill(self, model: VAE, config: DictConfig) -> str:
        """Load the weights. Returns a line that says so.

        Raises:
            UserError: they do not fit.
        """
        weights, anew = self.fitting(model, config.estimator._target_)
        if str(config.trainer.precision).startswith("64"):
            model.double()  # loading would round
        model.load_state_dict(weights)
        parts = " and ".join(f"the {part}" for part in sorted(anew))
        return f"begins with the weights of {self.run.folder}" + (
            f"; what {parts} learns begins anew, as that run had another one" if anew else ""
        )


ANEW = {"estimator.": "estimator", "deeper.": "estimator", "p_z.": "prior"}
"""How the names of weights begin which begin anew where the other run had another such part."""


def _part(name: str) -> str | None:
    return next((part for start, part in ANEW.items() if name.startswith(start)), None)


def _shape(weights: dict[str, Any], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _shown(weights: dict[str, Any], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "absent"
