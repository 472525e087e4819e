"""Times the stages of a registration."""

import time
from collections.abc import Callable


class StageTimer:
    """Times each stage and reports it; a stage that runs twice adds up. `shown` is whether lines are printed."""

    def __init__(self, note: Callable[[str], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self.shown = note is not None
        self._note, self._last = note or (lambda line: None), time.perf_counter()

    def stop(self, name: str, line: str) -> None:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._note(f"{line} ({seconds:.1f} s)")
