"""Pictures of a comparison's runs, for the page: those of each group's first run that has them."""

from __future__ import annotations

import base64
from typing import NamedTuple

from vi_lab.comparison.groups import Comparison, Group
from vi_lab.errors import printable
from vi_lab.runs.trust import read_png

SHOWN = {
    "samples": "means of p(x|z) at z from the prior",
    "reconstructions": "test images, each with its reconstruction",
}
"""Of a run's `figures/`."""
WIDTH = 600
MOST = 24
"""Groups with pictures, in the order of the tables: the page stays below some megabytes."""


class Picture(NamedTuple):
    """One picture of a run."""

    caption: str
    uri: str
    """`data:image/png;base64,...`: nothing is loaded."""


def pictures(comparison: Comparison) -> dict[str, list[Picture]]:
    """What there is of each kind in `SHOWN`, by what it shows."""
    found = {text: [p for g in comparison.groups[:MOST] if (p := _picture(g, name))] for name, text in SHOWN.items()}
    return {text: shown for text, shown in found.items() if shown}


def _picture(group: Group, name: str) -> Picture | None:
    for record in group.records:
        if png := read_png(record.run.folder, f"figures/{name}.png", WIDTH):
            uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            return Picture(f"{group.name}, seed {printable(record.seed)}", uri)
    return None
