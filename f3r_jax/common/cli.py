"""Command line of all entry points: flag parsing, one-line error messages and exit statuses."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from f3r_jax.common.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, exit_on_user_error
from f3r_jax.common.malloc import keep_freed_memory

# ml_collections raises any of these for an unknown key or a wrong type. It quotes the error that a config file raised.
CONFIG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError)
QUOTED = "Traceback (most recent call last)"


def run_main(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags and runs `main`.

    A user's mistake is printed as one line on standard error and gives exit status 2. Ctrl-C gives status 130 and one
    line with the message of the KeyboardInterrupt.
    """
    keep_freed_memory()
    try:
        app.run(exit_on_user_error(main), flags_parser=_parse)
    except KeyboardInterrupt as interrupt:
        print("; ".join(filter(None, ("\ninterrupted", str(interrupt)))), file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except (UserError, *CONFIG_ERRORS) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    # absl prints INFO messages by default, and Orbax logs dozens of them per checkpoint.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    return rest


def one_line(error: Exception) -> str:
    """The message of one of CONFIG_ERRORS, in one line."""
    # str(KeyError) would put the text in quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if QUOTED in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())
