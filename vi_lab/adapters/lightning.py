"""Lightning, beyond its public interface: its notices, its errors, and what it makes of Ctrl-C.

Checked against lightning 2.6.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

__all__ = ["MisconfigurationException", "ctrl_c_as_it_came", "silence"]

HARMLESS = (
    "The number of training batches",  # points in TensorBoard may span epochs
    "`isinstance\\(treespec, LeafSpec\\)`",  # Lightning's own use of torch
    "The `srun` command",
    "Total length of `list` across ranks is zero",  # nothing is held out
)
"""Beginnings of warnings of Lightning's that say nothing to our users."""


def silence() -> None:
    """Lightning's notices repeat what the first line of a run says already; its other warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()
    for text in HARMLESS:
        warnings.filterwarnings("ignore", text)


@contextmanager
def ctrl_c_as_it_came() -> Iterator[None]:
    """Lightning ends the process by SystemExit where a KeyboardInterrupt reaches it; this raises the original."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
