"""Executes runs as a job array on a SLURM cluster, one task per run, through submitit (extra slurm).

The launcher submits the runs, then watches their folders, which must be on a file system that all nodes share. It can
be stopped and launched again meanwhile: runs that are in the queue are found there and not submitted twice. A task that
reaches its time limit is queued again by submitit and resumes from its newest checkpoint.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Generic

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import write_text
from study.job import J
from study.logs import mark_end, mark_start

SECONDS_BETWEEN_LOOKS = 5.0
_JOBS = "jobs.json"  # the job ID of each run, as squeue prints it


class Slurm(Generic[J]):
    """The tasks of the runs in the queue. `folder` is for files of submitit; `what` names the runs in messages."""

    def __init__(self, runs: Sequence[J], folder: Path, options: argparse.Namespace, *, what: str = "runs") -> None:
        self._folder = folder.absolute()
        self._folder.mkdir(exist_ok=True)
        queue = queued()
        known = read_jobs(self._folder)
        self._jobs = {run: known[run.program] for run in runs if known.get(run.program) in queue}
        if self._jobs:
            print(f"{len(self._jobs)} {what} are already in the queue", flush=True)
        new = [run for run in runs if run not in self._jobs]
        if new:
            self._jobs |= dict(zip(new, submit(new, self._folder, options), strict=True))
            self._write_jobs(known | {run.program: job for run, job in self._jobs.items()})
            print(f"submitted {len(new)} {what} as {self._jobs[new[0]].partition('_')[0]}", flush=True)
        self.running: list[J] = []
        self._last_look = 0.0
        self._gone: set[J] = set()

    def busy(self) -> bool:
        """Whether any task is in the queue."""
        return bool(self._jobs)

    def poll(self) -> list[J]:
        """The runs whose task left the queue.

        A task must be missing twice, because a task that is queued again is missing for a moment.
        """
        now = time.monotonic()
        if now - self._last_look < SECONDS_BETWEEN_LOOKS:
            return []
        self._last_look = now
        queue = queued()
        self.running = [run for run, job in self._jobs.items() if queue.get(job) == "RUNNING"]
        gone = {run for run, job in self._jobs.items() if job not in queue}
        ended, self._gone = sorted(gone & self._gone, key=lambda run: run.name), gone - self._gone
        for run in ended:
            del self._jobs[run]
        return ended

    def close(self) -> None:
        """Leaves the tasks in the queue."""

    @property
    def after_interrupt(self) -> str:
        """Message for a user who interrupted."""
        numbers = sorted({job.partition("_")[0] for job in self._jobs.values()})
        return f"the tasks stay in the queue: launch again to watch them, or scancel {' '.join(numbers)}"

    def _write_jobs(self, jobs: dict[str, str]) -> None:
        write_text(self._folder / _JOBS, json.dumps(jobs, indent=2) + "\n")


def read_jobs(folder: Path) -> dict[str, str]:
    """The job ID of each process that was ever submitted, by its name."""
    path = folder / _JOBS
    return json.loads(path.read_text()) if path.exists() else {}


class Task:
    """The work of a task. submitit calls `checkpoint` when the time is up."""

    def __init__(self, log: Path, command: Sequence[str]) -> None:
        self.log, self.command = log, command

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        mark_start(self.log, self.command)
        with self.log.open("a") as file:
            status = subprocess.call(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=_leave_warning_to_submitit,
            )
        mark_end(self.log, status)
        return status

    def checkpoint(self) -> object:
        """Submits the same command again; the run resumes by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _leave_warning_to_submitit() -> None:
    """Ignores SLURM's signal that the time is up, which every process of a task gets. submitit then ends the run.

    If the signal killed the run before submitit received it, the task would count as failed and not be queued again.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def add_slurm_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the SLURM arguments for runs on one node."""
    group = parser.add_argument_group("SLURM")
    group.add_argument(
        "--slurm", action="store_true", help="submit the runs as a job array; --jobs limits how many run at a time"
    )
    group.add_argument("--slurm_partition", help="partition (default: that of the cluster)")
    group.add_argument("--slurm_account", help="account to charge")
    group.add_argument(
        "--slurm_time", type=int, default=24 * 60, help="minutes per task (1440); then it is queued again"
    )
    group.add_argument("--slurm_gpus", type=int, help="GPUs per task; a run needs 1")
    group.add_argument("--slurm_cpus", type=int, help="cores per task")
    group.add_argument("--slurm_mem", help="memory per task, such as 16G")


def check_slurm() -> None:
    """Raises a UserError if runs cannot be submitted."""
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        raise UserError("--slurm: no sbatch and squeue here, expected the login node of a SLURM cluster")
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--slurm needs the extra slurm: make EXTRAS=slurm ..., or pip install -e '.[slurm]'")
    queued()


def submit(runs: Sequence[J], folder: Path, options: argparse.Namespace) -> list[str]:
    """Submits the runs as one job array; returns their job IDs as squeue prints them."""
    import submitit

    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=1000, python=shlex.quote(sys.executable))
    given = {
        "partition": options.slurm_partition,
        "account": options.slurm_account,
        "gpus_per_node": options.slurm_gpus,
        "cpus_per_task": options.slurm_cpus,
        "mem": options.slurm_mem,
        "array_parallelism": options.jobs,
    }
    executor.update_parameters(
        job_name="f3r_jax",
        time=options.slurm_time,
        ntasks_per_node=1,
        setup=[
            f"export PYTHONPATH={shlex.quote(str(Path(__file__).parent.parent))}:$PYTHONPATH"
        ],  # so that the module of Task is found
        **{key: value for key, value in given.items() if value is not None},
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # submitit echoes what sbatch prints
            jobs = [executor.submit(Task(run.log.absolute(), run.command)) for run in runs]
    except (submitit.core.utils.FailedJobError, RuntimeError) as error:
        raise UserError(str(error).strip().splitlines()[-1]) from error
    return [job.job_id for job in jobs]


def queued() -> dict[str, str]:
    """State of each waiting or running job of the user, by job ID."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    for _ in range(5):  # a busy controller does not always answer
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            return dict(line.split() for line in listed.stdout.splitlines() if line.strip())
        time.sleep(2)
    raise UserError(f"squeue: {' '.join(listed.stderr.split()) or 'no answer'}")
