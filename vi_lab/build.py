"""From a checked config to its objects: data module, model, estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vi_lab.config import explain, plain
from vi_lab.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import nn

    from vi_lab.data import MNISTDataModule
    from vi_lab.data.sources import Shape
    from vi_lab.estimators import GradientEstimator
    from vi_lab.latents import Latent
    from vi_lab.likelihoods import Likelihood
    from vi_lab.models import VAE


def instantiate(node: DictConfig, **arguments: Any) -> Any:
    """`hydra.utils.instantiate`, with a constructor's complaint as the user's mistake, in one line.

    Raises:
        UserError: the node names no class, or the class refuses its arguments.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{node}: wanted a mapping with the _target_ of a class, as the groups of configs have it")
    try:
        return hydra.utils.instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        raise UserError(f"{node._target_}: {one_line(cause)}" if cause else explain(error)) from error
    except (OmegaConfBaseException, TypeError, ValueError, AttributeError, KeyError) as error:  # Hydra's, of a node
        raise UserError(f"a part of the config cannot be made: {one_line(error)}") from error


def build_estimator(node: DictConfig | dict) -> GradientEstimator:
    """The estimator that a config node describes."""
    values: dict[str, Any] = plain(node)
    return instantiate(OmegaConf.create(values))


def build(config: DictConfig) -> tuple[MNISTDataModule, VAE]:
    """The data module and the model that a config describes, with the weights of its seed."""
    import torch

    from vi_lab.distributions import first
    from vi_lab.models import PARTS
    from vi_lab.networks import Centered
    from vi_lab.objectives import ELBO
    from vi_lab.priors import Fixed
    from vi_lab.seeding import INIT, fold

    datamodule = instantiate(config.data)
    torch.manual_seed(fold(config.seed, INIT))
    latent, likelihood = instantiate(config.latent), instantiate(config.likelihood)
    if getattr(likelihood, "of_levels", False) and datamodule.binarization != "none":
        name = type(likelihood).__name__
        raise UserError(
            f"data.binarization={datamodule.binarization}: {name} is a likelihood of the 256 gray levels; use "
            "data.binarization=none"
        )
    shape = datamodule.shape
    encoder, decoder = _networks(config.network, latent, likelihood, shape)
    prior = instantiate(config.prior, latent=latent, shape=shape)
    more = {  # only what there is: a model of one's own may not know of it
        "optimizer_groups": {part: own for part in PARTS if (own := _given(config.optimizer_groups[part]))},
        "p_z": None if isinstance(prior, Fixed) else prior,
        "deeper": [build_estimator(config.estimator) for _ in range(latent.layers - 1)],
    }
    model = instantiate(
        config.model,
        latent=latent,
        encoder=Centered(encoder, shape) if config.network.center else encoder,
        decoder=decoder,
        likelihood=likelihood,
        objective=instantiate(config.objective),
        estimator=build_estimator(config.estimator),
        optimizer=instantiate(config.optimizer),
        lr_scheduler=_lr_scheduler(config.lr_scheduler),
        seed=config.seed,
        **{name: argument for name, argument in more.items() if argument},
    )
    q = first(latent(torch.zeros(1, latent.feature_size)))
    model.estimator.materialize(q, torch.zeros(1, *shape))
    for estimator in model.deeper:
        estimator.materialize(q, torch.zeros(1, *latent.layer_shape))  # its context is the layer before
    _try_prior(config.prior._target_, model)
    if config.beta_schedule._target_:
        if not isinstance(model.objective, ELBO):
            raise UserError(f"beta_schedule: {type(model.objective).__name__} has no beta that a schedule could write")
        model.objective.schedule_beta()
    try:
        model.parameter_groups()
    except ValueError as error:
        raise UserError(one_line(error)) from error
    return datamodule, model


def _given(node: DictConfig) -> dict[str, Any]:
    """What a part of the model has of its own."""
    return {key: node[key] for key in ("lr", "weight_decay") if node[key] is not None}


def _networks(config: DictConfig, latent: Latent, likelihood: Likelihood, shape: Shape) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder. Classes of the user's own are tried on images of zeros.

    Raises:
        UserError: one of them does not map (N, *shape) to (N, feature_size), or (N, latent_size) to what the
            likelihood wants of it.
    """
    output = (getattr(likelihood, "planes", 1) * shape[0], *shape[1:])  # which any module may be
    encoder = instantiate(config.encoder, shape=shape, feature_size=latent.feature_size)
    decoder = instantiate(config.decoder, shape=output, latent_size=latent.size)
    _try_network("encoder", config, encoder, tuple(shape), (latent.feature_size,))
    _try_network("decoder", config, decoder, (latent.size,), output)
    return encoder, decoder


def _try_prior(target: str, model: VAE) -> None:
    """Refuse a prior of the user's own that gives no distribution over what the latent's samples are.

    Raises:
        UserError: it is one.
    """
    from torch.distributions import Distribution

    if target.startswith("vi_lab."):
        return
    where, wanted = f"prior._target_={target}", tuple(model.latent.event_shape)
    try:
        p = model.prior()
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{where}: fails: {one_line(error)}") from error
    if not isinstance(p, Distribution):
        raise UserError(f"{where}: wanted a torch.distributions.Distribution, got {type(p).__name__}")
    if (found := (tuple(p.batch_shape), tuple(p.event_shape))) != ((), wanted):
        raise UserError(
            f"{where}: wanted batch shape () and event shape {wanted}, as of the latent's samples; got {found[0]} and "
            f"{found[1]}"
        )


def _try_network(name: str, config: DictConfig, network: Any, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    import torch
    from torch import nn

    target = config[name]._target_
    if target.startswith("vi_lab."):
        return
    where = f"network.{name}._target_={target}"
    if not isinstance(network, nn.Module):
        raise UserError(f"{where}: wanted a torch.nn.Module, got {type(network).__name__}")
    images, training = 2, network.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = network.eval()(torch.zeros(images, *given))
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{where}: fails on an input of shape {(images, *given)}: {one_line(error)}") from error
    finally:
        network.train(training)
    found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if found != (images, *wanted):
        raise UserError(
            f"{where}: wanted {(images, *wanted)} from an input of shape {(images, *given)}, got {found}; see "
            "docs/tutorials/own_model.md"
        )


def _lr_scheduler(node: DictConfig) -> dict[str, Any] | None:
    """What Lightning wants to know of a learning-rate schedule; None where there is none."""
    return None if node.scheduler is None else {**plain(node), "scheduler": instantiate(node.scheduler)}
