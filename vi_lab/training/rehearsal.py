"""Each job is made once before the first one starts and before there is a folder: without its data, and on torch's meta
device, where tensors have shapes but take no memory. So what a constructor refuses, of ours, torch's or Lightning's, is
found by the constructor's own rule, for all jobs of a sweep, and a model can be measured before it is allocated.
"""

from __future__ import annotations

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vi_lab.build import build, instantiate
from vi_lab.errors import UserError, one_line
from vi_lab.machine import memory
from vi_lab.models import VAE
from vi_lab.schema import leaves
from vi_lab.training.compilation import check_compilable
from vi_lab.training.stacking import check_stackable
from vi_lab.training.start import Source
from vi_lab.training.trainer import make_trainer

REPEATED = ("seed", "name", "data")
"""Nodes in which jobs may differ and be alike in what is rehearsed."""

IMAGES = ("_target_", "source", "root", "size", "channels", "binarization", "batch_size")
"""Of the data, what models follow from."""

PARTS = ("data", "latent", "prior", "network", "likelihood", "objective", "estimator", "model")


def rehearse(configs: list[dict]) -> None:
    """Make the parts of every job once.

    Args:
        configs: of the jobs, composed and checked.

    Raises:
        UserError: a constructor refuses its arguments, parts do not fit each other, or the memory is too small.
    """
    rehearsed = set()
    for values in configs:
        images = [values["data"].get(key) for key in IMAGES]
        label = repr([images, *(values[name] for name in sorted(values) if name not in REPEATED)])
        if label not in rehearsed:
            rehearsed.add(label)
            _rehearse(OmegaConf.create(values), values)


def _rehearse(config: DictConfig, values: dict) -> None:
    if config.stack:
        check_stackable(config, None)
    source = Source(config.init_from) if config.init_from else None
    named = [(path, str(value)) for part in PARTS for path, value in leaves(values[part], part)]
    if all(target.startswith("vi_lab.") for path, target in named if path.endswith("._target_")):
        with torch.device("meta"):  # a class of the user's own may need real numbers
            _, model = build(config)
            if source:
                source.fitting(model, config.estimator._target_)
            _check_memory(config, model)
            if config.compile:
                check_compilable(model)
            if config.stack:
                check_stackable(config, model)
    elif any(not node["_target_"].startswith("vi_lab.") for node in (*_networks(values), values["prior"])):
        build(config)  # tries the user's own
    _take_a_step(config)
    instantiate(config.schedule)
    if config.beta_schedule._target_:
        instantiate(config.beta_schedule)
    make_trainer(config, callbacks=[instantiate(node) for node in (config.get("callbacks") or {}).values()])


def _networks(values: dict) -> list[dict]:
    return [values["network"][side] for side in ("encoder", "decoder")]


def _take_a_step(config: DictConfig) -> None:
    """One step of the optimizer and of its schedule, on a single weight: some arguments are refused only then."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    name = "optimizer"
    try:
        optimizer = instantiate(config.optimizer)([weight])
        if config.lr_scheduler.scheduler is None:
            optimizer.step()
        else:
            name = "lr_scheduler"
            scheduler = instantiate(config.lr_scheduler.scheduler)(optimizer)
            optimizer.step()  # after the scheduler is made, or torch warns
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*[0.0] * plateau)
    except UserError:
        raise
    except Exception as error:  # whatever these classes raise at their arguments
        raise UserError(f"{name}: {one_line(error)}") from error


def _check_memory(config: DictConfig, model: VAE) -> None:
    """Refuse what cannot fit, by a lower bound of what a training step holds at once: weights, gradients and Adam's two
    moments; of each sample of each image a z, those of its inner samples, and the outputs of the decoder's layers.

    Raises:
        UserError: it is more than the memory of this machine or of its largest GPU.
    """
    width = 0

    def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal width
        width += output.numel()

    hooks = [
        layer.register_forward_hook(add) for layer in model.decoder.modules() if [*layer.parameters(recurse=False)]
    ]
    model.decode(torch.zeros(1, 1, *model.latent.event_shape))
    for hook in hooks:
        hook.remove()
    weights, estimator = sum(p.numel() for p in model.parameters()), config.estimator
    copies = 4 if "Adam" in config.optimizer._target_ else 2
    states = estimator.get("max_states") and config.latent.get("classes", 2) ** (
        config.latent.variables * model.latent.layers
    )
    samples = states or estimator.get("samples", 1)  # of what sums over all states, they are the samples
    rows = samples * config.data.batch_size
    floats = copies * weights + rows * (width + (1 + estimator.get("inner_samples", 0)) * model.latent.size)
    needed = floats * (2 if "16" in str(config.trainer.precision) else 4)
    if needed > (limit := memory()) and needed > (limit := max(limit, _memory_of_gpus(config))):
        raise UserError(
            f"a training step would need at least {needed / 2**30:,.1f} GiB, for {weights:,} weights and {samples:,} "
            f"samples of {config.data.batch_size:,} images; this machine has {limit / 2**30:,.1f} GiB; use fewer "
            "samples, a smaller data.batch_size, network or latent"
        )


def _memory_of_gpus(config: DictConfig) -> float:
    """Bytes of the largest GPU that the run may use."""
    if config.accelerator.accelerator == "cpu":
        return 0
    gpus = range(torch.cuda.device_count())
    return max((torch.cuda.get_device_properties(index).total_memory for index in gpus), default=0)
