"""Executes the plan of a study and writes its report; used by all launchers.

Finished runs are skipped, interrupted runs resume, and failed runs are tried again. A failed run does not stop the
others and is listed at the end. Exit status: 0 on success, 1 if a run or the report failed, 2 for a user's mistake,
130 if interrupted.
"""

import argparse
import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from f3r_jax.common import locks
from f3r_jax.common.cli import exit_on_user_error, prepare_streams, repeat_lost_interrupt, with_home
from f3r_jax.common.errors import EXIT_INTERRUPTED, UserError
from f3r_jax.common.files import errors_of
from f3r_jax.common.progress import Progress
from f3r_jax.data.datasets import open_dataset
from study.job import J, ShownJob
from study.local import Local
from study.runs import (
    CUT_OFF,
    FAILED,
    FINISHED,
    NOT_BEGUN,
    REPORT,
    SLURM,
    Run,
    check_output,
    programs,
    state_of,
    together,
    unique,
)
from study.slurm import Slurm, check_slurm
from study.view import View

REPORT_COMMAND = (sys.executable, "-m", "f3r_jax.report")
SECONDS_BETWEEN_LOOKS = 0.5


class Workers(Protocol[J]):
    """Executes runs: `local.Local` or `slurm.Slurm`."""

    @property
    def running(self) -> Sequence[J]:
        """The running runs."""

    @property
    def after_interrupt(self) -> str:
        """Message for a user who interrupted."""

    def poll(self) -> list[J]:
        """Starts the runs that can start; returns those that ended since the last call."""

    def busy(self) -> bool:
        """Whether any run is running or waiting."""

    def close(self) -> None:
        """Releases the workers."""


class Shown(Protocol[ShownJob]):
    """Shows the progress of runs: `view.View`."""

    def look(self, running: Sequence[ShownJob]) -> None:
        """Shows where the running runs are."""

    def ended(self, run: ShownJob) -> None:
        """Shows how a run ended."""

    def close(self) -> None:
        """Ends the display."""


def launch(plan: Sequence[Run], options: argparse.Namespace) -> int:
    """Does the unfinished runs of a plan and writes the report; returns the exit status."""
    plan = unique(plan)
    check_output(options.output, plan)
    finished = {run.name for run in plan if state_of(run)[0] == FINISHED}
    if options.together:
        plan = together(plan, finished)
    show(plan, options)
    if options.dry_run:
        return 0
    todo = [run for run in plan if run.name not in finished]
    check_data(todo)
    if options.slurm:
        check_slurm()
    with signals_as_interrupt(), only_launcher(options.output):
        try:
            if todo:
                make_phantoms(todo)
                processes = programs(todo)
                leaders = list(processes)
                follow(workers_for(leaders, options.output / SLURM, options), View(processes, done=len(finished)))
            good = tell(plan)
            return 0 if report(options.output) and good else 1
        except KeyboardInterrupt as interrupt:
            print(f"\ninterrupted; {interrupt or 'launch again to resume'}", file=sys.stderr)
            return EXIT_INTERRUPTED


def show(plan: Sequence[Run], options: argparse.Namespace) -> None:
    """Prints the number of runs in each state; for a dry run also the state and command of each run."""
    states = {run.name: state_of(run) for run in plan}
    kinds = [state for state, _ in states.values()]
    counts = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in (FINISHED, CUT_OFF, FAILED, NOT_BEGUN) if kind in kinds
    )
    print(f"{options.output}: {len(plan)} runs: {counts}", flush=True)
    if options.dry_run:
        for run in plan:
            print(f"\n{run.name}: {': '.join(filter(None, states[run.name]))}\n  {shlex.join(run.command)}")


def check_data(todo: Sequence[Run]) -> None:
    """Raises a UserError for a mistake in the data settings or in the headers of the pairs."""
    for run in todo:
        if run.config.data.root is None:
            raise UserError(f"{run.spec}: data.root is not set, expected the folder of the pairs: --data=FOLDER")
    for run in one_a_data_set(todo):
        open_dataset(run.config.data, seed=run.config.seed)


def make_phantoms(todo: Sequence[Run]) -> None:
    """Generates the phantoms that the runs share, because otherwise all runs would generate them at once."""
    for run in one_a_data_set(todo):
        if run.config.data.source == "phantom":
            dataset = open_dataset(run.config.data, seed=run.config.seed)
            with Progress("phantom", len(dataset.makers)) as progress:
                for make in dataset.makers.values():
                    make()
                    progress.advance()


def one_a_data_set(runs: Sequence[Run]) -> list[Run]:
    """The first run of each data set; both directions use the same data set."""
    first: dict[tuple[str, int], Run] = {}
    for run in runs:
        data = run.config.data.to_dict() | {"direction": None}
        first.setdefault((repr(sorted(data.items())), run.config.seed), run)
    return list(first.values())


def workers_for(jobs: Sequence[J], folder: Path, options: argparse.Namespace, *, what: str = "runs") -> Workers[J]:
    """What executes the processes: this machine, or with `--slurm` the cluster; `folder` is for files of submitit."""
    if options.slurm:
        return Slurm(jobs, folder, options, what=what)
    return Local(jobs, options.jobs or 1)


def follow(workers: Workers[J], view: Shown[J]) -> None:
    """Shows the progress of the runs until all have ended."""
    try:
        while workers.busy():
            for run in workers.poll():
                view.ended(run)
            view.look(workers.running)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(workers.after_interrupt) from None
    finally:
        workers.close()
        view.close()


def tell(plan: Sequence[Run]) -> bool:
    """Prints the result of the plan, with error and log of failed runs; returns whether all are finished."""
    states = {run: state_of(run) for run in plan}
    missing = [run for run in plan if states[run][0] != FINISHED]
    print(f"{len(plan) - len(missing)} of {len(plan)} runs finished", flush=True)
    for run in missing:
        print(
            f"{': '.join(filter(None, (states[run][0], run.name, states[run][1])))} (log: {run.log})", file=sys.stderr
        )
    return not missing


def report(output: Path) -> bool:
    """Writes the report on the study's folder; returns whether it read all runs."""
    return subprocess.run([*REPORT_COMMAND, str(output), "--output", str(output / REPORT)], check=False).returncode == 0


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Treats SIGTERM and SIGHUP like Ctrl-C, unless they are ignored (nohup)."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    handled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def only_launcher(output: Path) -> Iterator[None]:
    """Locks the study's folder. The lock is released when the process ends, also when it is killed."""
    with errors_of(output, "write here"):
        output.mkdir(parents=True, exist_ok=True)
    with locks.held(output, f"{output}: another launcher is at work here; wait for it or use another --output"):
        yield


def run_launcher(main: Callable[[Sequence[str]], int]) -> None:
    """Exits with the status of `main`; a user's mistake prints one line and exits with 2."""
    prepare_streams()
    sys.unraisablehook = repeat_lost_interrupt
    sys.exit(exit_on_user_error(main)(with_home(sys.argv[1:])))
