"""Images, whole in memory as uint8 on the training device."""

from vi_lab.data.loader import BINARIZATIONS, BatchLoader
from vi_lab.data.module import MNISTDataModule
from vi_lab.data.sources import SOURCES, Images, load
from vi_lab.data.steps import Steps

__all__ = ["BINARIZATIONS", "SOURCES", "BatchLoader", "Images", "MNISTDataModule", "Steps", "load"]
