"""What a command reports: lines of text, or with `--json` one JSON object per line on standard output.

docs/scripts.md has the schema of the objects. Like standard output itself, the choice holds for the whole process; only
`common/cli.py` makes it.
"""

import json
import os
import sys
from typing import Any

from f3r_jax.common.files import json_safe

START, PROGRESS, RESULT, VERDICT, WARNING, ERROR = "start", "progress", "result", "verdict", "warning", "error"
NOTE = "note: "  # begins a line that a user should read
_format = {"json": False}


def use_json(on: bool) -> None:
    """Chooses JSON or text for all later events."""
    _format["json"] = on


def as_json() -> bool:
    """Whether events are printed as JSON."""
    return _format["json"]


def emit(event: str, text: str | None, *, to_stderr: bool = False, **facts: Any) -> None:
    """Prints an event: its text, if it has one, or with `--json` its facts."""
    if as_json():
        whole = json_safe({"event": event, **facts})
        text, to_stderr = json.dumps(whole, default=os.fspath, allow_nan=False), False
    if text is not None:
        stream = sys.stderr if to_stderr else sys.stdout
        stream.write(text + "\n")  # at once, because threads print too
        stream.flush()


def line(text: str) -> None:
    """Prints a line of text: a warning if it begins with `NOTE`, else progress."""
    emit(WARNING if text.startswith(NOTE) else PROGRESS, text, message=text.removeprefix(NOTE))


def warning(message: str) -> None:
    """Prints a warning."""
    emit(WARNING, f"WARNING: {message}", message=message)


def error(message: str, *, status: int, text: str | None = None, **facts: Any) -> None:
    """Prints an error that gives the exit status; as text on standard error, by default after `error: `."""
    message = " ".join(message.split())
    text = f"error: {message}" if text is None else text
    emit(ERROR, text, to_stderr=True, message=message, status=status, **facts)
