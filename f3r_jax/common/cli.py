"""What all entry points share: flags that are parsed with one clear line for a mistake, and exit statuses."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from f3r_jax.common.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, exit_on_user_error
from f3r_jax.common.malloc import keep_freed_memory

# ml_collections reports an unknown or ill-typed config key with any of these, and quotes what a config file raised.
CONFIG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError)
QUOTED = "Traceback (most recent call last)"


def run_main(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags and runs `main`; a user's mistake ends in one line on standard error and exit status 2.

    So does Ctrl-C, with status 130; what the KeyboardInterrupt has to say stands in its line.
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
    # absl shows INFO unless told otherwise, and Orbax writes dozens of such lines a checkpoint.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    return rest


def one_line(error: Exception) -> str:
    """What one of CONFIG_ERRORS says, in one line."""
    # str(KeyError) quotes its text.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if QUOTED in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())
