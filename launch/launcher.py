"""What all launchers share: their arguments, and the way from a plan to its report.

Finished runs are skipped, those that were cut off go on, failed ones are tried again. A run that fails leaves the
others running and is named at the end. Exit status: 0 if all is well, 1 if a run or the report failed, 2 for a user's
mistake, 130 if interrupted.
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from f3r_jax.data.datasets import open_dataset
from f3r_jax.errors import UserError, exit_on_user_error
from f3r_jax.progress import Progress
from local import Local
from runs import CUT_OFF, FAILED, FINISHED, LOCK, NOT_BEGUN, REPORT, Run, check_output, state_of, unique
from slurm import Slurm, add_slurm_arguments, check_slurm
from view import View

REPORT_COMMAND = (sys.executable, "-m", "f3r_jax.report")
DIRECTIONS = ("ct_to_mr", "mr_to_ct")
SECONDS_BETWEEN_LOOKS = 0.5
INTERRUPTED = 130


class Workers(Protocol):
    """Where runs are done: `local.Local` or `slurm.Slurm`."""

    running: list[Run]
    after_interrupt: str  # what to tell a user who interrupted

    def poll(self) -> list[Run]:
        """Starts what can be started; returns the runs that have ended since the last call."""

    def busy(self) -> bool:
        """Whether anything runs or waits."""

    def close(self) -> None:
        """Lets go."""


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> None:
        """Raises a UserError instead of printing the usage."""
        raise UserError(f"{message}; --help lists what is expected")


def make_parser(doc: str, output: str) -> Parser:
    """The arguments that all launchers have. `--config.KEY=VALUE` is taken too, see `parse`."""
    parser = Parser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="--config.KEY=VALUE changes a setting of all runs, for example --config.train.steps=100",
    )
    parser.add_argument("--output", type=Path, default=Path(output), help=f"folder of the study ({output})")
    parser.add_argument("--data", help="folder of NIfTI pairs: the configs' option :paper, the paper's size, on them")
    parser.add_argument("--seeds", type=numbers(int), default=(None,), help="such as 0,1,2; the configs' own otherwise")
    parser.add_argument("--dry_run", action="store_true", help="show the plan and start nothing")
    parser.add_argument("--jobs", type=int, help="runs at a time: on this machine 1, on SLURM as many as it grants")
    add_slurm_arguments(parser)
    return parser


def numbers(kind: type) -> Callable[[str], tuple]:
    """Reads a list such as 0.5,1,2."""

    def read(text: str) -> tuple:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or not all(0 <= value < float("inf") for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}, expected numbers of 0 or more such as 0,1,2")
        return values

    return read


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `settings` are the KEY=VALUE that hold for all runs."""
    options, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if not (text.startswith("--config.") and "=" in text)]
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}, expected 1 or more")
    options.settings = tuple(text.removeprefix("--config.") for text in rest)
    if options.data is not None:
        options.settings = (f"data.root={options.data}", *options.settings)
    return options


def spec_of(config: str, options: argparse.Namespace) -> str:
    """The config with the option that goes with the data."""
    return f"{config}:paper" if options.data is not None and ":" not in config else config


def launch(plan: Sequence[Run], options: argparse.Namespace) -> int:
    """Does what is left of a plan and writes the report; returns the exit status."""
    plan = unique(plan)
    check_output(options.output, plan)
    show(plan, options)
    if options.dry_run:
        return 0
    todo = [run for run in plan if state_of(run)[0] != FINISHED]
    check_data(todo)
    if options.slurm:
        check_slurm()
    with signals_as_interrupt(), only_launcher(options.output):
        try:
            if todo:
                make_phantoms(todo)
                workers = Slurm(todo, options) if options.slurm else Local(todo, options.jobs or 1)
                follow(workers, len(plan), len(plan) - len(todo))
            good = tell(plan)
            return 0 if report(options.output) and good else 1
        except KeyboardInterrupt as interrupt:
            print(f"\ninterrupted; {interrupt or 'launch again to go on'}", file=sys.stderr)
            return INTERRUPTED


def show(plan: Sequence[Run], options: argparse.Namespace) -> None:
    """Prints how many runs stand how; for a dry run every run with its state and command."""
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
    """Raises a UserError for a mistake in the settings of the data or in the headers of the pairs."""
    for run in todo:
        if run.config.data.root is None:
            raise UserError(f"{run.spec}: data.root is not set, expected the folder of the pairs: --data=FOLDER")
    for run in one_a_data_set(todo):
        open_dataset(run.config.data, seed=run.config.seed)


def make_phantoms(todo: Sequence[Run]) -> None:
    """Generates the phantoms that the runs share: they would all do it at once."""
    for run in one_a_data_set(todo):
        if run.config.data.source == "phantom":
            dataset = open_dataset(run.config.data, seed=run.config.seed)
            with Progress("phantom", len(dataset.makers)) as progress:
                for make in dataset.makers.values():
                    make()
                    progress.advance()


def one_a_data_set(runs: Sequence[Run]) -> list[Run]:
    """The first run of each data set; both directions share one."""
    first = {}
    for run in runs:
        data = run.config.data.to_dict() | {"direction": None}
        first.setdefault((repr(sorted(data.items())), run.config.seed), run)
    return list(first.values())


def follow(workers: Workers, total: int, done: int) -> None:
    """Shows the runs until all have ended."""
    view = View(total, done)
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
    """Prints what became of the plan, failed runs with error and log; true if all are finished."""
    states = {run: state_of(run) for run in plan}
    missing = [run for run in plan if states[run][0] != FINISHED]
    print(f"{len(plan) - len(missing)} of {len(plan)} runs finished", flush=True)
    for run in missing:
        print(
            f"{': '.join(filter(None, (states[run][0], run.name, states[run][1])))} (log: {run.log})", file=sys.stderr
        )
    return not missing


def report(output: Path) -> bool:
    """Writes the report over the study's folder; true if it read all runs."""
    return subprocess.run([*REPORT_COMMAND, str(output), "--output", str(output / REPORT)], check=False).returncode == 0


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Being told to end, or losing the terminal, is like Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def only_launcher(output: Path) -> Iterator[None]:
    """Holds the study's folder; the lock ends with the process, however it ends."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{output}: another launcher is at work here; wait for it or give another --output"
            ) from None
        yield


def run_launcher(main: Callable[[Sequence[str]], int]) -> None:
    """Ends the program with the exit status of `main`; a user's mistake is one line and status 2."""
    try:
        sys.exit(exit_on_user_error(main)(sys.argv[1:]))
    except BrokenPipeError:  # ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
