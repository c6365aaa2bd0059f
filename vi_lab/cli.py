"""The command line: `vi-lab COMMAND ...`. Imports nothing heavy until a command runs."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback

from vi_lab.errors import ViLabError, one_line, printable
from vi_lab.version import __version__

COMMANDS = {
    "train": ("vi_lab.commands.train", "train a VAE; Hydra overrides choose everything, -m sweeps"),
    "evaluate": ("vi_lab.commands.evaluate", "likelihood, bounds and latent use of trained models"),
    "audit": ("vi_lab.commands.audit", "how biased and how noisy each estimator is, at the weights of a model"),
    "compare": ("vi_lab.commands.compare", "tables and curves of finished runs: mean over seeds, paired differences"),
    "board": ("vi_lab.commands.board", "TensorBoard on this machine, over all runs below a folder"),
    "share": ("vi_lab.commands.share", "copy runs without what tells whose machine they were made on"),
    "reproduce": ("vi_lab.commands.reproduce", "repeat a run from its folder alone and compare bit by bit"),
}

LONGEST = 2000
"""Characters of a message: a value in it may be a stranger's."""

USAGE = f"""vi-lab {__version__}: variational inference with continuous and discrete latent variables

usage: vi-lab COMMAND [...]        vi-lab COMMAND --help says more

commands:
{chr(10).join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())}

--debug shows the traceback of an error.

examples:
  vi-lab train estimator=gumbel_softmax schedule=exponential latent=30x10 seed=1
  vi-lab train -m estimator=gaussian,gumbel_softmax,straight_through,reinforce seed=0,1,2
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 the world failed, 2 the user's mistake, 130 Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    command, *rest = arguments
    debug = _debug(rest)
    rest = [argument for argument in rest if argument != "--debug"]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(
            f"vi-lab: there is no command {command!r}{hint} (commands: {', '.join(COMMANDS)})",
            file=sys.stderr,
        )
        return 2
    try:
        return importlib.import_module(COMMANDS[command][0]).main(rest) or 0
    except ViLabError as error:
        if debug:
            traceback.print_exc()
        print(f"vi-lab {command}: {one_line(error)[:LONGEST]}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `vi-lab train --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a folder that cannot be written, a file that is none
        if debug:
            traceback.print_exc()
        print(f"vi-lab {command}: {one_line(error)[:LONGEST]}", file=sys.stderr)
        return 1
    except Exception as error:  # a mistake of ours, or in a class of the user's own
        if debug:
            traceback.print_exc()
        where = "" if debug else "; --debug shows where"
        print(f"vi-lab {command}: {type(error).__name__}: {one_line(error)[:LONGEST]}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"vi-lab {command}: {printable(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "exit_code", 130)


def _debug(arguments: list[str]) -> bool:
    return any(a == "--debug" or a.lstrip("+").lower() == "debug=true" for a in arguments)


if __name__ == "__main__":
    sys.exit(main())
