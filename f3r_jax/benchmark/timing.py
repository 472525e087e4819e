"""Times jobs alternately (A B A B), each in its own process (`worker`)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from f3r_jax.benchmark.job import Job, Seconds, SetUp
from f3r_jax.benchmark.measurement import Measurement, Performance, Range, Ratio
from f3r_jax.benchmark.tables import title
from f3r_jax.benchmark.workloads import Workload


class NoMemoryError(Exception):
    """The job of a subject does not fit into memory."""

    def __init__(self, who: str, why: str) -> None:
        super().__init__(why)
        self.who = who


class Worker:
    """A job in its own process, which ends with the `with` block.

    Every method raises a NoMemoryError if the job does not fit into memory, and a ChildProcessError if the process
    ended for another reason.
    """

    def __init__(self, job: Job) -> None:
        settings = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.who = job.who
        self.process = subprocess.Popen(
            [sys.executable, "-m", "f3r_jax.benchmark.worker", json.dumps(job.to_json())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | settings,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout
        with contextlib.suppress(OSError):  # on Linux: if memory runs out, kill this process first
            Path(f"/proc/{self.process.pid}/oom_score_adj").write_text("1000")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()

    def wait_until_ready(self) -> SetUp:
        """Waits for the end of the warm-up."""
        return SetUp.from_json(self._answer())

    def run(self) -> Seconds:
        """Runs the job once."""
        with contextlib.suppress(BrokenPipeError):  # the answer has the reason
            self._input.write("\n")
        return Seconds(**self._answer())

    def finish(self) -> tuple[float, float | None]:
        """Ends the job; returns the peak memory of the process and of the accelerator in MiB."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        found = self._answer()
        return found["peak_mib"], found["device_peak_mib"]

    def _answer(self) -> dict[str, Any]:
        """The next line of JSON from the process."""
        if line := self._output.readline():
            found: dict[str, Any] = json.loads(line)
            if "no_memory" in found:
                raise NoMemoryError(self.who, found["no_memory"])
            return found
        status = self.process.wait()
        if status == -signal.SIGKILL:
            raise NoMemoryError(self.who, "killed")
        raise ChildProcessError(f"{self.who} ended with status {status}")


def measure(workload: Workload, *, repeats: int) -> Measurement:
    """Times the jobs of a workload alternately; with 0 repeats they only warm up, to measure the memory.

    Without results, the measurement names the subject that does not fit into memory, or the error of a process.
    """
    print_progress(f"{title(workload[0])}:")
    workers: list[Worker] = []
    try:
        with contextlib.ExitStack() as stack:
            set_ups = {}
            for job in workload:
                print_progress(f" preparing {job.who},")
                workers.append(worker := stack.enter_context(Worker(job)))
                set_ups[job.who] = worker.wait_until_ready()
            check_devices(set_ups)
            seconds: dict[str, list[Seconds]] = {job.who: [] for job in workload}
            for n in range(repeats):
                for worker in workers:
                    seconds[worker.who].append(worker.run())
                print_progress(f" {n + 1}")
            results = {
                worker.who: Performance(
                    set_ups[worker.who],
                    [each.wall for each in seconds[worker.who]],
                    [each.cpu for each in seconds[worker.who]],
                    *worker.finish(),
                )
                for worker in workers
            }
    except NoMemoryError as error:
        print_progress(f" {error.who} does not fit into memory: {error}\n")
        return Measurement(workload, no_memory=(error.who, str(error)))
    except OSError as error:
        print_progress(f" {error}\n")
        return Measurement(workload, error=str(error))
    print_progress(f" of {repeats}\n")
    return Measurement(workload, results, ratios(results) if repeats else {})


def check_devices(set_ups: Mapping[str, SetUp]) -> None:
    """Raises a ChildProcessError if some subjects run on a CPU and others on an accelerator."""
    devices = {who: set_up.device for who, set_up in set_ups.items()}
    if len({device == "cpu" for device in devices.values()}) > 1:
        raise ChildProcessError(f"not comparable: the subjects run on different devices: {devices}")


def ratios(results: Mapping[str, Performance]) -> dict[str, Ratio]:
    """Time of the first subject divided by that of each other, run by run, for wall-clock and CPU time."""
    first, *others = results
    one = results[first]
    return {who: Ratio(_ratio(one.wall, results[who].wall), _ratio(one.cpu, results[who].cpu)) for who in others}


def _ratio(seconds: Sequence[float], others: Sequence[float]) -> Range:
    return Range.of([a / b for a, b in zip(seconds, others, strict=True)])


def print_progress(text: str) -> None:
    """Prints a part of a progress line."""
    print(text, end="", flush=True)
