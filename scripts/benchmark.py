"""Speed of the training step, as ratios within one run: shared machines drift, ratios taken in turn do not.

    python scripts/benchmark.py                                 all estimators on the embedded digits
    python scripts/benchmark.py data.root=FOLDER data=mnist     on MNIST; further overrides go to the config
    python scripts/benchmark.py --estimators rloo,exact --rounds 10

Three loops over the same model are timed in turn, a block of steps each:
  bare      forward, backward, optimizer on one batch that stays in place: what the mathematics costs
  notebook  what a tutorial writes: a DataLoader over PIL images with ToTensor, Adam without fusing, `.item()` each step
  vi_lab    the Lightning module and loader of this project, with the unrelaxed loss and the metrics
The last columns are what writing a checkpoint takes, and its share of the training steps of an epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf
from rich.table import Table

from vi_lab.build import build
from vi_lab.config import check_overrides
from vi_lab.console import make_console
from vi_lab.errors import ViLabError
from vi_lab.schema import CONFIG_DIR
from vi_lab.training.display import Voice
from vi_lab.training.process import prepare_process
from vi_lab.training.trainer import build_trainer


def bare(config: OmegaConf, steps: int) -> Callable[[], float]:
    """Seconds per step of the mathematics alone."""
    import torch

    datamodule, model = build(config)
    datamodule.setup()
    x, _ = next(iter(datamodule.train_dataloader()))
    optimizer = model.optimizer(model.parameters())

    def block() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            q = model.posterior(x)
            terms = model.objective(q, model.latent.prior(), model.nats(x), model.estimator, x)
            optimizer.zero_grad(set_to_none=True)
            (terms.loss.mean() + terms.control_loss).backward()
            optimizer.step()
        return (time.perf_counter() - start) / steps

    torch.manual_seed(0)
    return block


def notebook(config: OmegaConf, steps: int) -> Callable[[], float]:
    """Seconds per step of a tutorial's loop around the same model."""
    import torch
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    datamodule, model = build(config)
    images = datamodule.load().train_images.squeeze(1).numpy()

    class Samples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return to_tensor(Image.fromarray(images[index]))

    loader = torch.utils.data.DataLoader(Samples(), config.data.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
    batches = iter([])

    def block() -> float:
        nonlocal batches
        start = time.perf_counter()
        for _ in range(steps):
            x = next(batches, None)
            if x is None:
                batches = iter(loader)
                x = next(batches)
            x = torch.bernoulli(x)
            q, p, nats = model.posterior(x), model.latent.prior(), model.nats(x)
            terms = model.objective(q, p, nats, model.estimator, x)
            loss = terms.loss.mean() + terms.control_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            model.objective.unrelaxed(q, p, nats).loss.mean().item()
        return (time.perf_counter() - start) / steps

    return block


def lightning(config: OmegaConf, steps: int, folder: Path, checkpoints: list[float]) -> Callable[[], float]:
    """Seconds per step of `vi-lab train`, evaluation, pictures and checkpoints left out; the seconds of the checkpoint
    at the end are appended to `checkpoints`."""
    config = OmegaConf.merge(config, {"trainer": {"limit_val_batches": 0, "max_epochs": 1, "max_steps": steps}})
    config.data.validation = 0
    config.figures = False

    def block() -> float:
        datamodule, model = build(config)
        trainer, _ = build_trainer(config, folder, Voice(make_console(quiet=True)))
        datamodule.load()
        started: list[float] = []
        trainer.callbacks[0].on_train_epoch_start = lambda *_: started.append(time.perf_counter())
        ended: list[float] = []
        trainer.callbacks[0].on_train_epoch_end = lambda *_: ended.append(time.perf_counter())
        save = trainer.save_checkpoint

        def timed(*arguments: object) -> None:
            start = time.perf_counter()
            save(*arguments)
            checkpoints.append(time.perf_counter() - start)

        trainer.save_checkpoint = timed
        trainer.fit(model, datamodule)
        return (ended[0] - started[0]) / trainer.global_step

    return block


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", help="overrides for `vi-lab train`, such as data=mnist data.root=FOLDER"
    )
    parser.add_argument(
        "--estimators", default=",".join(sorted(p.stem for p in (CONFIG_DIR / "estimator").glob("*.yaml")))
    )
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each loop, taken in turn (5)")
    parser.add_argument("--steps", type=int, default=100, help="steps per block (100)")
    arguments = parser.parse_intermixed_args()
    console = make_console(120)
    table = Table(title=f"median of {arguments.rounds} rounds of {arguments.steps} steps", title_justify="left")
    for heading in (
        "estimator",
        "bare ms",
        "vi_lab ms",
        "vi_lab / bare",
        "notebook / vi_lab",
        "checkpoint ms",
        "of an epoch",
    ):
        table.add_column(heading, justify="left" if heading == "estimator" else "right")
    overrides = arguments.overrides or ["data=digits"]
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.estimators.split(","):
            try:
                (values,) = check_overrides("train", [f"estimator={name}", *overrides], multirun=False)
            except ViLabError as error:
                console.print(f"{name}: {error}")
                return error.exit_code
            config = OmegaConf.create(values)
            config.trainer.max_epochs = 1
            prepare_process(config)
            steps = min(arguments.steps, 12 if config.data.source == "digits" else arguments.steps)
            saved: list[float] = []
            loops = bare(config, steps), lightning(config, steps, Path(scratch), saved), notebook(config, steps)
            for loop in loops:
                loop()  # warm-up
            rounds = [[loop() for loop in loops] for _ in range(arguments.rounds)]
            own, ours, theirs = zip(*rounds, strict=True)
            datamodule = build(config)[0]
            epoch = statistics.median(ours) * (len(datamodule.load().train_images) // config.data.batch_size)
            table.add_row(
                name,
                f"{1e3 * statistics.median(own):.2f}",
                f"{1e3 * statistics.median(ours):.2f}",
                f"{statistics.median(b / a for a, b in zip(own, ours, strict=True)):.2f}",
                f"{statistics.median(c / b for b, c in zip(ours, theirs, strict=True)):.2f}",
                f"{1e3 * statistics.median(saved):.1f}",
                f"{statistics.median(saved) / epoch:.1%}",
            )
    console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
