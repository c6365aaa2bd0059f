"""The DataModule that all models share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import lightning
import torch

from vi_lab.data.loader import BINARIZATIONS, BatchLoader, draw_bits
from vi_lab.data.sources import SOURCES, Images, Place, Shape, load
from vi_lab.errors import UserError


class MNISTDataModule(lightning.LightningDataModule):
    """Images, split into train, validation and test, binarized in one of several ways or left as they are.

    Args:
        source: one of `vi_lab.data.SOURCES`.
        root: the folder of the published data sets, in torchvision's layout (ROOT/MNIST/raw/...); of "folder" and
            "arrays" the folder or the file with the images; not used by digits.
        download: fetch what is absent of a published data set.
        batch_size, eval_batch_size: images per step and device.
        validation: the last so many training images are held out; 0 trains on all.
        folds: K-fold cross-validation in place of that: the training images in K parts of equal size (but for one),
            the same ones in every run, of which the one with the number `fold`, from 0, is held out.
        binarization: dynamic, fixed, threshold, none or dequantize; see `BatchLoader`. "fixed" is the same draw for
            every run, whatever its seed.
        drop_last: drop an incomplete last training batch.
        test_every_epoch: evaluate the test split after each epoch too, for curves.
        seed: of order and pixels.
        size, channels: of the images of a "folder": pixels, as one number or as rows and columns; 1 or 3.
    """

    def __init__(
        self,
        source: str = "mnist",
        root: str | None = "data",
        download: bool = False,
        batch_size: int = 100,
        validation: int = 10_000,
        binarization: str = "dynamic",
        drop_last: bool = True,
        eval_batch_size: int = 1000,
        test_every_epoch: bool = False,
        seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        if binarization not in BINARIZATIONS:
            raise ValueError(f"binarization must be one of {', '.join(BINARIZATIONS)}; got {binarization!r}")
        self.source, self.root, self.download = source, root, download
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        if folds is not None and not 0 <= fold < folds:
            raise ValueError(f"fold={fold}: wanted 0 to {folds - 1}, as folds={folds}")
        self.validation, self.binarization, self.folds, self.fold = validation, binarization, folds, fold
        self.drop_last, self.test_every_epoch, self.seed = drop_last, test_every_epoch, seed
        self.size, self.channels = size, channels
        self.images: Images | None = None
        self.digest: str | None = None

    @cached_property
    def shape(self) -> Shape:
        """Channels, rows and columns of an image, known before the data are loaded. A data set of one's own overrides
        it, by an attribute of its class, unless it is (1, 28, 28).

        Raises:
            UserError: there is no such file or folder, or what is in it has no one shape.
        """
        place = Place(self.source, self.root, self.download, self.size, self.channels)
        return SOURCES[self.source].shape(place) if self.source in SOURCES else (1, 28, 28)

    def prepare_data(self) -> None:
        """Download in one process only; the others then find the files."""
        self.load()

    def load(self) -> Images:
        """The data, on the CPU, loaded once.

        Raises:
            ViLabError: absent or damaged files.
            UserError: the splits leave nothing to train on.
        """
        if self.images is None:
            images = load(self.source, self.root, self.download, self.size, self.channels)
            left = self.training_images(images)
            if left < (self.batch_size if self.drop_last else 1):
                key = f"data.folds={self.folds}" if self.folds else f"data.validation={self.validation}"
                raise UserError(
                    f"{key} leaves {max(left, 0)} of {len(images.train_images)} "
                    f"{self.source} images to train on, less than data.batch_size={self.batch_size}"
                )
            self.images = images
        return self.images

    def training_images(self, images: Images) -> int:
        """How many are not held out; less than none where `validation` is too large."""
        total = len(images.train_images)
        return total - (self.validation if self.folds is None else len(range(self.fold, total, self.folds)))

    def checksum(self) -> str:
        """sha256 of the images and labels, before splitting and binarization."""
        if self.digest is None:
            digest = hashlib.sha256()
            for tensor in self.load():
                digest.update(tensor.contiguous().numpy().data)
            self.digest = digest.hexdigest()
        return self.digest

    def setup(self, stage: str | None = None) -> None:
        """Split the data and move it to the trainer's device, or leave it on the CPU where there is no trainer.

        Raises:
            UserError: a data set of one's own is not what it says of itself.
        """
        images = self.load()
        for split in (images.train_images, images.test_images):
            if split.dtype != torch.uint8 or tuple(split.shape[1:]) != tuple(self.shape):
                raise UserError(
                    f"{type(self).__name__}: wanted uint8 images (N, {', '.join(map(str, self.shape))}), as its shape "
                    f"says; load() gave {split.dtype} {tuple(split.shape)}"
                )
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if self.binarization == "fixed":
            # one generator over both splits in turn: the same bits on every device and for every seed
            generator = torch.Generator().manual_seed(0)
            bits = [draw_bits(split, generator).to(torch.uint8) * 255 for split in (images[0], images[2])]
            images = Images(bits[0], images.train_labels, bits[1], images.test_labels)
        cut = self.training_images(images)
        pixels, labels = images.train_images, images.train_labels
        if self.folds is not None:
            order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))  # of every run
            held = torch.zeros(len(pixels), dtype=torch.bool)
            held[order[self.fold :: self.folds]] = True
            last = torch.cat([(~held).nonzero(), held.nonzero()]).squeeze(1)
            pixels, labels = pixels[last], labels[last]
        self.splits = {
            "train": (pixels[:cut].to(device), labels[:cut].to(device)),
            "val": (pixels[cut:].to(device), labels[cut:].to(device)),
            "test": (images.test_images.to(device), images.test_labels.to(device)),
        }

    def mean_image(self) -> torch.Tensor:
        """(*shape) float64: the mean of the training images as a model sees them; of drawn pixels, over all draws."""
        if not hasattr(self, "splits"):
            self.setup()
        images = self.splits["train"][0]
        images = (images > 127).byte() * 255 if self.binarization == "threshold" else images
        total = images.cpu().sum(0, dtype=torch.int64).double()  # whole numbers sum without rounding
        return total / (255 * len(images))

    @property
    def validation_splits(self) -> list[str]:
        """What is evaluated after each epoch, in the order of the validation loaders."""
        return ["val"] * (self.validation > 0 or self.folds is not None) + ["test"] * self.test_every_epoch

    def loader(self, split: str, whole: bool = False) -> BatchLoader:
        """Batches of a split; of this process's shard of it where several train together, unless `whole`."""
        training = split == "train"
        trainer = None if whole else self.trainer
        return BatchLoader(
            *self.splits[split],
            self.batch_size if training else self.eval_batch_size,
            seed=self.seed,
            binarization=self.binarization,
            shuffle=training,
            drop_last=training and self.drop_last,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of this process's shard."""
        return self.loader("train")

    def val_dataloader(self) -> list[BatchLoader]:
        """A loader for each of `validation_splits`, in file order."""
        return [self.loader(split) for split in self.validation_splits]

    def test_dataloader(self) -> BatchLoader:
        """The test split in file order."""
        return self.loader("test")
