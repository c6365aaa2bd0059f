"""Batches from a uint8 tensor in memory: one index operation each, no worker processes, no per-sample Python.

The order of an epoch is a function of (seed, epoch), the pixel noise of a batch of (seed, epoch, batch).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vi_lab.seeding import ORDER, PIXELS, fold

BINARIZATIONS = ("dynamic", "fixed", "threshold", "none", "dequantize")


def draw_bits(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bernoulli draws with probability v / 255 from uint8 images: r < v for r uniform on 0 ... 254, exactly."""
    return torch.empty_like(images).random_(0, 255, generator=generator) < images


class BatchLoader:
    """Iterates over batches (x, label): x (B, *shape) float32 in [0, 1].

    Args:
        images, labels: the split, on the device where batches are wanted. For "fixed" binarization the images
            hold 0 and 255 already.
        binarization: "dynamic" draws pixels anew at each access, "threshold" cuts at one half, "none" and "fixed"
            divide by 255. "dequantize" adds uniform noise, drawn anew too: (v + u) / 256, of which a density bounds
            the likelihood of the 256 levels (Theis et al. 2016, arXiv 1511.01844).
        shuffle: a new order each epoch (training); otherwise file order, and the noise does not depend on the epoch,
            so that evaluations compare across epochs.
        rank, world_size: this process's shard. Training shards have equal sizes, dropping fewer than world_size
            images an epoch; evaluation shards cover every image once.
    """

    batch_sampler = None  # Lightning looks for one where there is a `sampler`

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int,
        binarization: str = "dynamic",
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels = images, labels
        self.batch_size = batch_size
        self.seed = seed
        self.binarization = binarization
        self.shuffle = shuffle
        self.rank, self.world_size = rank, world_size
        total = len(images)
        self.size = total // world_size if shuffle else len(range(rank, total, world_size))
        self.batches = self.size // batch_size if drop_last else -(-self.size // batch_size)
        self.epoch = 0
        self.next_batch = 0  # batches handed out in this epoch
        self.resume_at = 0  # where the next iteration starts: not 0 only after `load_state_dict`
        self.generator = torch.Generator(images.device)

    @property
    def sampler(self) -> BatchLoader:
        """Lightning calls `loader.sampler.set_epoch(epoch)` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Which order and pixel noise come next; evaluation stays at epoch 0, so that its noise repeats."""
        self.epoch = epoch if self.shuffle else 0

    def __len__(self) -> int:
        return self.batches

    def order(self) -> Tensor:
        """(size,) indices of this shard in this epoch, on the images' device. The same on every kind of device."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(fold(self.seed, ORDER, self.epoch))
            index = torch.randperm(len(self.images), generator=generator)
        else:
            index = torch.arange(len(self.images))
        return index[self.rank :: self.world_size][: self.size].to(self.images.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order()
        first, self.resume_at = self.resume_at, 0
        for batch in range(first, self.batches):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            # before the yield: a checkpoint taken while the batch is in use counts it as done
            self.next_batch = batch + 1
            yield self.pixels(self.images[index], batch), self.labels[index]

    def pixels(self, images: Tensor, batch: int) -> Tensor:
        """uint8 -> float32 in [0, 1], binarized or with noise as asked for."""
        if self.binarization in ("dynamic", "dequantize"):
            self.generator.manual_seed(fold(self.seed, PIXELS, self.shuffle, self.epoch, batch, self.rank))
            if self.binarization == "dynamic":
                return draw_bits(images, self.generator).float()
            noise = torch.rand(images.shape, generator=self.generator, device=images.device)
            return noise.add_(images).div_(256)
        if self.binarization == "threshold":
            return (images > 127).float()
        return images.float().div_(255)

    def state_dict(self) -> dict[str, int]:
        """The position within the epoch, for exact resume."""
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the last batch that was handed out."""
        self.resume_at = self.next_batch = state["next_batch"] % self.batches
