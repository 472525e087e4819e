"""Logs of the processes that a launcher starts: their output, attempt after attempt, with a line before and after."""

import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path

TAIL_BYTES = 1 << 16  # of a log or of metrics.jsonl; enough for the last lines
_STARTED, _ENDED = "== started ", "== exit status "


def tail(path: Path, size: int | None = TAIL_BYTES) -> list[str]:
    """The last lines of a text file, of `size` bytes; all if None."""
    try:
        with path.open("rb") as file:
            file.seek(0 if size is None else max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def mark_start(log: Path, command: Sequence[str]) -> None:
    """Writes the start of a new attempt to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"{_STARTED}{time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(command)}\n")


def mark_end(log: Path, status: int) -> None:
    """Writes the exit status to a log, except after SIGTERM: such a process is cut off, not failed."""
    if status != -signal.SIGTERM:
        with log.open("a") as file:
            file.write(f"{_ENDED}{status}\n")


def last_attempt(log: Path, size: int | None = TAIL_BYTES) -> tuple[list[str], int | None]:
    """The lines of the last attempt that are not empty, and its exit status; None if it runs or was cut off."""
    lines = tail(log, size)
    starts = [number for number, line in enumerate(lines) if line.startswith(_STARTED)]
    lines = [line for line in lines[starts[-1] + 1 if starts else 0 :] if line.strip()]
    if not lines or not lines[-1].startswith(_ENDED):
        return lines, None
    return lines[:-1], int(lines[-1].removeprefix(_ENDED))


def killed(status: int) -> str:
    """Text on a process that a signal ended, whose status is negative."""
    return f"killed by signal {-status}" + (": out of memory, or killed by a user" if status == -signal.SIGKILL else "")
