"""Registers the pairs of a table with several processes: on this machine, or as a job array on a SLURM cluster.

python launch/cohort.py data/pairs.csv --output=results --jobs=2
python launch/cohort.py data/pairs.csv --output=results --slurm --slurm_gpus=1 --checkpoint=runs/mrb

Each process registers some rows: `python -m f3r_jax.register --pairs --rows`. Other flags are passed to it. The results
and summaries are those of `register --pairs`; both commands can continue what the other one began. The folder `cohort`
in the output has the logs. Finished pairs are skipped, failed ones are tried again.

Exit status: 0 on success, 1 if a pair is not registered, 2 for a user's mistake, 4 with --strict for a failed verdict,
130 if interrupted.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from f3r_jax.common import provenance, result_folder
from f3r_jax.common.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from f3r_jax.data.pair_files import SIDES
from f3r_jax.data.pairs import list_pairs
from f3r_jax.register import batch_summary, verdict
from f3r_jax.register.batch_summary import SUMMARY, TABLE, Row
from study.arguments import Parser
from study.cohort_view import CohortView
from study.launcher import follow, only_launcher, run_launcher, signals_as_interrupt, workers_for
from study.parts import Part, failures, problem, row_of_event
from study.slurm import add_slurm_arguments, check_slurm, queued, read_jobs

REGISTER = (sys.executable, "-m", "f3r_jax.register")
WORK = "cohort"  # folder in the output
OWN = ("pairs", "output", "rows", "json", "dry_run", "strict", "demo")  # flags of `register` that this script sets


def main(argv: Sequence[str]) -> int:
    """Registers the pairs; returns the exit status."""
    options, given = parse(argv)
    names = [pair.name for pair in list_pairs(options.pairs)]
    if WORK in names:
        raise UserError(
            f"{options.pairs}: a pair is named {WORK}, which is the folder of the logs; expected another name"
        )
    known = registered(options, given)
    parts = plan(names, options, given)
    todo = [part for part in parts if any(name not in known for name in part.pairs)]
    print(f"{options.output}: {len(names)} pairs: {len(known)} finished; {len(todo)} of {len(parts)} tasks to do")
    if options.dry_run:
        for part in todo:
            print(f"\n{part.name}\n  {shlex.join(part.command)}")
        return 0
    if options.slurm:
        check_slurm()
        check_queue(parts, options)
    with signals_as_interrupt(), only_launcher(options.output / WORK):
        try:
            if todo:
                view = CohortView(len(names), known)
                follow(workers_for(todo, options.output / WORK, options, what="tasks"), view)
                known = registered(options, given)
            return finish(names, known, todo, options)
        except KeyboardInterrupt as interrupt:
            print(f"\ninterrupted; {interrupt or 'launch again to resume'}", file=sys.stderr)
            return EXIT_INTERRUPTED


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of this script, and the flags for `register`."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("pairs", type=Path, help="table of pairs, or a folder with one")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--per_task", type=int, default=10, help="pairs per process (10)")
    parser.add_argument("--jobs", type=int, help="processes at a time (default: 1 on this machine; no limit on SLURM)")
    parser.add_argument("--strict", action="store_true", help="exit status 4 if a verdict is `failed`")
    parser.add_argument("--dry_run", action="store_true", help="check the pairs and print the plan")
    add_slurm_arguments(parser)
    options, given = parser.parse_known_args(argv)
    for name in ("jobs", "per_task"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, expected 1 or more")
    for text in given:
        if not text.startswith("--"):
            parser.error(f"unknown argument {text!r}")
        if (name := text.lstrip("-").partition("=")[0].removeprefix("no")) in OWN:
            parser.error(f"--{name} is set by this script")
    return options, given


def plan(names: Sequence[str], options: argparse.Namespace, given: Sequence[str]) -> list[Part]:
    """The processes for all rows of the table."""
    shared = (*REGISTER, f"--pairs={options.pairs}", f"--output={options.output}", "--json", *given)
    starts = range(0, len(names), options.per_task)
    return [
        Part(start, tuple(names[start : start + options.per_task]), options.output / WORK, shared) for start in starts
    ]


def registered(options: argparse.Namespace, given: Sequence[str]) -> dict[str, Row]:
    """The rows of the pairs that have a result of these settings, by name. All files are checked.

    Raises:
      UserError: a mistake in the table, a file or a flag, or a result of other settings.
    """
    command = [*REGISTER, f"--pairs={options.pairs}", f"--output={options.output}", *given, "--json", "--dry_run"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode == EXIT_USER_ERROR:
        raise UserError(events[-1]["message"])
    if done.returncode != 0:
        raise UserError(f"{shlex.join(command)}: exit status {done.returncode}, expected 0")
    for event in events:
        if event["event"] == "warning":
            print(f"note: {event['message']}")
    return {event["name"]: row_of_event(event) for event in events if event["event"] == "result"}


def check_queue(parts: Sequence[Part], options: argparse.Namespace) -> None:
    """Raises a UserError if tasks of other rows are in the queue, which could register the same pairs."""
    jobs, queue = read_jobs(options.output.absolute() / WORK), queued()
    others = [name for name, job in jobs.items() if job in queue and name not in {part.name for part in parts}]
    if others:
        raise UserError(
            f"{options.output}: {others[0]} is in the queue with another --per_task; expected the same, or scancel "
            f"{jobs[others[0]].partition('_')[0]}"
        )


def finish(names: Sequence[str], known: Mapping[str, Row], tried: Sequence[Part], options: argparse.Namespace) -> int:
    """Writes the summaries of all pairs and prints totals, verdicts and failures; returns the exit status."""
    reasons = {name: reason for part in tried for name, reason in failures(part).items()}
    missing = {
        name: Row(name, "failed", reason=reasons[name]) if name in reasons else batch_summary.waiting(name)
        for name in names
        if name not in known
    }
    rows = [known[name] if name in known else missing[name] for name in names]
    with result_folder.reserved(options.output):
        batch_summary.write(options.output, rows, facts(known, options.output))
    print(batch_summary.format_totals(rows))
    for row in rows:
        if row.verdict in (verdict.CHECK, verdict.FAILED):
            print(f"verdict {row.verdict}: {row.name}: {row.reason}")
    print(f"result: {options.output}, table: {options.output / TABLE}", flush=True)
    for line in shortcomings(missing, tried):
        print(line, file=sys.stderr)
    if missing:
        return 1
    return max((verdict.exit_status(row.verdict, strict=options.strict) for row in rows), default=0)


def shortcomings(missing: Mapping[str, Row], tried: Sequence[Part]) -> Iterator[str]:
    """One line per failed pair, and per process that ended before its pairs were registered."""
    for part in tried:
        rows = [missing[name] for name in part.pairs if name in missing]
        for row in rows:
            if row.status == "failed":
                yield f"failed: {row.name}: {row.reason}"
        if left := [row.name for row in rows if row.status == "waiting"]:
            yield f"not registered: {', '.join(left)}: {problem(part)} (log: {part.log})"


def facts(known: Mapping[str, Row], output: Path) -> dict[str, Any]:
    """What `summary.json` holds in addition to the rows: the settings that all pairs share, command and versions."""
    settings: dict[str, Any] = {}
    for name in known:
        settings = json.loads((output / name / SUMMARY).read_text(encoding="utf-8"))["settings"]
        break
    shared = {key: value for key, value in settings.items() if not key.startswith(SIDES)}
    command = shlex.join(["python", "launch/cohort.py", *sys.argv[1:]])
    return {"settings": shared, "command": command, "versions": provenance.versions()}


if __name__ == "__main__":
    run_launcher(main)
