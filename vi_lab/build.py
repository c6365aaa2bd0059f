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
    from vi_lab.data import MNISTDataModule
    from vi_lab.estimators import GradientEstimator
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

    from vi_lab.models import PARTS
    from vi_lab.networks import Centered
    from vi_lab.objectives import ELBO
    from vi_lab.seeding import INIT, fold

    datamodule = instantiate(config.data)
    torch.manual_seed(fold(config.seed, INIT))
    latent = instantiate(config.latent)
    shape = datamodule.shape
    encoder = instantiate(config.network.encoder, shape=shape, feature_size=latent.feature_size)
    rates = {part: own for part in PARTS if (own := _given(config.optimizer_groups[part]))}
    model = instantiate(
        config.model,
        latent=latent,
        encoder=Centered(encoder, shape) if config.network.center else encoder,
        decoder=instantiate(config.network.decoder, shape=shape, latent_size=latent.size),
        likelihood=instantiate(config.likelihood),
        objective=instantiate(config.objective),
        estimator=build_estimator(config.estimator),
        optimizer=instantiate(config.optimizer),
        lr_scheduler=_lr_scheduler(config.lr_scheduler),
        seed=config.seed,
        **({"optimizer_groups": rates} if rates else {}),  # a model of one's own may not know them
    )
    model.estimator.materialize(latent(torch.zeros(1, latent.feature_size)), torch.zeros(1, *shape))
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


def _lr_scheduler(node: DictConfig) -> dict[str, Any] | None:
    """What Lightning wants to know of a learning-rate schedule; None where there is none."""
    return None if node.scheduler is None else {**plain(node), "scheduler": instantiate(node.scheduler)}
