"""Networks: shapes, sizes, errors."""

from __future__ import annotations

import pytest
import torch

from vi_lab import networks


@pytest.mark.parametrize("name", ["MLP", "Conv"])
def test_networks_have_the_shapes_that_the_latent_asks_for(name: str) -> None:
    shape = (1, 28, 28)
    encoder = getattr(networks, f"{name}Encoder")(shape, 12)
    decoder = getattr(networks, f"{name}Decoder")(7, shape)
    assert encoder(torch.randn(5, *shape)).shape == (5, 12)
    assert decoder(torch.randn(5, 7)).shape == (5, *shape)


def test_mlp_sizes_are_the_seeds() -> None:
    sizes = [m.out_features for m in networks.MLPEncoder((1, 28, 28), 300) if isinstance(m, torch.nn.Linear)]
    assert sizes == [512, 256, 300]
    linear = networks.MLPDecoder(300, (1, 28, 28), hidden=[])
    assert [m.out_features for m in linear if isinstance(m, torch.nn.Linear)] == [784]


def test_network_errors() -> None:
    with pytest.raises(ValueError, match="activation must be one of relu"):
        networks.MLPEncoder((1, 28, 28), 3, activation="swosh")
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        networks.ConvEncoder((1, 28, 28), 3, channels=[4, 8, 16])
