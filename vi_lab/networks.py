"""Encoder and decoder bodies: images to features, flat latents to images. No probability in them.

Encoders map (N, *shape) -> (N, feature_size); decoders (N, latent size) -> (N, *shape), where the likelihood may ask
for a multiple of the image's channels. Their sizes at the latent's side are given by the latent, so a network config
holds only what is the network's own. `norm` is None, or "layer": layer normalization before each activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,  # of slope 0.01 below 0
    "leaky_relu_0.2": partial(nn.LeakyReLU, 0.2),
    "leaky_relu_0.3": partial(nn.LeakyReLU, 0.3),
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def activation_module(name: str) -> nn.Module:
    """The activation called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    return ACTIVATIONS[name]()


def _dense(sizes: Sequence[int], activation: str, norm: str | None) -> list[nn.Module]:
    """Linear layers through `sizes` with activations between them, none after the last."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [*_norm(norm, inputs, nn.LayerNorm), activation_module(activation)] if i else []
        layers += [nn.Linear(inputs, outputs)]
    return layers


def _norm(name: str | None, size: int, layer: Callable[[int], nn.Module]) -> list[nn.Module]:
    """The normalization called `name`, of so many features; none where it is None."""
    if name not in (None, "layer"):
        raise ValueError(f"norm must be null or layer; got {name!r}")
    return [layer(size)] if name else []


def _layer_norm_of_images(channels: int) -> nn.Module:
    """Layer normalization over channels and places together, with a weight per channel."""
    return nn.GroupNorm(1, channels)


def _before(activation: str, norm: str | None, channels: int) -> list[nn.Module]:
    return [*_norm(norm, channels, _layer_norm_of_images), activation_module(activation)]


class MLPEncoder(nn.Sequential):
    """Flatten, then dense layers. `output_activation` is for reproducing set-ups that put one on the logits."""

    def __init__(
        self,
        shape: Sequence[int],
        feature_size: int,
        hidden: Sequence[int] = (512, 256),
        activation: str = "relu",
        output_activation: str | None = None,
        norm: str | None = None,
    ) -> None:
        last = [activation_module(output_activation)] if output_activation else []
        super().__init__(nn.Flatten(), *_dense([math.prod(shape), *hidden, feature_size], activation, norm), *last)


class MLPDecoder(nn.Sequential):
    """Dense layers, then the image's shape."""

    def __init__(
        self,
        latent_size: int,
        shape: Sequence[int],
        hidden: Sequence[int] = (256, 512),
        activation: str = "relu",
        norm: str | None = None,
    ) -> None:
        dense = _dense([latent_size, *hidden, math.prod(shape)], activation, norm)
        super().__init__(*dense, nn.Unflatten(-1, tuple(shape)))


class ConvEncoder(nn.Sequential):
    """4x4 convolutions of stride 2, then one linear layer. Image sides must divide by 2^len(channels)."""

    def __init__(
        self,
        shape: Sequence[int],
        feature_size: int,
        channels: Sequence[int] = (32, 64),
        activation: str = "relu",
        norm: str | None = None,
    ) -> None:
        depth, height, width = _conv_grid(shape, len(channels))
        layers: list[nn.Module] = []
        for inputs, outputs in zip([shape[0], *channels], channels, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), *_before(activation, norm, outputs)]
        size = (channels[-1] if channels else depth) * height * width
        super().__init__(*layers, nn.Flatten(), nn.Linear(size, feature_size))


class ConvDecoder(nn.Sequential):
    """One linear layer, then 4x4 transposed convolutions of stride 2: the mirror of `ConvEncoder`."""

    def __init__(
        self,
        latent_size: int,
        shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: str = "relu",
        norm: str | None = None,
    ) -> None:
        _, height, width = _conv_grid(shape, len(channels))
        if not channels:
            raise ValueError("a convolutional decoder needs at least one entry in channels; use network=linear")
        layers: list[nn.Module] = [
            nn.Linear(latent_size, channels[0] * height * width),
            nn.Unflatten(-1, (channels[0], height, width)),
        ]
        for inputs, outputs in zip(channels, [*channels[1:], shape[0]], strict=True):
            layers += [
                *_before(activation, norm, inputs),
                nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1),
            ]
        super().__init__(*layers)


class Residual(nn.Module):
    """x + convolutions(x): 3x3, twice, each after normalization and activation (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, channels: int, activation: str, norm: str | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [*_before(activation, norm, channels), nn.Conv2d(channels, channels, 3, padding=1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.body(x)


class ResNetEncoder(nn.Sequential):
    """For each entry of `channels` a 4x4 convolution of stride 2 and `blocks` of `Residual`; then one linear layer.
    Image sides must divide by 2^len(channels)."""

    def __init__(
        self,
        shape: Sequence[int],
        feature_size: int,
        channels: Sequence[int] = (64, 128),
        blocks: int = 2,
        activation: str = "silu",
        norm: str | None = "layer",
    ) -> None:
        depth, height, width = _conv_grid(shape, len(channels))
        if not channels:
            raise ValueError("a residual encoder needs at least one entry in channels; use network=linear")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([depth, *channels]):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)]
            layers += [Residual(outputs, activation, norm) for _ in range(blocks)]
        layers += [*_before(activation, norm, channels[-1]), nn.Flatten()]
        super().__init__(*layers, nn.Linear(channels[-1] * height * width, feature_size))


class ResNetDecoder(nn.Sequential):
    """The mirror of `ResNetEncoder`: for each entry of `channels`, `blocks` of `Residual`, then the sides doubled by
    repeating pixels, which leaves no checkerboard, and a 3x3 convolution."""

    def __init__(
        self,
        latent_size: int,
        shape: Sequence[int],
        channels: Sequence[int] = (128, 64),
        blocks: int = 2,
        activation: str = "silu",
        norm: str | None = "layer",
    ) -> None:
        _, height, width = _conv_grid(shape, len(channels))
        if not channels:
            raise ValueError("a residual decoder needs at least one entry in channels; use network=linear")
        layers: list[nn.Module] = [
            nn.Linear(latent_size, channels[0] * height * width),
            nn.Unflatten(-1, (channels[0], height, width)),
        ]
        for inputs, outputs in pairwise([*channels, channels[-1]]):
            layers += [Residual(inputs, activation, norm) for _ in range(blocks)]
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1)]
        last = nn.Conv2d(channels[-1], shape[0], 3, padding=1)
        super().__init__(*layers, *_before(activation, norm, channels[-1]), last)


def _conv_grid(shape: Sequence[int], depth: int) -> tuple[int, int, int]:
    """The image's channels and its height and width after `depth` halvings."""
    channels, height, width = shape
    if height % 2**depth or width % 2**depth:
        raise ValueError(f"images of {height}x{width} cannot be halved {depth} times; use fewer channels entries")
    return channels, height // 2**depth, width // 2**depth


class Centered(nn.Module):
    """A network that sees x less the mean of the training images.

    Args:
        body: the network.
        shape: of an image. The mean, a buffer, is 0 until it is set.
    """

    mean: Tensor

    def __init__(self, body: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.zeros(*shape))

    def forward(self, x: Tensor) -> Tensor:
        """What the network gives for (N, *shape)."""
        return self.body(x - self.mean)


@torch.no_grad()
def set_output_bias(decoder: nn.Module, output: Tensor) -> None:
    """Have a decoder's last bias give `output` where its last weights give nothing.

    Args:
        decoder: with a bias per pixel, or per channel, in its last layer.
        output: (*shape), of one image.

    Raises:
        ValueError: it has no such bias.
    """
    layers = [layer for layer in decoder.modules() if [*layer.parameters(recurse=False)]]
    bias = getattr(layers[-1], "bias", None) if layers else None
    if isinstance(bias, Tensor) and bias.numel() == output.numel():
        bias.copy_(output.reshape(bias.shape))
    elif isinstance(bias, Tensor) and bias.shape == output.shape[:1]:
        bias.copy_(output.flatten(1).mean(1))
    else:
        found = "none" if not isinstance(bias, Tensor) else f"one of shape {tuple(bias.shape)}"
        raise ValueError(
            f"wanted a bias for each of {output.numel()} pixels, or of {len(output)} channels, in the last layer of "
            f"{type(decoder).__name__}, got {found}"
        )
