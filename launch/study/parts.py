"""Parts of a cohort: processes that register some rows of a table, and what their logs tell of each pair."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from f3r_jax.register.batch_summary import NUMBERS, Row
from study.logs import killed, last_attempt


@dataclasses.dataclass(frozen=True)
class Part:
    """One process: `python -m f3r_jax.register` with these pairs, whose rows begin at `start`, from 0."""

    start: int
    pairs: tuple[str, ...]
    folder: Path  # for logs
    shared: tuple[str, ...]  # the command without rows

    @property
    def name(self) -> str:
        """The name, which has the rows as the user counts them: from 1."""
        return f"rows_{self._rows}"

    @property
    def program(self) -> str:
        """The name of the process."""
        return self.name

    @property
    def log(self) -> Path:
        """The file for the output, which is JSON."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def command(self) -> list[str]:
        """The command line. The same command resumes."""
        return [*self.shared, f"--rows={self._rows}"]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process on this machine: unchanged."""
        return dict(os.environ)

    @property
    def _rows(self) -> str:
        return f"{self.start + 1}-{self.start + len(self.pairs)}"


def row_of_event(event: Mapping[str, Any]) -> Row:
    """The row of a pair from its event `result`."""
    numbers = {key: event[key] for key in NUMBERS if key in event}
    return Row(
        event["name"], event["status"], numbers, event.get("verdict"), event.get("reason"), event.get("traceback")
    )


def results(part: Part) -> dict[str, Row]:
    """The rows of the pairs that the last attempt finished or found finished, or that failed in it."""
    events = _events(part)
    return {each["name"]: row_of_event(each) for each in events if each["event"] == "result" and each["of"] == "pair"}


def failures(part: Part) -> dict[str, str]:
    """Why pairs failed in the last attempt, by name."""
    return {name: row.reason or "" for name, row in results(part).items() if row.status == "failed"}


def problem(part: Part) -> str:
    """Why the last attempt ended before all its pairs were registered, in one line."""
    lines, status = last_attempt(part.log, None)
    if status is None:
        return "cut off"
    if status < 0:
        return killed(status)
    errors = [event["message"] for event in _events(part) if event["event"] == "error" and "name" not in event]
    return (errors or lines or [f"exit status {status}"])[-1].strip()


def _events(part: Part) -> Iterator[dict[str, Any]]:
    """The events of the last attempt. Other lines, such as a traceback, are skipped."""
    for line in last_attempt(part.log, None)[0]:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
