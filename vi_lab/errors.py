"""Errors that end a command in one clear line instead of a traceback."""


class ViLabError(Exception):
    """Something in the world went wrong (a file, the network, a diverged loss). Exit code 1."""

    exit_code = 1


class UserError(ViLabError):
    """The command cannot work as given: says what was wanted, what came and what to do. Exit code 2."""

    exit_code = 2


def one_line(error: BaseException) -> str:
    """The message of `error` on a single line."""
    return " ".join(str(error).split()) or type(error).__name__
