"""Networks: shapes, sizes, errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from tests.support import compose
from vi_lab import networks
from vi_lab.build import build
from vi_lab.errors import UserError
from vi_lab.seeding import INIT, fold
from vi_lab.training.rehearsal import rehearse


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


def test_the_slopes_of_leaky_relu() -> None:
    for name, slope in (("leaky_relu", 0.01), ("leaky_relu_0.2", 0.2), ("leaky_relu_0.3", 0.3)):
        below = networks.activation_module(name)(torch.tensor([-2.0, 3.0]))
        torch.testing.assert_close(below, torch.tensor([-2 * slope, 3.0]))


def test_network_errors() -> None:
    with pytest.raises(ValueError, match="activation must be one of relu"):
        networks.MLPEncoder((1, 28, 28), 3, activation="swosh")
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        networks.ConvEncoder((1, 28, 28), 3, channels=[4, 8, 16])


@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 20), (2, 8, 4)])
def test_residual_networks_have_the_shapes_that_the_latent_asks_for(shape: tuple[int, ...], norm: str | None) -> None:
    encoder = networks.ResNetEncoder(shape, 12, channels=[4, 8], blocks=1, norm=norm)
    decoder = networks.ResNetDecoder(7, shape, channels=[8, 4], blocks=1, norm=norm)
    assert encoder(torch.randn(5, *shape)).shape == (5, 12)
    assert decoder(torch.randn(5, 7)).shape == (5, *shape)
    norms = [m for m in [*encoder.modules(), *decoder.modules()] if isinstance(m, torch.nn.GroupNorm)]
    assert len(norms) == (0 if norm is None else 10)  # two in each of four blocks, one at the end of each side


def test_a_residual_block_that_adds_nothing_is_the_identity() -> None:
    block = networks.Residual(3, "relu", "layer")
    torch.nn.init.zeros_(block.body[-1].weight)
    torch.nn.init.zeros_(block.body[-1].bias)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["MLP", "Conv"])
def test_layer_norm_is_an_option_that_leaves_nothing_behind_when_it_is_off(name: str) -> None:
    encoder, decoder = getattr(networks, f"{name}Encoder"), getattr(networks, f"{name}Decoder")
    shape = (1, 8, 8)
    for make in (lambda **options: encoder(shape, 3, **options), lambda **options: decoder(3, shape, **options)):
        torch.manual_seed(0)
        plain = make()
        torch.manual_seed(0)
        off = make(norm=None)
        assert {k: v.tolist() for k, v in plain.state_dict().items()} == {
            k: v.tolist() for k, v in off.state_dict().items()
        }
        kinds = [type(module).__name__ for module in make(norm="layer")]
        layer = "LayerNorm" if name == "MLP" else "GroupNorm"
        acts = [kinds.index("ReLU", i) for i, kind in enumerate(kinds) if kind == layer]
        assert kinds.count(layer) == kinds.count("ReLU") == len(acts) > 0
        assert all(kinds[place + 1] == "ReLU" for place, kind in enumerate(kinds) if kind == layer)


def test_an_unknown_norm_and_sides_that_do_not_halve() -> None:
    with pytest.raises(ValueError, match="norm must be null or layer; got 'batch'"):
        networks.MLPEncoder((1, 8, 8), 3, norm="batch")
    with pytest.raises(ValueError, match="images of 30x30 cannot be halved 2 times"):
        networks.ResNetDecoder(3, (3, 30, 30))
    with pytest.raises(ValueError, match="needs at least one entry in channels"):
        networks.ResNetEncoder((3, 32, 32), 3, channels=[])


OWN = """
from torch import nn
import torch, math

class Encoder(nn.Sequential):
    def __init__(self, shape, feature_size, wrong=0):
        size = math.prod(shape)
        super().__init__(nn.Flatten(), nn.BatchNorm1d(size), nn.Linear(size, feature_size + wrong))

class Decoder(nn.Sequential):
    def __init__(self, latent_size, shape, wrong=0):
        super().__init__(nn.Linear(latent_size + wrong, math.prod(shape)), nn.Unflatten(-1, tuple(shape)))

class Flat(nn.Linear):
    def __init__(self, latent_size, shape):
        super().__init__(latent_size, math.prod(shape))

class Pair(nn.Module):
    def __init__(self, shape, feature_size):
        super().__init__()
    def forward(self, x):
        return x, x

def plain(shape, feature_size):
    return len
"""
MISFITS = {
    "network.encoder._target_=own_nets.Encoder +network.encoder.wrong=1":
        r"network\.encoder\._target_=own_nets\.Encoder: wanted \(2, 32\) from an input of shape \(2, 1, 28, 28\), "
        r"got \(2, 33\)",
    "network.decoder._target_=own_nets.Decoder +network.decoder.wrong=1":
        r"network\.decoder\._target_=own_nets\.Decoder: fails on an input of shape \(2, 32\): .*mat1 and mat2",
    "network.decoder._target_=own_nets.Flat": r"wanted \(2, 1, 28, 28\) .*got \(2, 784\)",
    "network.encoder._target_=own_nets.Pair": r"wanted \(2, 32\) .*got tuple",
    "network.encoder._target_=own_nets.plain": r"wanted a torch.nn.Module, got builtin",
    "network.encoder._target_=own_nets.Nothing": r"own_nets\.Nothing",
}  # fmt: skip


def own_config(*overrides: str) -> DictConfig:
    """Composed as in a config of one's own: without the keys of the shipped networks."""
    config = compose("data=digits", "latent=4x8")
    config.network = {
        "center": False, "output_bias": False,
        "encoder": {"_target_": "own_nets.Encoder"}, "decoder": {"_target_": "own_nets.Decoder"},
    }  # fmt: skip
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        OmegaConf.update(config, key, int(value) if value.isdigit() else value, force_add=True)
    return config


@pytest.fixture
def own_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)


@pytest.mark.usefixtures("own_nets")
@pytest.mark.parametrize("overrides", MISFITS)
def test_an_own_network_that_does_not_fit_is_refused_before_the_first_job(overrides: str) -> None:
    with pytest.raises(UserError, match=MISFITS[overrides]) as caught:
        rehearse([OmegaConf.to_container(own_config(*overrides.split()))])  # type: ignore[list-item]
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own_nets")
def test_trying_an_own_network_changes_nothing_of_it() -> None:
    _, model = build(own_config())
    assert model.encoder.training
    assert model.encoder[1].num_batches_tracked == 0
    import own_nets  # type: ignore[import-not-found]

    torch.manual_seed(fold(0, INIT))
    alone = own_nets.Encoder((1, 28, 28), 32)
    assert torch.equal(model.encoder[2].weight, alone[2].weight)
