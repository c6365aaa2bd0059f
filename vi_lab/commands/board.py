"""`vi-lab board [PATH]`: TensorBoard over all runs below a folder, reachable from this machine only."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from pathlib import Path

from vi_lab.adapters import tensorboard
from vi_lab.adapters.tensorboard import EVENT_FILES
from vi_lab.arguments import Parser, folder_of
from vi_lab.errors import UserError, printable
from vi_lab.runs.trust import inside

HOST = "127.0.0.1"
PORT = 6006


def serve(folder: Path, port: int = PORT) -> tuple[str, bool]:
    """Start TensorBoard in a thread that ends with the process.

    Args:
        port: wanted; where something listens there already, a free one is taken.

    Returns:
        its address, and whether that has the port that was wanted.

    Raises:
        UserError: there is nothing to show, or something that is no file.
        ViLabError: a link leads out of the folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a run folder, a sweep folder, or outputs/")
    files = list(folder.rglob(EVENT_FILES))
    if not files:
        raise UserError(f"{folder}: no TensorBoard events below it; vi-lab train writes them into its run folders")
    for file in files:  # TensorBoard would read whatever stands there
        if not inside(folder, str(file.relative_to(folder))).is_file():
            raise UserError(f"{file}: not a regular file; remove it")
    logdir = _named(folder.resolve())
    try:
        return tensorboard.serve(str(logdir), HOST, port), True
    except tensorboard.PortTaken:
        return tensorboard.serve(str(logdir), HOST, 0), False


def _named(folder: Path) -> Path:
    """A folder to serve in which the runs have names: TensorBoard calls a run that it is pointed at `.`."""
    if next(folder.glob(EVENT_FILES), None) is None:
        return folder
    beside = Path(tempfile.mkdtemp(prefix="vi_lab-board-"))
    atexit.register(shutil.rmtree, beside, ignore_errors=True)
    try:
        (beside / folder.name).symlink_to(folder, target_is_directory=True)
    except OSError:  # not every system lets everyone make links
        return folder
    return beside


def parser() -> Parser:
    """The arguments."""
    parser = Parser(prog="vi-lab board", description=f"TensorBoard on {HOST}, over all runs below a folder.")
    what = "a folder with runs (outputs); run=FOLDER is the same"
    parser.add_argument("path", metavar="FOLDER", nargs="?", default="outputs", type=folder_of, help=what)
    parser.add_argument("--port", type=int, default=PORT, help=f"the port; 0: any free one ({PORT})")
    return parser


def main(argv: list[str]) -> int:
    """Serve TensorBoard on this machine until Ctrl-C, on a free port where the one asked for is taken.

    Raises:
        UserError: a port out of range, or nothing to show.
    """
    arguments = parser().parse_args(argv)
    if not 0 <= arguments.port <= 65535:
        raise UserError(f"--port {arguments.port}: wanted a port from 0 to 65535")
    try:
        url, wanted = serve(Path(arguments.path), arguments.port)
        if not wanted:
            print(f"Port {arguments.port} is taken; using a free one.")
        print(f"TensorBoard of {printable(arguments.path)}: {url}")
        print('"Custom scalars" lays relaxed over unrelaxed loss; "HParams" compares settings and final losses.')
        print("Ctrl-C ends it.", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("\nTensorBoard ended.")
    return 0
