"""The evaluation of a model, written into its run folder: evaluation.json and units.csv."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vi_lab.runs.files import write_csv, write_json
from vi_lab.version import __version__

if TYPE_CHECKING:
    from vi_lab.data import MNISTDataModule
    from vi_lab.models import VAE


class Settings(NamedTuple):
    """What is evaluated and how well. Numbers compare where all of it is equal."""

    split: str = "test"
    samples: int = 100
    """K, samples of z per image."""
    images: int | None = None
    """The first so many; None: all."""
    seed: int = 0
    """Of the samples."""


def evaluate_into(
    folder: Path,
    model: VAE,
    datamodule: MNISTDataModule,
    settings: Settings,
    bar: Callable[[int], AbstractContextManager[Callable[[int], None]]],
    record: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate a model on its device and write evaluation.json and units.csv into its folder.

    Args:
        datamodule: set up; the whole split is evaluated, however many processes have trained.
        bar: makes a progress display for so many images; see `vi_lab.console.image_bar`.
        record: goes into evaluation.json.

    Returns:
        what evaluation.json holds.
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
        **record,
        "data_sha256": datamodule.checksum(),
        "vi_lab": __version__,
        "seconds": round(time.perf_counter() - started, 3),
    }
    write_json(folder / "evaluation.json", report)
    write_csv(folder / "units.csv", result.units)
    return report
