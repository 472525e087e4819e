"""Executes runs on this machine, several at a time, each with its share of the cores or with one GPU.

The runs end with the launcher: it ends them when it is interrupted; on Linux the kernel does when it is killed.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Generic

from study.job import J
from study.logs import mark_end, mark_start

SECONDS_TO_END = 10
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Local(Generic[J]):
    """A queue of runs and up to `jobs` processes."""

    after_interrupt = "launch again to resume the runs"

    def __init__(self, runs: Sequence[J], jobs: int) -> None:
        self._waiting = list(runs)
        self._processes: dict[int, tuple[J, subprocess.Popen]] = {}  # by slot
        self._shares = shares(min(jobs, len(runs)))

    @property
    def running(self) -> list[J]:
        """The running runs."""
        return [run for run, _ in self._processes.values()]

    def busy(self) -> bool:
        """Whether any run is running or waiting."""
        return bool(self._waiting or self._processes)

    def poll(self) -> list[J]:
        """Starts runs in free slots; returns those that ended since the last call."""
        ended = []
        for slot, (run, process) in list(self._processes.items()):
            status = process.poll()
            if status is not None:
                mark_end(run.log, status)
                del self._processes[slot]
                ended.append(run)
        for slot, share in enumerate(self._shares):
            if slot not in self._processes and self._waiting:
                run = self._waiting.pop(0)
                self._processes[slot] = run, start(run, *share)
        return ended

    def close(self) -> None:
        """Ends the running processes; signals are ignored meanwhile."""
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        processes = [process for _, process in self._processes.values()]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        self._waiting.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def start(run: J, cores: Sequence[int], variables: dict[str, str]) -> subprocess.Popen:
    """Starts a run in its own session, so that Ctrl-C only reaches the launcher."""
    mark_start(run.log, run.command)
    with run.log.open("a") as log:
        process = subprocess.Popen(
            run.command,
            env=run.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if _LIBC else None,
        )
    if cores:  # before it starts threads, which inherit the cores
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def _end_with_parent() -> None:
    assert _LIBC
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def shares(jobs: int) -> list[tuple[list[int], dict[str, str]]]:
    """(cores, environment variables) of each job: a share of the cores, or one of the GPUs in turn."""
    devices = gpus()
    if devices:
        common = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if jobs > len(devices) else {}
        return [([], common | {"CUDA_VISIBLE_DEVICES": devices[job % len(devices)]}) for job in range(jobs)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs > len(cores):
        cores = []
    return [(cores[job * len(cores) // jobs : (job + 1) * len(cores) // jobs], {}) for job in range(jobs)]


def gpus() -> list[str]:
    """The NVIDIA GPUs that runs can use, in the notation of CUDA_VISIBLE_DEVICES."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())] if listed.returncode == 0 else []
