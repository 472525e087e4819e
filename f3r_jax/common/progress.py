"""Progress of long tasks: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts steps up to `total` and prints values and the time left. Use as a context manager."""

    def __init__(self, label: str, total: int, *, done: int = 0) -> None:
        self._label, self._total, self._done = label, total, done
        self._bar = tqdm(total=total, initial=done, desc=label, dynamic_ncols=True) if sys.stderr.isatty() else None
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
            print(
                f"{self._label} {self._done}/{self._total}  {text}  {left:.0f} s left".replace("    ", "  "), flush=True
            )

    def note(self, line: str) -> None:
        """Prints a line that stays above the bar."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)
