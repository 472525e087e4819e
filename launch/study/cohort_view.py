"""Shows the progress of a cohort: a line per pair, and a count of all pairs."""

import time
from collections.abc import Collection, Sequence

import tqdm

from f3r_jax.common.progress import Progress
from f3r_jax.register.batch_summary import Row, format_row
from study.parts import Part, results

SECONDS_BETWEEN_LOOKS = 2.0


class CohortView:
    """Counts the pairs of a cohort, of which `done` were registered before."""

    def __init__(self, count: int, done: Collection[str]) -> None:
        tqdm.tqdm.monitor_interval = 0  # no extra thread, because processes are started while a bar is shown
        self._shown = set(done)
        self._progress = Progress("registering", count, done=len(done))
        self._last_look = time.monotonic()

    def look(self, running: Sequence[Part]) -> None:
        """Shows the pairs that were registered since the last look."""
        now = time.monotonic()
        if now - self._last_look >= SECONDS_BETWEEN_LOOKS:
            self._last_look = now
            for part in running:
                # Failures are shown at the end: until its process begins, the log of a task is that of an earlier one.
                self._show([row for row in results(part).values() if row.status == "done"])

    def ended(self, part: Part) -> None:
        """Shows the pairs of a process that ended."""
        self._show(results(part).values())

    def close(self) -> None:
        """Removes the bar."""
        self._progress.__exit__(None, None, None)

    def _show(self, rows: Collection[Row]) -> None:
        for row in rows:
            if row.name not in self._shown:
                self._shown.add(row.name)
                self._progress.note(format_row(row))
                self._progress.advance()
