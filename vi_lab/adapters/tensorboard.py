"""TensorBoard, beyond its public interface: its server as an object, and the names of its files.

Checked against tensorboard 2.21.
"""

from __future__ import annotations

import logging
import warnings

EVENT_FILES = "events.out.tfevents.*"
"""Event files; they only ever grow."""


class PortTaken(Exception):
    """Something listens at the port that was wanted."""


def serve(logdir: str, host: str, port: int) -> str:
    """Start TensorBoard in a thread that ends with the process; its address.

    Args:
        port: 0 takes any free one.

    Raises:
        PortTaken: something listens there already.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own, about its imports
        from tensorboard import default, program
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    board = program.TensorBoard(default.get_plugins())
    board.configure(
        ("tensorboard",),
        logdir=logdir,
        host=host,
        port=port,
        load_fast="false",  # no server process of its own
        reload_multifile=True,  # a run writes several event files
        samples_per_plugin={"scalars": 5000, "images": 200},
    )
    try:
        return board.launch()
    except program.TensorBoardPortInUseError as error:
        raise PortTaken(str(error)) from error
