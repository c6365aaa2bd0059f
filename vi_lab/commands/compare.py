"""`vi-lab compare PATHS...`: finished runs against each other; writes tables, curves and a page."""

from __future__ import annotations

import time
from pathlib import Path

from vi_lab.comparison.compare import compare
from vi_lab.comparison.publish import publish
from vi_lab.errors import Parser
from vi_lab.runs.files import CONFIG_FILE
from vi_lab.runs.run import find_runs
from vi_lab.runs.trust import inside


def default_folder(paths: list[str]) -> Path:
    """Where the files go: beside the runs where one folder of them was named, otherwise a folder of their own.

    Raises:
        ViLabError: a link leads out of that folder.
    """
    if len(paths) == 1 and (folder := Path(paths[0])).is_dir() and not (folder / CONFIG_FILE).is_file():
        return inside(folder, "comparison")
    return Path("outputs") / "comparison" / time.strftime("%Y-%m-%d_%H-%M-%S")


def main(argv: list[str]) -> int:
    """Compare finished runs; print the tables and write the files.

    Raises:
        UserError: no run, no such reference, no such column, or none that has finished.
    """
    parser = Parser(
        prog="vi-lab compare",
        description="Means over seeds, paired differences and curves of finished runs. Groups are ordered by "
        "val/loss and reported on the test images; unfinished runs are named.",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="run folders, sweep folders, patterns (outputs)")
    parser.add_argument("--reference", metavar="NAME", help="the group that others are held against (the best one)")
    parser.add_argument("--select", action="store_true", help="only the best setting of each estimator, by val/loss")
    parser.add_argument("--adjust", action="store_true", help="intervals that hold all at once, not each on its own")
    parser.add_argument(
        "--columns", metavar="NAMES", default="", help="such as test,difference,nll (all; a page's worth in the .tex)"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where the files go (PATH/comparison)")

    arguments = parser.parse_args(argv)
    comparison = compare(
        find_runs(arguments.paths or ["outputs"]), arguments.reference, arguments.select, arguments.adjust
    )
    comparison.columns = [name for part in arguments.columns.split(",") if (name := part.strip())]
    publish(comparison, arguments.output or default_folder(arguments.paths))
    return 0
