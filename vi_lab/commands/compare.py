"""`vi-lab compare FOLDER...`: finished runs against each other; writes tables, curves and a page."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from vi_lab.arguments import Parser, folder_of
from vi_lab.errors import UserError, ViLabError
from vi_lab.runs.files import CONFIG_FILE
from vi_lab.runs.run import Run, find_runs
from vi_lab.runs.trust import inside


def default_folder(paths: list[str]) -> Path:
    """Where the files go: beside the runs where one folder of them was named, otherwise a folder of their own.

    Raises:
        ViLabError: a link leads out of that folder.
    """
    if len(paths) == 1 and (folder := Path(paths[0])).is_dir() and not (folder / CONFIG_FILE).is_file():
        return inside(folder, "comparison")
    return Path("outputs") / "comparison" / time.strftime("%Y-%m-%d_%H-%M-%S")


def parser() -> Parser:
    """The arguments."""
    parser = Parser(
        prog="vi-lab compare",
        description="Means over seeds, paired differences and curves of finished runs. Groups are ordered by "
        "val/loss and reported on the test images; unfinished runs are named.",
    )
    what = "run folders, sweep folders, patterns (outputs); run=FOLDER is the same"
    parser.add_argument("paths", nargs="*", metavar="FOLDER", type=folder_of, help=what)
    parser.add_argument("--reference", metavar="NAME", help="the group that others are held against (the best one)")
    parser.add_argument("--select", action="store_true", help="only the best setting of each estimator, by val/loss")
    parser.add_argument("--adjust", action="store_true", help="intervals that hold all at once, not each on its own")
    parser.add_argument(
        "--columns", metavar="NAMES", default="", help="such as test,difference,nll (all; a page's worth in the .tex)"
    )
    parser.add_argument("--tag", metavar="TAG", action="append", default=[], help="only runs with this tag; repeatable")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where the files go (FOLDER/comparison)")
    return parser


def tagged(runs: list[Run], tags: list[str]) -> list[Run]:
    """The runs that have all of some tags.

    Raises:
        UserError: there is none.
    """
    known: set[str] = set()
    found = []
    for run in runs:
        with suppress(ViLabError):  # what cannot be read has no tags
            own = set(run.settings.get("tags") or ())
            known |= own
            found += [run] if own.issuperset(tags) else []
    if not found:
        there_are = f"there are {', '.join(sorted(known))}" if known else "none has any"
        raise UserError(f"--tag {' --tag '.join(tags)}: none of the {len(runs)} runs; {there_are}")
    return found


def main(argv: list[str]) -> int:
    """Compare finished runs; print the tables and write the files.

    Raises:
        UserError: no run, no such reference, no such column, or none that has finished.
    """
    arguments = parser().parse_args(argv)
    runs = find_runs(arguments.paths or ["outputs"])
    if arguments.tag:
        runs = tagged(runs, arguments.tag)
    from vi_lab.comparison.compare import compare  # a second of imports, now that nothing is wrong
    from vi_lab.comparison.publish import publish

    comparison = compare(runs, arguments.reference, arguments.select, arguments.adjust)
    comparison.columns = [name for part in arguments.columns.split(",") if (name := part.strip())]
    publish(comparison, arguments.output or default_folder(arguments.paths))
    return 0
