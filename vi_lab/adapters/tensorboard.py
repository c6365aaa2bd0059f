"""TensorBoard, beyond its public interface: its server as an object, the names of its files, the threads that write
them, and the columns of its table of hyperparameters.

Checked against tensorboard 2.21.
"""

from __future__ import annotations

import argparse
import logging
import math
import threading
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

EVENT_FILES = "events.out.tfevents.*"
"""Event files; they only ever grow."""


def hush_writers() -> None:
    """What fails in the thread that writes an event file, as on a full disk, is raised where the next event is logged;
    Python would print the thread's traceback as well."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    say = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.thread, _AsyncWriterThread):
            say(arguments)

    if say.__module__ != __name__:
        threading.excepthook = hook


COLUMNS = 5
"""Of the hyperparameters, the table shows so many at first."""


def table(hyperparameters: Mapping[str, Any], metrics: Iterable[str]) -> list[Any]:
    """A run's row in the table of hyperparameters, and its columns, which those of all runs are taken from: the metrics
    in this order, and the first few hyperparameters. TensorBoard sorts these by name behind the ones that are marked
    as differing between runs, so we mark them. Protocol buffers `Summary`."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
    from torch.utils.tensorboard.summary import hparams

    columns, *row = hparams(dict(hyperparameters), dict.fromkeys(metrics, math.nan))
    plugin = columns.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in [*hyperparameters][:COLUMNS]
    plugin.content = data.SerializeToString()
    return [columns, *row]


class PortTaken(Exception):
    """Something listens at the port that was wanted."""


LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def local_only(app: WSGIApplication) -> WSGIApplication:
    """Answer only who asks for this machine by name: a page whose own name is made to point here (DNS rebinding) could
    otherwise read the runs."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").lower()
        if host not in (f"{name}{end}" for name in LOCAL_NAMES for end in ("", f":{environ['SERVER_PORT']}")):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"only under the names of this machine\n"]
        return app(environ, start_response)

    return guarded


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

    def server(app: WSGIApplication, flags: argparse.Namespace) -> Any:
        return program.create_port_scanning_werkzeug_server(local_only(app), flags)

    board = program.TensorBoard(default.get_plugins(), server_class=server)
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
