"""The digits embedded in scikit-learn."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vi_lab.data.sources.source import Images, Place, Shape


class Digits:
    """1,797 digits of 8x8 with values 0 to 16, resized to 28x28; every fifth image for testing. Needs no files."""

    def shape(self, place: Place) -> Shape:
        """MNIST's."""
        return 1, 28, 28

    def count(self, place: Place) -> int:
        """How many scikit-learn has."""
        return 1797

    def load(self, place: Place) -> Images:
        """Resize them."""
        from sklearn.datasets import load_digits  # slow to import, and needed here only

        pixels, digits = load_digits(return_X_y=True)  # (1797, 64), (1797,)
        small = torch.as_tensor(pixels, dtype=torch.float64).view(-1, 1, 8, 8) / 16
        images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
        images = (images * 255).round().to(torch.uint8)
        labels = torch.as_tensor(digits, dtype=torch.int64)
        test = torch.arange(len(images)) % 5 == 0
        return Images(images[~test], labels[~test], images[test], labels[test])
