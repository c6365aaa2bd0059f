"""What is used of other libraries beyond their public interfaces: a failure here names what a new version broke."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from vi_lab.adapters import hydra as hydra_adapter
from vi_lab.adapters import lightning as lightning_adapter
from vi_lab.adapters import tensorboard as tensorboard_adapter
from vi_lab.config import split_sweep
from vi_lab.schema import CONFIG_DIR


def test_hydras_parser_has_the_flags_that_are_read() -> None:
    parsed = vars(hydra_adapter.argument_parser().parse_args(["seed=1"]))
    wanted = {"overrides", "multirun", "config_dir", "help", "hydra_help", "cfg", "info", "shell_completion"}
    assert wanted <= set(parsed)
    assert parsed["overrides"] == ["seed=1"]


def test_hydras_sweeper_splits_as_it_sweeps() -> None:
    assert split_sweep(["a=1,2", "b=[x,y]"]) == [["a=1", "b=[x,y]"], ["a=2", "b=[x,y]"]]


@pytest.mark.parametrize(("words", "parallel"), [([], False), (["hydra/launcher=joblib"], True)])
def test_what_runs_jobs_in_this_process_is_known(words: list[str], parallel: bool) -> None:
    launch = hydra_adapter.launcher(print, ["hydra.sweep.dir=x", *words], CONFIG_DIR, "train")
    assert launch.parallel is parallel


def test_hydra_starts_without_touching_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "main.yaml").write_text("seed: 1\nhydra: {output_subdir: null, run: {dir: .}, job: {chdir: false}}\n")
    code = f"""
import sys
from pathlib import Path
from vi_lab.adapters.hydra import argument_parser, start
before = list(sys.argv)
arguments = argument_parser().parse_args(["seed=5"])
start(lambda config: print("seed", config.seed), arguments, Path({str(tmp_path)!r}), "main")
assert sys.argv == before
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "mine"], capture_output=True, text=True, timeout=300, cwd=tmp_path, check=True
    )
    assert "seed 5" in done.stdout


@pytest.mark.parametrize("text", lightning_adapter.HARMLESS)
def test_lightning_still_says_what_is_silenced(text: str) -> None:
    words = text.replace("\\", "").replace("`isinstance(treespec, LeafSpec)`", "LeafSpec").strip("`")
    roots = [Path(lightning.__file__).parent]
    if "LeafSpec" in words:  # torch says it, of Lightning's use
        import torch.utils._pytree

        assert "LeafSpec" in Path(torch.utils._pytree.__file__).read_text()
        return
    assert any(words.split("`")[0] in file.read_text() for root in roots for file in root.rglob("*.py")), text


def test_lightning_is_silenced_but_for_its_other_warnings() -> None:
    with warnings.catch_warnings():
        lightning_adapter.silence()
        warnings.warn("The number of training batches (3) is smaller", UserWarning, stacklevel=1)
    assert logging.getLogger("lightning.pytorch").level == logging.WARNING


def exit_at_ctrl_c() -> None:
    """What Lightning does."""
    try:
        raise KeyboardInterrupt("mine")
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904


def test_ctrl_c_comes_as_it_was() -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="mine"),
        lightning_adapter.signals_are_ours(lightning.Trainer(accelerator="cpu", logger=False)),
    ):
        exit_at_ctrl_c()
    with (
        pytest.raises(SystemExit),
        lightning_adapter.signals_are_ours(lightning.Trainer(accelerator="cpu", logger=False)),
    ):
        sys.exit(3)


def test_tensorboard_serves_and_says_where_its_port_is_taken(tmp_path: Path) -> None:
    url = tensorboard_adapter.serve(str(tmp_path), "127.0.0.1", 0)
    with urllib.request.urlopen(f"{url}data/environment", timeout=300) as answer:
        assert answer.status == 200
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(tensorboard_adapter.PortTaken):
            tensorboard_adapter.serve(str(tmp_path), "127.0.0.1", taken.getsockname()[1])


def test_event_files_are_named_as_they_are_looked_for(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("a", 1.0, 0)
    assert len(list(tmp_path.glob(tensorboard_adapter.EVENT_FILES))) == 1


class Listener(Callback):
    """Has written one of the hooks of a step, and keeps which of all it has when it is called."""

    def __init__(self) -> None:
        self.heard: list[set[str]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object, **__: object) -> None:
        self.heard.append({hook for hook in lightning_adapter.STEP_HOOKS if getattr(self, hook) is not None})


class Idle(Callback):
    """Has written none."""


def test_hooks_that_nobody_has_written_are_passed_over_in_a_step() -> None:
    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))
            self.steps = 0

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            assert self.on_train_batch_start is None
            return self.weight * batch.sum()

        def on_after_backward(self) -> None:
            self.steps += 1

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    listener, idle, model = Listener(), Idle(), Model()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[lightning_adapter.IdleHooks(), listener, idle],
        profiler=lightning_adapter.NoProfiler(),
        **quiet,
    )
    with warnings.catch_warnings():
        lightning_adapter.silence()
        trainer.fit(model, torch.utils.data.DataLoader(torch.ones(6), batch_size=2))
    assert listener.heard == [{"on_train_batch_end"}] * 3
    assert model.steps == 3
    for owner in (listener, idle, model):  # as they were
        assert all(callable(getattr(owner, hook)) for hook in lightning_adapter.STEP_HOOKS)
    assert not set(lightning_adapter.STEP_HOOKS) & (vars(idle).keys() | vars(model).keys())


def test_lightning_calls_no_other_hook_of_callbacks_in_a_step() -> None:
    """A new one would cost again."""
    calls = set()
    for file in (Path(lightning.__file__).parent / "pytorch").rglob("*.py"):
        if file.parent.name in ("loops", "optimization", "precision") and "evaluation" not in file.name:
            calls |= set(re.findall(r'_call_callback_hooks\(\s*(?:self\.)?trainer, "(\w+)"', file.read_text()))
    once = {name for name in calls if re.search("epoch|_start$|_end$|fit|predict|exception", name)}
    assert calls - once | {"on_train_batch_start", "on_train_batch_end"} == set(lightning_adapter.STEP_HOOKS)
