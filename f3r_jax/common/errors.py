"""Errors that a user can fix, reported in one line, and the exit statuses of all commands."""

import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # the status that a shell reports after Ctrl-C


class UserError(Exception):
    """An error that the user can fix. The message names the file, what was found and what was expected."""


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int | None]:
    """Wraps an entry point: a `UserError` becomes one line on standard error and exit status 2."""

    def wrapped(*args: object) -> int | None:
        try:
            return main(*args)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)

    return wrapped
