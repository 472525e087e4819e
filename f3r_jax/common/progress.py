"""Progress of long tasks: a bar on a terminal, plain lines elsewhere, events with `--json`."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from f3r_jax.common import events

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts steps up to `total` and prints values and the time left. Use as a context manager."""

    def __init__(self, label: str, total: int, *, done: int = 0) -> None:
        self._label, self._total, self._done = label, total, done
        shows_bar = sys.stderr.isatty() and not events.as_json()
        self._bar = tqdm(total=total, initial=done, desc=label, dynamic_ncols=True) if shows_bar else None
        self._start, self._first = time.monotonic(), done
        self._last_line = -_SECONDS_BETWEEN_LINES

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, **values: float) -> None:
        """Counts one step; `values` are printed next to the count."""
        self._done += 1
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = now
            left = (now - self._start) / (self._done - self._first) * (self._total - self._done)
            events.emit(
                events.PROGRESS,
                f"{self._label} {self._done}/{self._total}  {text}  {left:.0f} s left".replace("    ", "  "),
                task=self._label,
                done=self._done,
                total=self._total,
                seconds_left=round(left, 1),
                values=values,
            )

    def note(self, line: str) -> None:
        """Prints a line that stays above the bar."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            events.line(line)

    def report(self, event: str, text: str, **facts: Any) -> None:
        """Prints an event, whose text stays above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            events.emit(event, text, **facts)
