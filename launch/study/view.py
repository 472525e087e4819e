"""Shows the progress of several runs: one bar per run on a terminal, otherwise lines from time to time."""

import sys
import time
from collections.abc import Mapping, Sequence

import tqdm

from f3r_jax.common.progress import Progress
from f3r_jax.config import is_trained
from study.runs import FINISHED, Run, last_row, state_of

SECONDS_BETWEEN_LINES = 60.0


class View:
    """Counts the runs of a plan, of which `done` are finished, and shows the progress of the running ones.

    A process is identified by the first of its runs.
    """

    def __init__(self, processes: Mapping[Run, Sequence[Run]], *, done: int) -> None:
        self._runs = processes
        total = done + sum(map(len, processes.values()))
        tqdm.tqdm.monitor_interval = 0  # no extra thread, because processes are started while bars are shown
        self._whole = Progress("runs", total, done=done)
        self._bars: dict[Run, tqdm.tqdm] = {}
        self._since: dict[Run, float] = {}
        self._terminal = sys.stderr.isatty()
        self._last_lines = time.monotonic()
        self._failed = 0

    def look(self, running: Sequence[Run]) -> None:
        """Updates the bars, or prints lines if the last ones are old."""
        now = time.monotonic()
        for run in running:
            self._since.setdefault(run, now)
        if self._terminal:
            for run in running:
                self._move(run)
        elif now - self._last_lines >= SECONDS_BETWEEN_LINES:
            self._last_lines = now
            for run in running:
                self._whole.note(f"  {run.program}: {where(run)}")

    def _move(self, run: Run) -> None:
        row = last_row(run.workdir)
        if run not in self._bars:
            steps = run.config.train.steps if is_trained(run.config) else None
            look = {"desc": run.program, "leave": False, "dynamic_ncols": True}
            self._bars[run] = tqdm.tqdm(total=steps, initial=row.get("step", 0), **look)
        bar = self._bars[run]
        if row:
            bar.n = row["step"]
            bar.set_postfix_str(f"loss {row['loss']:.4g}", refresh=False)
        bar.refresh()

    def ended(self, run: Run) -> None:
        """Prints a line for each run of a process that ended."""
        if run in self._bars:
            self._bars.pop(run).close()
        seconds = time.monotonic() - self._since.pop(run, time.monotonic())
        for each in self._runs[run]:
            state, remark = state_of(each)
            self._failed += state != FINISHED
            self._whole.note(f"{': '.join(filter(None, (state, each.name, remark)))} ({seconds:.0f} s)")
            self._whole.advance(**{"failed": float(self._failed)} if self._failed else {})

    def close(self) -> None:
        """Removes the bars."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()
        self._whole.__exit__(None, None, None)


def where(run: Run) -> str:
    """Text on the progress of a run."""
    row = last_row(run.workdir)
    if not row:
        return "begins" if is_trained(run.config) else "registers"
    if row["step"] == run.config.train.steps:
        return "evaluates"
    return f"step {row['step']}/{run.config.train.steps}, loss {row['loss']:.4g}"
