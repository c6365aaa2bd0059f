"""The benchmark: how fast vi_lab is, and against what.

    python scripts/benchmark.py NAME                        on MNIST, downloaded where it is absent
    python scripts/benchmark.py NAME data.root=FOLDER       further arguments are overrides of `vi-lab train`
    python scripts/benchmark.py NAME data=digits --rounds 1 --steps 10      a trial that needs no files
    python scripts/benchmark.py NAME --write                replaces the table in docs/benchmarks.md too

Shared machines drift, so what is compared is timed in turn within one run, block by block; a table shows medians over
the rounds, and ratios are medians of the ratios within a round. `NAME --help` says what NAME measures, and how.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from benchmarks import MEASUREMENTS
from benchmarks.common import Options, rewrite
from rich.table import Table

from vi_lab.console import make_console
from vi_lab.errors import ViLabError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def read(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` behind the name of a measurement describes that one."""
    named = next((word for word in argv if word in MEASUREMENTS), None)
    listing = "\n".join(f"  {name:<11} {what}" for name, what in MEASUREMENTS.items())
    described = (
        importlib.import_module(f"benchmarks.{named}").__doc__ if named else f"{__doc__}\nmeasurements:\n{listing}"
    )
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MEASUREMENTS, metavar="NAME", help="what to measure")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="for `vi-lab train`, such as data.root=FOLDER or data=digits"
    )
    parser.add_argument("--rounds", type=int, help="blocks of each loop, taken in turn")
    parser.add_argument("--steps", type=int, help="training steps in a block; of `evaluation` the images")
    parser.add_argument("--estimators", help="names between commas, where the measurement is of several")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> int:
    arguments = read(argv)
    measurement = importlib.import_module(f"benchmarks.{arguments.name}")
    console = make_console(140)
    with tempfile.TemporaryDirectory() as scratch:
        options = Options(
            arguments.overrides,
            arguments.rounds or measurement.ROUNDS,
            arguments.steps or measurement.STEPS,
            tuple(arguments.estimators.split(",")) if arguments.estimators else measurement.ESTIMATORS,
            Path(scratch),
        )
        try:
            result = measurement.measure(options)
        except ViLabError as error:
            print(f"{arguments.name}: {error}", file=sys.stderr)
            return error.exit_code
    table = Table(title=MEASUREMENTS[arguments.name], title_justify="left", caption=result.caption(options))
    for index, heading in enumerate(result.columns):
        table.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    for row in result.rows:
        table.add_row(*row)
    console.print(table)
    if arguments.write:
        rewrite(PAGE, arguments.name, [word for word in argv if word != "--write"], result, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
