"""Evaluations of a model in its run folder: at the end of training evaluation.json and units.csv; by `vi-lab evaluate`
a pair such as evaluations/test-last-K5000.json and .csv for each combination of settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vi_lab.runs.files import write_csv, write_json
from vi_lab.runs.trust import read_json
from vi_lab.version import __version__

if TYPE_CHECKING:
    from vi_lab.data import MNISTDataModule
    from vi_lab.models import VAE

LATER = "evaluations"
"""Where `vi-lab evaluate` writes, in a run folder."""


class Settings(NamedTuple):
    """What is evaluated and how well. Numbers compare where all of it is equal."""

    split: str = "test"
    samples: int = 100
    """K, samples of z per image."""
    images: int | None = None
    """The first so many; None: all."""
    seed: int = 0
    """Of the samples."""
    weights: str = "last"
    """The checkpoint: last or best."""

    def name(self, images: int | None) -> str:
        """What tells evaluations apart, as a file name.

        Args:
            images: that were evaluated; None: the whole split.
        """
        first = "" if images is None else f"-first{images}"
        return f"{self.split}-{self.weights}-K{self.samples}{first}" + (f"-seed{self.seed}" if self.seed else "")


def evaluate_into(
    folder: Path,
    model: VAE,
    datamodule: MNISTDataModule,
    settings: Settings,
    bar: Callable[[int], AbstractContextManager[Callable[[int], None]]],
    record: dict[str, Any],
    final: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on its device and write what came out into its folder. One that was interrupted is written
    under the number of images that were done, as if so many had been asked for: it takes the place of no other.

    Args:
        datamodule: set up; the whole split is evaluated, however many processes have trained.
        bar: makes a progress display for so many images; see `vi_lab.console.image_bar`.
        record: is written, too.
        final: the evaluation at the end of training.

    Returns:
        what is written.
    """
    from vi_lab.evaluation import evaluate

    loader = datamodule.loader(settings.split, whole=True)
    available = len(loader.images)
    wanted = min(settings.images or available, available)
    started = time.perf_counter()
    with bar(wanted) as progress:
        result = evaluate(model, loader, settings.samples, settings.images, settings.seed, progress)
    report = {
        "interrupted": result.interrupted,
        "split": settings.split,
        "source": datamodule.source,
        "binarization": datamodule.binarization,
        "images": result.images,
        "images_wanted": wanted,
        "images_in_split": available,
        "samples": result.samples,
        "unit": "nats per image, lower is better, unless the name says otherwise",
        "metrics": result.metrics,
        "notes": result.notes,
        "seed": settings.seed,
        "weights": settings.weights,
        **record,
        "data_sha256": datamodule.checksum(),
        "vi_lab": __version__,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if final:
        files = folder / "evaluation.json", folder / "units.csv"
    else:
        name = settings.name(None if result.images == available else result.images)
        (folder / LATER).mkdir(exist_ok=True)
        files = folder / LATER / f"{name}.json", folder / LATER / f"{name}.csv"
    write_json(files[0], report)
    write_csv(files[1], result.units)
    return report | {"file": files[0].relative_to(folder).as_posix()}


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """All that were written into a run folder, as they were written."""
    names = ["evaluation.json", *sorted(f"{LATER}/{file.name}" for file in (folder / LATER).glob("*.json"))]
    return [report for name in names if (report := read_json(folder, name))]
