"""Run folders read back: state, config, metrics, checkpoints, and the model with its weights.

    from vi_lab import load_run
    run = load_run("outputs/2026-01-31/12-00-00-rloo-s0")
    run.metrics.plot(x="epoch", y=["train/loss", "test/loss"])
    run.sample(64)                      # (64, 1, 28, 28) of MNIST

A run folder may be somebody else's: it is read as data, see `vi_lab.runs.trust`.
"""

from __future__ import annotations

import csv
import glob
import io
import statistics
from collections.abc import Iterable
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vi_lab.errors import UserError, ViLabError, one_line
from vi_lab.runs.files import AUDIT_FILE, CONFIG_FILE
from vi_lab.runs.lock import is_held
from vi_lab.runs.trust import check_stored, inside, load_checkpoint, read_json, read_text, read_yaml
from vi_lab.schema import INCIDENTAL, OWN_FILES, has, leaves, modernize

if TYPE_CHECKING:
    import pandas
    from torch import Tensor
    from torch.distributions import Distribution

    from vi_lab.data import MNISTDataModule
    from vi_lab.models import VAE


def check_weights(model: VAE, checkpoint: dict[str, Any]) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        ViLabError: they are of another architecture.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ViLabError(f"weights of another architecture ({one_line(error)[:300]})") from error


def load_weights(model: VAE, file: Path) -> None:
    """Load the weights in a checkpoint file. A model takes float64 where they are; less than float32 it holds as it is.

    Raises:
        ViLabError: it is damaged, or of another architecture.
    """
    checkpoint = load_checkpoint(file)
    if any(str(weights.dtype) == "torch.float64" for weights in checkpoint["state_dict"].values()):
        model.double()  # a run of trainer.precision=64-true: loading would round
    try:
        check_weights(model, checkpoint)
    except ViLabError as error:
        raise ViLabError(f"{file}: {error}") from error


class Run:
    """One run folder. Everything is read when it is asked for; only the model needs torch."""

    def __init__(self, folder: str | Path, weights: str = "last") -> None:
        """Names a folder; nothing is read yet.

        Args:
            weights: `last` or `best`, the checkpoint of `model`.

        Raises:
            UserError: neither.
        """
        if weights not in ("last", "best"):
            raise UserError(f"weights={weights!r}: wanted last or best")
        self.folder, self.weights = Path(folder), weights

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.state})"

    @property
    def config(self) -> DictConfig:
        """The whole config, every value filled in, checked: safe to build from. A copy.

        Raises:
            UserError: no run folder, or a config that this version of vi_lab does not take.
        """
        return OmegaConf.create(self._values)

    @cached_property
    def _values(self) -> dict[str, Any]:
        if not (self.folder / CONFIG_FILE).is_file():
            lacks = f"it has no {CONFIG_FILE}" if self.folder.exists() else "there is no such folder"
            raise UserError(f"{self.folder}: no run folder ({lacks})")
        if _is_audit(self.folder):
            raise UserError(f"{self.folder}: the folder of an audit, not of a run")
        values: Any = read_yaml(self.folder, CONFIG_FILE)
        if isinstance(values, dict):
            modernize(values)
        made_by = str(self.environment.get("vi_lab", "an unknown version"))
        check_stored(values, str(self.folder / CONFIG_FILE), made_by)
        return values

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as dotted path -> value."""
        return dict(leaves(self._values))

    @property
    def key(self) -> tuple:
        """All that makes experiments differ, which the seed does not."""
        own = self.settings.get("data.source") in OWN_FILES  # then the files are the data set, wherever they are
        data = [("data", str(self.environment.get("data")))] if own else []
        settings = [(k, str(v)) for k, v in self.settings.items() if v is not None and not has(k, INCIDENTAL)]
        return tuple(sorted(settings + data))  # without null: keys that older runs lack are null by default

    @cached_property
    def status(self) -> dict[str, Any]:
        """status.json: the state that the run has written, since when, and why; empty where there is none."""
        return read_json(self.folder, "status.json")

    @property
    def state(self) -> str:
        """running, completed, interrupted, failed, killed (it says running, and no process is there) or unknown."""
        state = str(self.status.get("state", "unknown"))
        return "killed" if state == "running" and not is_held(self.folder) else state

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, threads and data of the run."""
        return read_json(self.folder, "environment.json")

    @cached_property
    def final(self) -> dict[str, float]:
        """The final metrics; empty where the run has not finished."""
        numbers = read_json(self.folder, "metrics.json").items()
        return {name: value for name, value in numbers if isinstance(value, (int, float))}

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """One row per epoch, losses in nats per image."""
        return self._table("metrics.csv")

    @cached_property
    def timing(self) -> pandas.DataFrame:
        """Wall time: one row per epoch."""
        return self._table("timing.csv")

    def _table(self, name: str) -> pandas.DataFrame:
        import pandas

        try:
            return pandas.read_csv(io.StringIO(read_text(self.folder, name)))
        except (OSError, ValueError) as error:
            raise ViLabError(f"{self.folder / name}: cannot be read ({one_line(error)[:200]})") from error

    @cached_property
    def epoch_seconds(self) -> float:
        """Median wall time of an epoch, evaluation included; NaN where it is not known."""
        try:
            lines = read_text(self.folder, "timing.csv").splitlines()
            return statistics.median(float(row["seconds"]) for row in csv.DictReader(lines))
        except (OSError, ValueError, KeyError, TypeError, csv.Error, ViLabError):
            return nan

    def checkpoint(self, name: str = "last") -> Path:
        """The file of the checkpoint `name`: last or best."""
        return inside(self.folder, f"checkpoints/{name}.ckpt")

    # --- the model ----------------------------------------------------------------------------------------------

    @cached_property
    def _built(self) -> tuple[MNISTDataModule, VAE]:
        import torch

        from vi_lab.build import build

        with torch.random.fork_rng(devices=[]):  # building seeds the weights
            datamodule, model = build(self.config)
        load_weights(model, self.checkpoint(self.weights))
        return datamodule, model.eval()

    @property
    def model(self) -> VAE:
        """The model with the weights of its checkpoint, on the CPU, in evaluation mode."""
        return self._built[1]

    @property
    def datamodule(self) -> MNISTDataModule:
        """The data of the run; `run.datamodule.setup()` loads it."""
        return self._built[0]

    def encode(self, x: Tensor) -> Distribution:
        """q(z|x) for images x in [0, 1]: (B, *shape) or shape, which is that of the run's data;
        of one channel also (B, H, W) or (H, W)."""
        import torch

        with torch.no_grad():
            return self.model.posterior(self._images(x))

    def reconstruct(self, x: Tensor, seed: int = 0) -> Tensor:
        """Means of p(x|z) at one z from q(z|x): (B, *shape)."""
        import torch

        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            z = self.encode(x).sample((1,))
            return self.model.likelihood.mean(self.model.decode(z))[0]

    def sample(self, images: int = 64, seed: int = 0) -> Tensor:
        """Means of p(x|z) for z from the prior: (images, *shape)."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model.sample(images)

    def _images(self, x: Tensor) -> Tensor:
        shape = tuple(self.datamodule.shape)
        image = shape[1:] if shape[0] == 1 and tuple(x.shape[-3:]) != shape else shape
        if tuple(x.shape[x.ndim - len(image) :]) != image or x.ndim > len(image) + 1:
            raise ValueError(f"wanted images (B, {', '.join(map(str, shape))}) in [0, 1], got {tuple(x.shape)}")
        if not (x.min() >= 0 and x.max() <= 1):  # NaN is neither
            raise ValueError(f"wanted pixels in [0, 1], got {x.min():g} to {x.max():g}")
        return x.reshape(-1, *shape).to(next(self.model.parameters()).dtype)


def load_run(folder: str | Path, weights: str = "last") -> Run:
    """Open a run folder, in a notebook or a script.

    Args:
        folder: what `vi-lab train` has written.
        weights: `last` or `best`, the checkpoint of `run.model`.

    Raises:
        UserError: no run folder, or a config that this version of vi_lab does not take.
    """
    run = Run(folder, weights)
    _ = run.config  # the mistake shows here, and not at the first use
    return run


def find_runs(paths: str | Path | Iterable[str | Path]) -> list[Run]:
    """Every training run at or below one or several `paths`: run folders, folders of them, or patterns such as
    outputs/*/*-rloo-*.

    Raises:
        UserError: a path does not exist, or no run is found.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    folders: list[Path] = []
    for path in map(str, paths):
        found = [path] if Path(path).exists() else sorted(glob.glob(path, recursive=True))
        if not found:
            raise UserError(f"{path}: no such folder; give run folders, sweep folders, or outputs/")
        for start in map(Path, found):
            # a job that fails early leaves only status.json
            marks = (file.parent for name in (CONFIG_FILE, "status.json") for file in start.rglob(name))
            folders += sorted(folder for folder in set(marks) if not _is_audit(folder))
    if not folders and _is_audit(Path(paths[0])):
        raise UserError(f"{paths[0]}: the folder of an audit, not of a run")
    if not folders:
        raise UserError(f"no runs below {', '.join(map(str, paths))}; a run folder holds {CONFIG_FILE}")
    return [Run(folder) for folder in dict.fromkeys(folders)]


def _is_audit(folder: Path) -> bool:
    return (folder / AUDIT_FILE).is_file()


def finished(folder: Path) -> float | None:
    """What a completed run returns to a sweep (validation loss, else test loss); None where it is not completed."""
    run = Run(folder)
    return run.final.get("val/loss", run.final.get("test/loss")) if run.state == "completed" else None


def rows_of(run: Run, name: str) -> dict[float, dict[str, float]]:
    """A table of a run: epoch -> the numbers of its last row.

    Raises:
        ViLabError: it cannot be read.
    """
    try:
        rows = [*csv.DictReader(read_text(run.folder, name).splitlines())]
    except (OSError, ValueError, csv.Error) as error:
        raise ViLabError(f"{run.folder / name}: cannot be read ({one_line(error)[:200]})") from error
    numbers = [{str(key): number for key, text in row.items() if (number := _finite(text)) is not None} for row in rows]
    return {row["epoch"]: row for row in numbers if "epoch" in row}


def _finite(text: Any) -> float | None:
    try:
        return number if isfinite(number := float(text)) else None
    except (TypeError, ValueError):
        return None
