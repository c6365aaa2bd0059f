"""The LightningModules by themselves: their optimizer, learning-rate schedules, errors."""

from __future__ import annotations

import functools

import lightning
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import ESTIMATORS, config, small_vae
from vi_lab import latents
from vi_lab.build import build
from vi_lab.data import MNISTDataModule
from vi_lab.estimators import RLOO, Pathwise


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (None, [0.1] * 6),
        ({}, [0.1] * 3 + [0.05] * 3),
        ({"interval": "step", "frequency": 2}, [0.1, 0.1, 0.05, 0.05, 0.05, 0.025]),  # batches are counted by epoch
    ],
)
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`")  # Lightning's own use of torch
def test_learning_rate_schedules(schedule: dict | None, rates: list[float]) -> None:
    used = []

    class Watched(torch.optim.SGD):
        def step(self, closure: object = None) -> object:
            used.append(self.param_groups[0]["lr"])
            return super().step(closure)

    halve = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    lr_scheduler = None if schedule is None else {"scheduler": halve, **schedule}
    model = small_vae(latents.Bernoulli(3), RLOO(2), lr_scheduler=lr_scheduler)
    model.optimizer = functools.partial(Watched, lr=0.1)
    datamodule = MNISTDataModule("digits", batch_size=400, validation=200)  # three batches an epoch
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(model, datamodule=datamodule)
    assert used == pytest.approx(rates)


def test_a_learning_rate_schedule_may_watch_a_metric() -> None:
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9, factor=0.5)
    model = small_vae(latents.Gaussian(2), Pathwise(), lr_scheduler={"scheduler": plateau, "monitor": "val/loss"})
    configured = model.configure_optimizers()
    assert configured["lr_scheduler"]["monitor"] == "val/loss"
    assert configured["lr_scheduler"]["scheduler"].optimizer is configured["optimizer"]


def test_model_errors() -> None:
    for wrong, message in (({}, "got nothing"), ({"scheduler": None, "every": 2}, "got every, scheduler")):
        with pytest.raises(ValueError, match=f"lr_scheduler needs scheduler .*{message}"):
            small_vae(latents.Bernoulli(3), RLOO(2), lr_scheduler=wrong)
    model = small_vae(latents.Bernoulli(3), RLOO(2))
    model.optimizer = None
    with pytest.raises(ValueError, match="VAE was made without an optimizer"):
        model.configure_optimizers()


HOST = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero")


class HostCopies(TorchDispatchMode):
    """Collects the operations that read a value on the host, or whose shape depends on values: on a GPU each would wait
    for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if str(operation).startswith(HOST):
            self.seen.append(str(operation))
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_training_step_reads_nothing_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("cpu", "numpy", "tolist"):
        monkeypatch.setattr(torch.Tensor, method, lambda self: pytest.fail("a copy to the host"))
    _, model = build(config(f"estimator={name}"))
    optimizer = model.optimizer(model.parameters())
    x = torch.rand(4, 1, 28, 28)
    for step in range(2):  # the optimizer makes its state in the first
        with HostCopies() as copies:
            loss = model.training_step((x, torch.zeros(4)), step)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert copies.seen == []


def test_host_copies_are_seen() -> None:
    with HostCopies() as copies:
        torch.ones(2).sum().item()
    assert len(copies.seen) == 1
