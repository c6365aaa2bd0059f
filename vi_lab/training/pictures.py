"""Pictures while training and at its end: in `figures/`, and in TensorBoard under `pictures/`."""

from __future__ import annotations

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback

from vi_lab.data import MNISTDataModule
from vi_lab.figures.grids import sprites
from vi_lab.figures.model import at_rest, encode, pictures
from vi_lab.figures.style import reduced, render, write_png
from vi_lab.models import VAE
from vi_lab.training.callbacks import Recorder, vae
from vi_lab.training.loggers import tensorboard

PROJECTED = 1000  # test images in TensorBoard's projector
TAG = "pictures"


def _datamodule(trainer: lightning.Trainer) -> MNISTDataModule:
    return trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it


class Pictures(Callback):
    """Draws every so many epochs; `finish` draws the last ones. Without state: resuming needs nothing of it."""

    def __init__(self, folder: Path, recorder: Recorder, every_n_epochs: int | None) -> None:
        """recorder: must come before this callback, so that its rows include the epoch that has just ended."""
        self.folder, self.recorder, self.every = folder, recorder, every_n_epochs

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draws where the epoch is due; the last one's pictures come with `finish`, which has the final metrics."""
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if self.every and epoch % self.every == 0 and not last:  # `finish` draws the last
            self.write(trainer, vae(pl_module))

    def finish(self, trainer: lightning.Trainer, module: VAE) -> None:
        """All pictures, at the end of a run, when the final metrics are known."""
        self.write(trainer, module, self.recorder.final)

    def write(self, trainer: lightning.Trainer, module: VAE, final: dict[str, float] | None = None) -> None:
        """Draw into the folder and into TensorBoard at the present step."""
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        writer = tensorboard(trainer)
        with at_rest(module):
            for name, figure in pictures(module, _datamodule(trainer), self.recorder.rows, final):
                pixels = render(figure)
                write_png(self.folder / f"{name}.png", pixels)
                if writer is not None:
                    writer.add_image(f"{TAG}/{name}", reduced(pixels), trainer.global_step, dataformats="HWC")


def project(trainer: lightning.Trainer, model: VAE) -> None:
    """Posterior means of test images for TensorBoard's projector, each with its label and its picture."""
    if (writer := tensorboard(trainer)) is None:
        return
    with at_rest(model):
        seen = encode(model, _datamodule(trainer), PROJECTED)
    writer.add_embedding(
        seen.means.flatten(1).double().cpu().round(decimals=4),  # short decimals: the file is text
        metadata=seen.labels.tolist(),
        label_img=sprites(seen.x),
        global_step=trainer.global_step,
        tag="posterior",
    )
