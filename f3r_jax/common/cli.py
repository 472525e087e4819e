"""Command line of all entry points: flag parsing, one-line error messages and exit statuses."""

import functools
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags, logging

from f3r_jax import __version__
from f3r_jax.common import events
from f3r_jax.common.errors import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, explained
from f3r_jax.common.malloc import keep_freed_memory

# XLA logs an error when a compilation takes more than two minutes, and some on GPUs where nothing is wrong. Real errors
# are raised too. It reads this when JAX is imported: after this module by most entry points.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# ml_collections raises any of these for an unknown key or a wrong type. It quotes the error that a config file raised.
CONFIG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError)
QUOTED = "Traceback (most recent call last)"
Groups = Mapping[str, Sequence[str]]  # heading: names of flags
HELP_FLAGS = ("--help", "-help", "-h", "--helpshort")
WIDTH = 100
SECONDS_TO_REPEAT = 0.05
JSON = "json"  # a boolean flag of some commands
JSON_HELP = "Print one JSON object per line instead of text; docs/scripts.md has the schema."


def run_main(main: Callable[[Sequence[str]], int | None], groups: Groups) -> None:
    """Parses the flags and runs `main`.

    `--version` prints the version, and `--help` the flags of the groups. A user's mistake is printed as one line and
    gives exit status 2. Ctrl-C gives status 130 and one line with the message of the KeyboardInterrupt. Errors are on
    standard error, or with `--json` events on standard output.
    """
    prepare_streams()
    if "--version" in sys.argv[1:]:
        exit_on_user_error(lambda: print(f"f3r_jax {__version__}"))()
        return
    if set(HELP_FLAGS) & set(sys.argv[1:]):
        description = sys.modules[main.__module__].__doc__ or ""  # not of "__main__", which can be a console script
        exit_on_user_error(lambda: print(help_text(description, groups)))()
        return
    sys.argv[1:] = with_home(sys.argv[1:])
    keep_freed_memory()
    sys.unraisablehook = repeat_lost_interrupt
    events.use_json(_wants_json(sys.argv[1:]))
    try:
        app.run(exit_on_user_error(functools.partial(_start, main)), flags_parser=_parse)
    except KeyboardInterrupt as interrupt:
        message = "; ".join(filter(None, ("interrupted", str(interrupt))))
        events.error(message, status=EXIT_INTERRUPTED, text=f"\n{message}")
        sys.exit(EXIT_INTERRUPTED)


def _start(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    """Reports the start and runs `main`."""
    # A built-in function has no module, and an interactive session no spec.
    spec = getattr(sys.modules.get(main.__module__ or ""), "__spec__", None)
    command = (spec.name if spec else "").removeprefix("f3r_jax.").removesuffix(".__main__")
    events.emit(events.START, None, command=command, version=__version__, arguments=sys.argv[1:])
    return main(argv)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether the arguments have `--json`, also if they cannot be parsed. The benchmark's `--json` names a file."""
    known = JSON in flags.FLAGS and flags.FLAGS[JSON].boolean
    given = [text.lstrip("-") for text in arguments if re.fullmatch(r"--?(no)?json(=true|=false)?", text)]
    return known and bool(given) and given[-1] in (JSON, f"{JSON}=true")


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int | None]:
    """Wraps an entry point: a `UserError` becomes one line and exit status 2.

    So does an error of the machine (`explained`). If the reader of standard output has gone, as with `| head`, the
    command ends with status 1 and prints nothing.
    """

    def wrapped(*args: object) -> int | None:
        try:
            status = main(*args)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_BROKEN_PIPE)
        except UserError as error:
            line = str(error)
        except Exception as error:
            line = explained(error) or ""
            if not line:
                raise
        events.error(line, status=EXIT_USER_ERROR)
        sys.exit(EXIT_USER_ERROR)

    return wrapped


def repeat_lost_interrupt(lost: "sys.UnraisableHookArgs") -> None:
    """Sends Ctrl-C to this process again if its KeyboardInterrupt was lost.

    Python drops an exception in a callback of the garbage collector or in a finaliser, and calls `sys.unraisablehook`.
    JAX has such a callback, so Ctrl-C was sometimes ignored. The signal must arrive after the callback has ended.
    """
    if isinstance(lost.exc_value, KeyboardInterrupt):
        again = threading.Timer(SECONDS_TO_REPEAT, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def prepare_streams() -> None:
    """Makes standard output and error usable: characters that they lack are escaped, and closed ones discard text."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # opens the smallest free number; otherwise a file of the result could get it
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def with_home(arguments: Sequence[str]) -> list[str]:
    """Replaces ~ at the start of the flags' values by the home folder, which shells do not do after an equals sign."""
    split = [re.fullmatch(r"(--?[\w.]+=)(~.*)", argument, re.DOTALL) for argument in arguments]
    return [
        f"{found[1]}{os.path.expanduser(found[2])}" if found else argument
        for found, argument in zip(split, arguments, strict=True)
    ]


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except (UserError, *CONFIG_ERRORS) as error:
        events.error(_unknown_key(argv, error) or one_line(error), status=EXIT_USER_ERROR)
        sys.exit(EXIT_USER_ERROR)
    # absl prints INFO messages by default, and Orbax logs dozens of them per checkpoint.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    return rest


def _unknown_key(argv: Sequence[str], error: Exception) -> str | None:
    """The message for a flag --config.KEY=VALUE of a key that the config lacks; ml_collections names the key alone."""
    key = str(error).strip("\"'")
    for argument in argv:
        name = argument.partition("=")[0].lstrip("-")
        if name.startswith("config.") and key in name.split("."):
            return f"--{name}: the config has no key {key!r}; expected one that f3r_jax/config.py defines"
    return None


def one_line(error: Exception) -> str:
    """The message of one of CONFIG_ERRORS, in one line."""
    # str(KeyError) would put the text in quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if QUOTED in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def help_text(description: str, groups: Groups, values: flags.FlagValues = flags.FLAGS) -> str:
    """What `--help` prints: the command's description, then its flags by group, with values and defaults."""
    lines = [description.strip()]
    for heading, names in groups.items():
        lines += ["", f"{heading}:"]
        for name in names:
            flag = values[name]
            lines.append(f"  {_usage(flag)}")
            described = re.sub(r"^<[^>]*>: ", "", " ".join((flag.help or "").split()))  # without absl's list of choices
            lines += textwrap.wrap(described + _default(flag), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _usage(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    if choices := getattr(flag.parser, "enum_values", None):
        return f"--{flag.name}={{{','.join(choices)}}}"
    value = {"int": "N", "float": "X", "comma separated list of strings": "A,B,..."}.get(flag.flag_type(), "VALUE")
    return f"--{flag.name}={value}"


def _default(flag: flags.Flag) -> str:
    if flag.default is None or (flag.boolean and not flag.default):
        return ""
    return f" (default: {(flag.default_as_str or '').strip(chr(39))})"
