"""The command line: `vi-lab COMMAND ...`. Imports nothing heavy until a command runs."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from contextlib import suppress
from typing import TextIO

from vi_lab.commands import COMMANDS
from vi_lab.errors import UserError, ViLabError, complain, lacks_memory, one_line, printable
from vi_lab.version import __version__

LONGEST = 2000
"""Characters of a message: a value in it may be a stranger's."""

USAGE = f"""vi-lab {__version__}: variational inference with continuous and discrete latents

usage: vi-lab COMMAND [...]        vi-lab COMMAND --help says more

commands:
{chr(10).join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())}

--debug shows the traceback of an error.
eval "$(vi-lab -sc install=bash)" lets TAB complete commands, groups, choices,
keys and folders; also install=zsh, and vi-lab -sc install=fish | source.

examples:
  vi-lab train estimator=gumbel_softmax schedule=exponential latent=30x10 seed=1
  vi-lab train -m estimator=gaussian,gumbel_softmax,straight_through seed=0,1,2
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 the world failed, 2 the user's mistake, 128 + N signal N (130 for
    Ctrl-C), 141 nobody reads stdout any more."""
    arguments = sys.argv[1:] if argv is None else argv
    _open_streams()
    debug = _debug(arguments[1:])
    name = " ".join(["vi-lab", *(a for a in arguments[:1] if a in COMMANDS)])
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here its failure is an error as any other
        return code
    except BrokenPipeError:  # `vi-lab train | head`
        _mute(sys.stdout)
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        complain(f"{name}: {_explain(error, debug)}")
        _flush(sys.stderr)
        _flush(sys.stdout)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt as error:
        complain(f"{name}: {printable(error) or 'interrupted'}")
        _flush(sys.stderr)
        return getattr(error, "exit_code", 130)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if any(word in ("-sc", "--shell-completion") for word in arguments[:2]):  # also behind a command, as in Hydra
        return importlib.import_module("vi_lab.commands.completion").main(arguments)
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"there is no command {command!r}{hint} (commands: {', '.join(COMMANDS)})")
    rest = [argument for argument in rest if argument != "--debug"]
    return importlib.import_module(COMMANDS[command][0]).main(rest) or 0


def _explain(error: Exception, debug: bool) -> str:
    if isinstance(error, (ViLabError, OSError)):  # a full disk, a folder that cannot be written, a file that is none
        return one_line(error)[:LONGEST]
    if lacks_memory(error):
        return f"out of memory ({one_line(error)[:200]}); raise its limit, or take a smaller data.batch_size or network"
    # a mistake of ours, or in a class of the user's own
    return f"{type(error).__name__}: {one_line(error)[:LONGEST]}{'' if debug else '; --debug shows where'}"


def _open_streams() -> None:
    """What was closed (`vi-lab train >&-`) becomes the null device: else it is None, and a file of ours would get its
    number, and with it what a library writes there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (as long as the process)
            os.set_inheritable(stream.fileno(), True)  # jobs of a sweep have it too
            setattr(sys, name, stream)


def _flush(stream: TextIO) -> None:
    """What cannot be written goes nowhere, or Python would try it again at its exit, and fail."""
    try:
        stream.flush()
    except OSError:
        _mute(stream)


def _mute(stream: TextIO) -> None:
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _debug(arguments: list[str]) -> bool:
    return any(a == "--debug" or a.lstrip("+").lower() == "debug=true" for a in arguments)


if __name__ == "__main__":
    sys.exit(main())
